"""The state machine, for both legacy stores; see README.md for how it was seen to fail."""

from __future__ import annotations

import pytest
from django.db import connection
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.machine.machine import Rollout
from tests.machine.oldcode import OldChunks, OldSession
from tests.scale import examples

STEPS = 30


@pytest.mark.long
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("old", [OldChunks(), OldSession()], ids=["chunks", "jsonfield"])
def test_no_acknowledged_write_is_ever_invisible(old: OldChunks | OldSession) -> None:
    machine = type("Machine", (Rollout,), {"old": old})
    runs = examples(300 if connection.vendor == "sqlite" else 60)
    run_state_machine_as_test(
        machine, settings=settings(max_examples=runs, stateful_step_count=STEPS)
    )
