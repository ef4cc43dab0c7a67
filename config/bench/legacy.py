"""What is being replaced: old code and phase legacy against the tables, compared by the demo."""

from __future__ import annotations

from collections.abc import Sequence

from django.test import override_settings

from config.bench.results import Results
from config.bench.runs import Run
from config.bench.ways import MIGRATED_SETTINGS
from config.demo.comparison import Comparison
from config.demo.measures import Measure
from config.demo.rollout import flip
from config.demo.turns import Conversation, Turn
from conversations.documents import Document
from flags.phases import Phase

SAVE_BAR, LOAD_BAR, BYTES_BAR, PEAK_BAR = 3.0, 2.0, 0.90, 0.15
LONG_TURNS, LONG_MESSAGES = 100, 2_000
# Conversations of so many turns: of one alone, the first page of each index would decide.
WEIGHED = 4
OLD_WAYS = ("legacy", "old code")


def play(run: Run, *, turns: int = LONG_TURNS, messages: int = LONG_MESSAGES) -> Results:
    """Play conversations of 20 turns, then some of 100, then the last turn of one of 2,000."""
    results = Results("legacy")
    short = run.material.conversations[: run.rounds]
    long = run.material.messages(messages)
    with override_settings(CONVERSATIONS=dict(MIGRATED_SETTINGS)):
        try:
            found = _compared(results, run, "turns", short)
            _tell_times(results, found)
            several = [
                [run.material.turn(turns * place + number) for number in range(turns)]
                for place in range(WEIGHED)
            ]
            found = _compared(results, run, "bytes", several)
            _tell_savings(results, f"bytes after {turns} turns", found["bytes"], bar=BYTES_BAR)
            _tell_times(results, found, f" over {turns} turns")
            ends = [tuple(long[:-2]), tuple(long[-2:])]
            found = _compared(results, run, "peak", [ends])
            name = f"peak memory, load of {messages}"
            _tell_savings(results, name, found["peak memory, load"], bar=PEAK_BAR)
        finally:
            flip(Phase.NEW_ONLY)
    return results


def _compared(
    results: Results, run: Run, name: str, several: Sequence[Sequence[Turn]]
) -> dict[str, Measure]:
    run.say(f"  {name}")
    conversations = [
        Conversation(
            id=f"bench-legacy-{name}-{number}",
            owner=run.owner,
            document=Document.from_dict({"conversation_history": [m for t in turns for m in t]}),
            turns=tuple(turns),
        )
        for number, turns in enumerate(several)
    ]
    comparison = Comparison(conversations)
    measures = comparison.run()
    results.problems += comparison.problems
    return {measure.name: measure for measure in measures}


def _tell_times(results: Results, found: dict[str, Measure], when: str = "") -> None:
    # Judged on the demo's own conversations, which are short.
    judged = not when
    for name, bar in (("save", SAVE_BAR), ("load", LOAD_BAR)):
        values = found[f"median {name}"].values
        for way, seconds in values.items():
            results.say(f"{name}{when}: {way}", seconds * 1000, unit="ms")
        for way in OLD_WAYS:
            results.say(
                f"{name}{when}: {way} / tables",
                values[way] / values["tables"],
                bar=bar if judged else None,
                at_least=True,
            )


def _tell_savings(results: Results, name: str, measure: Measure, *, bar: float) -> None:
    for way, value in measure.values.items():
        results.say(f"{name}: {way}", value / 1000, unit="kB")
    for way in OLD_WAYS:
        results.say(
            f"{name}: less than {way}", measure.saving(way), bar=bar, at_least=True, unit="share"
        )
