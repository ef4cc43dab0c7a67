"""The state machine, for both legacy stores; see README.md for how it was seen to fail."""

from __future__ import annotations

import pytest
from django.db import connection
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.machine.machine import Everything
from tests.machine.oldcode import OldChunks, OldSession
from tests.scale import examples

STEPS = 50


@pytest.mark.long
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("old", [OldChunks(), OldSession()], ids=["chunks", "jsonfield"])
def test_no_acknowledged_write_is_ever_invisible(old: OldChunks | OldSession) -> None:
    machine = type("Machine", (Everything,), {"old": old})
    runs = examples(200 if connection.vendor == "sqlite" else 40)
    run_state_machine_as_test(
        machine, settings=settings(max_examples=runs, stateful_step_count=STEPS)
    )
