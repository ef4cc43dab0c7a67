"""The table of workloads: what stands in the tables before, what is played, and its bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.db import connection

from benchmarks import concurrent, legacy, long, memory, moving, scale, turns
from benchmarks.population import populated
from benchmarks.results import Bars, Results
from benchmarks.rounds import Run


@dataclass(frozen=True, slots=True)
class Workload:
    """One row. `play` adds what it measures to the results; `sizes` are its arguments.

    `beside`: whether legacy and all other tables are filled too; None leaves the database empty.
    `bars` are those on PostgreSQL and on SQLite: at most, but for rates, shares and `legacy`.
    """

    name: str
    says: str
    play: Callable[..., None]
    bars: Bars
    beside: bool | None = False
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def measure(self, run: Run, **sizes: Any) -> Results:
        """Fill the tables and play. Returns: all that was measured."""
        results = Results(self.name, self.bars, connection.vendor)
        if self.beside is not None:
            populated(beside=self.beside)
        self.play(run, results, **{**self.sizes, **sizes})
        return results


WORKLOADS: Mapping[str, Workload] = {
    row.name: row
    for row in (
        Workload(
            "short",
            "conversations of up to 20 turns, turn by turn: load, add a turn, save; and the same"
            " turn appended",
            turns.short,
            {"save": (1.8, 3.0), "load": (1.4, 2.0), "append": (1.5, None)},
            beside=True,
        ),
        Workload(
            "long",
            "the same on conversations of 100 and 2,000 messages, each as long again after every"
            " round; the last 50 of 100 and of 100,000 messages",
            long.play,
            {
                "load": (1.4, 2.0),
                "growth of an append": (1.15, 1.15),
                "save beyond an append": (2.5, 2.5),
                "window": (1.2, 1.2),
            },
            sizes={"sizes": (100, 2_000), "longest": 100_000},
        ),
        Workload(
            "peers",
            "a turn added to a loaded conversation, and loads of all messages, against stores that"
            " others make: up to 20 turns, and 2,000 messages (PostgreSQL)",
            turns.others,
            {"save": (1.0, None), "load": (1.0, None), "save, LangChain": (1.2, None)},
            sizes={"sizes": (2_000,)},
        ),
        Workload(
            "dual",
            "the five phases, with `memory_chunks` and with a table of one JSON row per"
            " conversation",
            turns.dual,
            {"save": (1.35, 1.35), "load": (1.5, 1.5)},
            beside=True,
        ),
        Workload(
            "legacy",
            "old code, phase legacy and the tables, as the demo compares them: time, bytes, memory",
            legacy.play,
            {
                "save": (3.0, 3.0),
                "load": (2.0, 2.0),
                "bytes": (0.9, 0.9),
                "peak memory, load": (0.15, 0.15),
            },
            beside=None,
            sizes={"turns": 100, "messages": 2_000},
        ),
        Workload(
            "memory",
            "what Python allocates for a load, an export and an import",
            memory.play,
            {"load": (2.5, 2.5), "stream": (2.0, 2.0)},
            beside=None,
            sizes={"messages": 2_000, "stream": 20},
        ),
        Workload(
            "moving",
            "an import, a sync of legacy to the tables, and a verification of what was synced, one"
            " worker each",
            moving.play,
            {
                "import": (10_000.0, None),
                "sync to the tables": (3_000.0, None),
                # So many times as long as the sync.
                "verification": (1.2, 1.2),
            },
            sizes={"conversations": 200},
        ),
        Workload(
            "concurrent",
            "64 writers in four processes, on a conversation each, then all on one; nothing may be"
            " lost",
            concurrent.play,
            {
                f"rate, {concurrent.SEVERAL}": (0.6, None),
                f"rate, {concurrent.ONE}": (0.5, None),
                "wait": (10.0, None),
                "lost": (0.0, 0.0),
            },
            sizes={"appends": 100},
        ),
        Workload(
            "scale",
            "loads, saves, lists and pages of the admin on a million messages, against ten"
            " thousand",
            scale.play,
            {"growth": (1.5, 1.5)},
            beside=None,
            sizes={"small": (10_000, 500)},
        ),
    )
}
