"""The state machines, for each legacy store; see README.md for how they were seen to fail."""

from __future__ import annotations

import pytest
from django.db import connection
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.machine.machine import Everything, Rollout, TwoUsers
from tests.machine.oldcode import OldChunks, OldEntries, OldSession
from tests.support.scale import examples

pytestmark = [
    pytest.mark.long,
    pytest.mark.django_db(transaction=True),
    pytest.mark.parametrize(
        "old", [OldChunks(), OldSession(), OldEntries()], ids=["chunks", "jsonfield", "appended"]
    ),
]


def play(
    machine: type[RuleBasedStateMachine],
    old: OldChunks | OldSession,
    *,
    steps: int,
    sqlite: int,
    postgresql: int,
) -> None:
    """Play a machine before one legacy store, so many times in a full run."""
    runs = examples(sqlite if connection.vendor == "sqlite" else postgresql)
    run_state_machine_as_test(
        type("Machine", (machine,), {"old": old}),
        settings=settings(max_examples=runs, stateful_step_count=steps),
    )


def test_no_acknowledged_write_is_ever_invisible(old: OldChunks | OldSession) -> None:
    play(Rollout, old, steps=30, sqlite=150, postgresql=30)


def test_nor_while_operators_move_the_rollout_and_processes_die(
    old: OldChunks | OldSession,
) -> None:
    play(Everything, old, steps=50, sqlite=100, postgresql=30)


def test_a_stranger_neither_sees_nor_hides_what_belongs_to_a_user(
    old: OldChunks | OldSession,
) -> None:
    play(TwoUsers, old, steps=50, sqlite=60, postgresql=15)
