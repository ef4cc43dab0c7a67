"""What loads of a team without a legacy store see of the switches, though no switch moves them."""

from __future__ import annotations

import time
from typing import Any

import pytest
from django.db import connection

from conversations.exceptions import StorageUnavailable
from conversations.storage import load_state, save_state
from flags import metrics, reporter
from flags.switches import snapshot
from tests.faults.injection import locked
from tests.flags.test_emergency import set_emergency
from tests.flags.test_metrics import monitoring
from tests.support.factories import state

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _fresh(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.CONVERSATIONS = {"REQUIRE_OWNER": False}
    monkeypatch.setattr(reporter, "ensure", lambda: None)


def test_a_process_that_only_loads_learns_that_it_is_monitored() -> None:
    save_state("c", state("a"))
    monitoring(on=True)
    snapshot.forget()
    load_state("c")
    assert metrics.enabled()


def test_in_an_emergency_a_load_waits_for_no_lock_longer_than_a_moment() -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite locks nothing but the whole database")
    save_state("c", state("a"))
    set_emergency(on=True)
    with locked("conversation_messages"):
        started = time.monotonic()
        with pytest.raises(StorageUnavailable):
            load_state("c")
        assert time.monotonic() - started < 2
