"""Whole stores on the move: an import of files, and a sync of legacy to the tables."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from django.db import connection
from django.test import override_settings

from config.bench.playing import begun
from config.bench.population import populated
from config.bench.results import Results
from config.bench.runs import Run
from config.bench.ways import FRESH_SETTINGS, MIGRATED_SETTINGS
from config.demo.oldcode import old_save
from conversations.formats import TOGETHER, Result, export_lines, import_lines
from conversations.storage import save_state
from conversations.sync import Action, runs

IMPORT_BAR, SYNC_BAR = 10_000.0, 3_000.0
# Of about 20 turns each.
CONVERSATIONS = 200


def play(run: Run, *, conversations: int = CONVERSATIONS) -> Results:
    """Import conversations of our own format, then take those of old code into the tables."""
    results = Results("moving")
    populated()
    judged = connection.vendor == "postgresql"
    contents = [
        [message for turn in turns for message in turn]
        for turns in run.material.played(conversations)
    ]
    messages = sum(map(len, contents))
    for name, bar, outcomes, wanted in (
        ("import", IMPORT_BAR, _imported(run, contents), Result.CREATED),
        ("sync to the tables", SYNC_BAR, _synced(run, contents), Action.TAKEN_IN),
    ):
        run.say(f"  {name} of {messages:,} messages")
        seconds, found = outcomes
        results.problems += [f"{name}: {one}" for one in found if one != wanted]
        results.say(
            f"{name}, one worker",
            messages / seconds,
            bar=bar if judged else None,
            at_least=True,
            unit="messages a second",
        )
    return results


def _imported(run: Run, contents: list[list[Any]]) -> tuple[float, list[Any]]:
    names = [f"bench-moving-{number}" for number in range(len(contents))]
    with override_settings(CONVERSATIONS=dict(FRESH_SETTINGS)):
        for name, content in zip(names, contents, strict=True):
            save_state(name, begun(content), run.owner)
        lines = [line.replace("bench-moving-", "bench-moved-") for line in export_lines(names)]
        return _timed(outcome.result for outcome in import_lines(lines, together=TOGETHER))


def _synced(run: Run, contents: list[list[Any]]) -> tuple[float, list[Any]]:
    names = {f"bench-legacy-{number}" for number in range(len(contents))}
    with override_settings(CONVERSATIONS=dict(MIGRATED_SETTINGS)):
        # What another workload has left in legacy is not counted, and takes no part.
        for batch in runs.work(runs.begin("tables")):
            list(batch)
        for name, content in zip(sorted(names), contents, strict=True):
            old_save(name, begun(content), run.owner)
        batches = runs.work(runs.begin("tables"))
        done = (synced for batch in batches for synced in batch if synced.conversation_id in names)
        return _timed(synced.action for synced in done)


def _timed(outcomes: Iterable[Any]) -> tuple[float, list[Any]]:
    """Return how long it takes to go through outcomes, and those."""
    started = time.perf_counter()
    found = list(outcomes)
    return time.perf_counter() - started, found
