"""Stores on the move: an import of files, a sync of legacy to the tables, and a verification."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from django.test import override_settings

from benchmarks.contenders import FRESH, MIGRATED, SETTINGS, begun
from benchmarks.results import Results
from benchmarks.rounds import Run
from config.demo.oldcode import old_save
from conversations.formats import TOGETHER, Result, export_lines, import_lines
from conversations.rollout.sync import Action, runs
from conversations.rollout.verification import verify
from conversations.storage import save_state


def play(run: Run, results: Results, *, conversations: int) -> None:
    """Import conversations of our own format, then take those of old code into the tables."""
    contents = [
        [message for turn in turns for message in turn]
        for turns in run.corpus.played(conversations)
    ]
    messages = sum(map(len, contents))
    own, old = (
        {f"bench-{kind}-{number}": content for number, content in enumerate(contents)}
        for kind in ("moving", "legacy")
    )
    with override_settings(CONVERSATIONS=dict(SETTINGS[FRESH])):
        for name, content in own.items():
            save_state(name, begun(content), run.owner)
        lines = [line.replace("bench-moving-", "bench-moved-") for line in export_lines(list(own))]
        imports = (outcome.result for outcome in import_lines(lines, together=TOGETHER))
        seconds = _timed(results, "import", imports, Result.CREATED)
        _tell_rate(results, "import", messages / seconds)
    with override_settings(CONVERSATIONS=dict(SETTINGS[MIGRATED])):
        # What another workload has left in legacy is not counted, and takes no part.
        for batch in runs.work(runs.begin("tables")):
            list(batch)
        for name, content in old.items():
            old_save(name, begun(content), run.owner)
        batches = runs.work(runs.begin("tables"))
        syncs = (one.action for batch in batches for one in batch if one.conversation_id in old)
        seconds = _timed(results, "sync", syncs, Action.TAKEN_IN)
        _tell_rate(results, "sync to the tables", messages / seconds)
        found = _timed(results, "verification", (one.in_order for one in verify(list(old))), True)
    name = "verification of what was synced"
    results.tell(name, found / seconds, bar="verification", unit="times the sync")


def _timed(results: Results, name: str, outcomes: Iterable[Any], wanted: Any) -> float:
    """Return how long it takes to go through outcomes; those that are not wanted are problems."""
    started = time.perf_counter()
    found = list(outcomes)
    seconds = time.perf_counter() - started
    results.problems += [f"{name}: {one}" for one in found if one != wanted]
    return seconds


def _tell_rate(results: Results, name: str, rate: float) -> None:
    unit = "messages a second"
    results.tell(f"{name}, one worker", rate, bar=name, at_least=True, unit=unit)
