"""The tables renamed away under writers, and back: they go on, and everything is merged."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from conversations.rollout.sync import sync
from conversations.storage import load_state, save_state
from flags.phases import Phase
from flags.switches import snapshot
from flags.transitions import emergency, resume
from tests.faults.cases import Conversation, sound
from tests.flags.test_emergency import rename
from tests.flags.test_fence import until_true
from tests.flags.test_switches import set_rows
from tests.support.factories import state, texts
from tests.support.processes import Job, result_of, start
from tests.support.scale import examples

WRITERS = 3
# Of all writers together, in each stage.
WRITES = max(5, min(examples(30), 200))


def noted(folder: Path) -> list[list[str]]:
    """Return what became of each write so far: conversation, text, and whether acknowledged."""
    logs = [log.read_text() for log in folder.iterdir()]
    return [line.split() for log in logs for line in log[: log.rfind("\n") + 1].splitlines()]


def wait_for_writes(folder: Path) -> None:
    def acknowledged() -> int:
        return sum(end == "acknowledged" for _, _, end in noted(folder))

    before = acknowledged()
    until_true(lambda: acknowledged() >= before + WRITES)


def enter(phase: Phase) -> None:
    set_rows(phase)
    snapshot.forget()


@pytest.mark.long
@pytest.mark.django_db(transaction=True)
@override_settings(CONVERSATIONS={"LEGACY": "memory_chunks", "SOAK_TIME": timedelta(0)})
def test_writers_go_on_while_the_tables_are_away_and_everything_is_merged_when_they_are_back(
    tmp_path: Path, record_property: Any
) -> None:
    seed = random.randrange(2**32)
    record_property("seed", seed)
    folder, until = tmp_path / "noted", tmp_path / "until"
    folder.mkdir()
    enter(Phase.NEW_PRIMARY)
    ids = [Conversation().id for _ in range(4)]
    for conversation_id in ids:
        save_state(conversation_id, state("first"))
    enter(Phase.NEW_ONLY)
    arguments = {
        "ids": ids,
        "writers": WRITERS,
        "folder": str(folder),
        "until": str(until),
        "seed": seed,
    }
    writers = start(Job("tests.faults.emergencies:write", arguments))
    try:
        wait_for_writes(folder)
        emergency(reason="the tables are going away")
        rename("", "_away")
        try:
            wait_for_writes(folder)
        finally:
            rename("_away", "")
        wait_for_writes(folder)
        resume(reason="they are back")
        wait_for_writes(folder)
        until.touch()
        assert result_of(writers) == WRITERS
    finally:
        until.touch()
        if writers.poll() is None:
            writers.kill()
            writers.wait()
    check(noted(folder), ids, seed=seed)
    list(sync("tables"))
    check(noted(folder), ids, seed=seed)
    sound({name for name, _, _ in noted(folder)}, what=f"seed {seed}")


def check(writes: list[list[str]], ids: list[str], *, seed: int) -> None:
    """Assert that everything acknowledged is there once, and nothing that was refused."""
    expected = defaultdict[str, list[str]](list, {name: ["first"] for name in ids})
    for conversation_id, text, end in writes:
        if end == "acknowledged":
            expected[conversation_id].append(text)
    for conversation_id, acknowledged in expected.items():
        found = load_state(conversation_id)
        assert Counter(texts(found)) == Counter(acknowledged), f"seed {seed}: {conversation_id}"
        assert not found.load_info.stale
