"""Workloads that play conversations turn by turn: hosts, phases that write both, and peers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

from django.db import connection, models

from benchmarks.baseline import baseline_here
from benchmarks.contenders import (
    BARE,
    FLOOR,
    FRESH,
    MIGRATED,
    OLD,
    PLAIN_FLOOR,
    Api,
    Bottom,
    Contender,
    api,
    hosts,
)
from benchmarks.peers import NAMES, peers
from benchmarks.results import Results
from benchmarks.rounds import Run, add_turn, analyze, check, count_all_costs, play
from benchmarks.timing import balanced, rotations, settled_heap
from flags.phases import Phase

# LangChain's save is an INSERT of rows that nothing else depends on: its bar is another one.
_OWN_BAR = {"LangChain": "save, LangChain"}


def short(run: Run, results: Results) -> None:
    """Load, add a turn, save; and append the same turn to a conversation of its own."""
    with hosts(run.prepare) as known:
        with settled_heap():
            play(run, results, known, rotations(known), appends=True)
        count_all_costs(run, results, known)
    for operation in ("save", "load", "append"):
        for name in (FRESH, MIGRATED):
            results.compare(operation, name, FLOOR, bar=operation)
            results.compare(operation, name, PLAIN_FLOOR, bar=operation)
            results.compare(operation, name, BARE)
        results.compare(operation, FLOOR, BARE)
        results.compare(operation, OLD, FRESH)


class Blob(models.Model):
    """A host's own table of states, one row each, as a JSONFieldStore is told of it."""

    conversation_id = models.CharField(max_length=255, unique=True)
    user_id = models.CharField(max_length=64, null=True)
    state = models.JSONField()

    objects: ClassVar[Any] = models.Manager()

    class Meta:
        app_label = "benchmarks"
        # Of the bench's own databases: no migration makes it.
        managed = False
        db_table = "bench_blobs"

    def __str__(self) -> str:
        return self.conversation_id


_COLUMNS = {"conversation_id": "conversation_id", "owner": "user_id", "state": "state"}
_LEGACY: dict[str, Any] = {
    "chunks": "memory_chunks",
    "JSON row": {"model": "benchmarks.Blob", **_COLUMNS},
}
_DUAL = (Phase.DUAL_WRITE, Phase.NEW_READS, Phase.NEW_PRIMARY)


@contextmanager
def _phases(run: Run) -> Iterator[list[Contender]]:
    """Give the public API in all five phases, with legacy in either of its forms."""
    with connection.schema_editor() as editor:
        editor.create_model(Blob)
    try:
        # A shadow read is a second load; what it costs is not a phase's.
        shared = {"SHADOW_SHARE": 0, "PREPARE_STATEMENTS": run.prepare}
        yield [
            # A JSON column keeps no order of keys.
            Api(f"{store}: {phase.label}", {**shared, "LEGACY": legacy}, phase, ordered=False)
            for store, legacy in _LEGACY.items()
            for phase in Phase
        ]
    finally:
        with connection.schema_editor() as editor:
            editor.delete_model(Blob)


def dual(run: Run, results: Results) -> None:
    """Play the same turns in all five phases; compare those that write both with the others."""
    with _phases(run) as known, settled_heap():
        play(run, results, known, rotations(known))
    for store in _LEGACY:
        alone = [f"{store}: {phase.label}" for phase in (Phase.LEGACY, Phase.NEW_ONLY)]
        both = [f"{store}: {phase.label}" for phase in _DUAL]
        saved = sum(results.median("save", name) for name in alone)
        for name in both:
            value = results.median("save", name) / saved
            results.tell(f"save: {name} / (legacy + new_only)", value, bar="save")
        for name in both:
            value = results.median("load", name) / results.median("load", alone[-1])
            results.tell(f"load: {name} / new_only", value, bar="load")


def others(run: Run, results: Results, *, sizes: Sequence[int]) -> None:
    """Play the same turns in all stores that are installed; on PostgreSQL only."""
    if connection.vendor != "postgresql":
        results.notes.append("Peers are measured on PostgreSQL only.")
        return
    with peers(results.notes) as found:
        ours = [api(FRESH, prepare=run.prepare), Bottom(FLOOR, baseline_here())]
        measure(run, results, [*ours, *found], sizes=sizes)
    judge(results, sizes=sizes)


def measure(
    run: Run, results: Results, known: Sequence[Contender], *, sizes: Sequence[int]
) -> None:
    """Measure stores in turns: short conversations turn by turn, then long ones that grow."""
    order = balanced(known)
    # One conversation that does not count: what is prepared or compiled, is so for all.
    unheard = Results("peers-warm", problems=results.problems)
    play(replace(run, rounds=1), unheard, known, order, warm=False)
    for one in known:
        for size in sizes:
            run.say(f"  {size:,} messages: {one.name}")
            with one.configured():
                one.create(_long(one, size), run.owner, one.native(run.corpus.messages(size)))
    analyze()
    with settled_heap():
        play(run, results, known, order, warm=False)
        turns = [run.corpus.turn(number) for number in range(run.rounds + 1)]
        for size in sizes:
            # As above, the first one does not count.
            for number, turn in enumerate(turns):
                for one in next(order):
                    with one.configured():
                        heard = results if number else unheard
                        add_turn(run, heard, one, _long(one, size), one.native(turn), f" at {size}")
            added = [message for turn in turns for message in turn]
            for one in known:
                check(run, results, one, _long(one, size), [*run.corpus.messages(size), *added])
    count_all_costs(run, results, known)


def _long(one: Contender, size: int) -> str:
    return f"bench-peers-{size}-{one.name}"


def judge(results: Results, *, sizes: Sequence[int]) -> None:
    """Compare the public API with peers, and tell what it is to the floor in the same run."""
    for place in ("", *(f" at {size}" for size in sizes)):
        for operation in ("save", "load"):
            for name in NAMES:
                bar = _OWN_BAR.get(name, operation) if operation == "save" else operation
                results.compare(f"{operation}{place}", FRESH, name, bar=bar)
            results.compare(f"{operation}{place}", FRESH, FLOOR)
