"""What is being replaced: old code and phase legacy against the tables, compared by the demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from django.test import override_settings

from benchmarks.contenders import MIGRATED, OLD, SETTINGS
from benchmarks.results import Results
from benchmarks.rounds import Run
from config.demo.comparison import Comparison
from config.demo.rollout import flip
from config.demo.turns import Conversation, Turn
from conversations.content.document import Document
from flags.phases import Phase

# Conversations of so many turns: of one alone, the first page of each index would decide.
_WEIGHED = 4


def play(run: Run, results: Results, *, turns: int, messages: int) -> None:
    """Play conversations of 20 turns, then some of 100, then the last turn of one of 2,000."""
    several = [
        [run.corpus.turn(turns * place + number) for number in range(turns)]
        for place in range(_WEIGHED)
    ]
    long = run.corpus.messages(messages)
    with override_settings(CONVERSATIONS=dict(SETTINGS[MIGRATED])):
        try:
            found = _compared(run, results, "turns", run.corpus.conversations[: run.rounds])
            # Judged on the demo's own conversations, which are short.
            _tell_times(results, found, "", judged=True)
            found = _compared(run, results, "bytes", several)
            _tell_savings(results, found, f"bytes after {turns} turns", "bytes")
            _tell_times(results, found, f" over {turns} turns", judged=False)
            found = _compared(run, results, "peak", [[tuple(long[:-2]), tuple(long[-2:])]])
            name = f"peak memory, load of {messages}"
            _tell_savings(results, found, name, "peak memory, load")
        finally:
            flip(Phase.NEW_ONLY)


def _compared(
    run: Run, results: Results, name: str, several: Sequence[Sequence[Turn]]
) -> dict[str, Mapping[str, float]]:
    """Return what the demo measures, by the contender."""
    run.say(f"  {name}")
    comparison = Comparison(
        [
            Conversation(
                id=f"bench-legacy-{name}-{number}",
                owner=run.owner,
                document=Document.from_dict(
                    {"conversation_history": [m for t in turns for m in t]}
                ),
                turns=tuple(turns),
            )
            for number, turns in enumerate(several)
        ]
    )
    measures = comparison.run()
    results.problems += comparison.problems
    return {measure.name: measure.values for measure in measures}


def _tell_times(
    results: Results, found: Mapping[str, Mapping[str, float]], when: str, *, judged: bool
) -> None:
    for name in ("save", "load"):
        values = found[f"median {name}"]
        for way, seconds in values.items():
            results.tell(f"{name}{when}: {way}", seconds * 1000, unit="ms")
        for way in ("legacy", OLD):
            results.tell(
                f"{name}{when}: {way} / tables",
                values[way] / values["tables"],
                bar=name if judged else "",
                at_least=True,
            )


def _tell_savings(
    results: Results, found: Mapping[str, Mapping[str, float]], name: str, measure: str
) -> None:
    values = found[measure]
    for way, value in values.items():
        results.tell(f"{name}: {way}", value / 1000, unit="kB")
    for way in ("legacy", OLD):
        # Nothing, where that is less than can be measured: databases grow by whole pages.
        saved = 1 - values["tables"] / values[way] if values[way] else 0.0
        results.tell(f"{name}: less than {way}", saved, bar=measure, at_least=True, unit="share")
