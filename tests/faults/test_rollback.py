"""From thousands of writes in new_only back to legacy: old code reads every message."""

from __future__ import annotations

import random
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.test import override_settings

from conversations.storage import append_messages, load_state, save_state
from flags.exceptions import TransitionRefused
from flags.phases import Phase
from flags.switches import current_plan, snapshot
from flags.transitions import rollback, status
from tests.faults.cases import Conversation, sound
from tests.flags.test_switches import set_rows
from tests.support.factories import message, messages, state, texts
from tests.support.legacy_schema import old_load
from tests.support.scale import examples

WRITES = min(5000, examples(1000))
CONVERSATIONS = 50


def enter(phase: Phase) -> None:
    set_rows(phase)
    snapshot.forget()


def write(made: Conversation, text: str, chance: random.Random) -> None:
    if chance.random() < 0.5:
        append_messages(made.id, messages(text))
    else:
        held = load_state(made.id, max_messages=chance.choice([None, 1, 5]))
        held.conversation_history.append(message(text))
        held.step_count += 1
        save_state(made.id, held)
    made.acknowledged.append(text)


def read_by_old_code(made: Conversation) -> list[Any]:
    blob = old_load(connection, made.id)
    return [] if blob is None else [entry["content"] for entry in blob["conversation_history"]]


@pytest.mark.long
@pytest.mark.django_db(transaction=True)
@override_settings(CONVERSATIONS={"LEGACY": "memory_chunks", "SOAK_TIME": timedelta(0)})
def test_a_rollback_after_thousands_of_writes_in_new_only_loses_nothing(
    record_property: Any,
) -> None:
    seed = random.randrange(2**32)
    record_property("seed", seed)
    chance = random.Random(seed)
    made = [Conversation() for _ in range(CONVERSATIONS)]
    enter(Phase.NEW_PRIMARY)
    for one in made[: CONVERSATIONS // 2]:
        save_state(one.id, state())
    enter(Phase.NEW_ONLY)
    for one in made[CONVERSATIONS // 2 :]:
        save_state(one.id, state())
    for number in range(WRITES):
        write(chance.choice(made), f"{number}", chance)
    # Old code must not take over before legacy is current.
    with pytest.raises(TransitionRefused, match="legacy_current"):
        rollback(Phase.LEGACY)
    assert status().phase == Phase.NEW_READS
    call_command("conversations", "sync", "--to", "legacy", stdout=StringIO(), stderr=StringIO())
    rollback(Phase.LEGACY, reason="enough")
    assert current_plan().phase == Phase.LEGACY
    for one in made:
        found = load_state(one.id)
        assert texts(found) == one.acknowledged, f"seed {seed}"
        assert not found.load_info.stale
        assert read_by_old_code(one) == one.acknowledged, f"seed {seed}"
    assert sum(len(one.acknowledged) for one in made) == WRITES
    sound([one.id for one in made], what=f"seed {seed}")
