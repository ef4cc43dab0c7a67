"""Steps are made while four processes write, and nothing is missing or doubled."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from conversations.rollout.sync import sync
from flags import transitions
from flags.exceptions import FenceBusy, TransitionRefused
from flags.phases import Phase
from flags.switches import snapshot
from tests.concurrency.test_processes import create, shown
from tests.flags.test_fence import until_true
from tests.flags.test_switches import set_rows
from tests.support.processes import Job, result_of, start
from tests.support.rollout import EASED, step_forward

WRITERS = 4
LEGACY = {"LEGACY": "memory_chunks", **EASED}


def request(source: Phase, target: Phase) -> bool:
    """Ask for a step from one phase to another. Returns: whether it was made."""
    set_rows(source)
    snapshot.forget()
    list(sync("tables" if target > source else "legacy"))
    try:
        if target < source:
            transitions.rollback(target)
        else:
            transitions.check(target)
            step_forward()
    except (TransitionRefused, FenceBusy):
        return False
    assert transitions.status().phase == target
    return True


@pytest.mark.long
@pytest.mark.django_db(transaction=True)
@override_settings(CONVERSATIONS=LEGACY)
def test_every_step_that_is_asked_for_under_load_is_made_or_refused_and_loses_nothing(
    tmp_path: Path, record_property: Any
) -> None:
    conversation_id, until = create(), tmp_path / "done"
    arguments = {"conversation_id": conversation_id, "until": str(until)}
    writers = [
        start(
            Job(
                "tests.concurrency.writers:write_until",
                {**arguments, "name": f"w{number}", "seed": number},
            )
        )
        for number in range(WRITERS)
    ]
    try:
        made = []
        for pair in permutations(Phase, 2):
            before = sum(shown(conversation_id).values())
            until_true(lambda: sum(shown(conversation_id).values()) > before + WRITERS)  # noqa: B023
            if request(*pair):
                made.append(pair)
        until.touch()
        acknowledged = [text for writer in writers for text in result_of(writer)]
    finally:
        until.touch()
        for writer in writers:
            if writer.poll() is None:
                writer.kill()
                writer.wait()
    assert shown(conversation_id) == Counter(acknowledged)
    adjacent = {
        (source, target) for source, target in permutations(Phase, 2) if target - source == 1
    }
    assert {pair for pair in made if pair[1] > pair[0]} <= adjacent
    # A gate may refuse while others write; a way back from new_only is always open.
    assert (Phase.NEW_ONLY, Phase.NEW_PRIMARY) in made
