"""Threads that want the switches at the same moment: one reads, and none waits for ever."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flags import switches
from flags.phases import Phase, switches_for
from flags.switches import Settings, current_plan, snapshot
from tests.test_switches import set_rows

pytestmark = pytest.mark.django_db


def test_threads_that_wait_for_the_switches_share_one_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each would hold up all others: of 64 writers, the last waited for as many reads."""
    set_rows(Phase.DUAL_WRITE)
    snapshot.forget()
    all_waiting = threading.Barrier(8)
    reads: list[int] = []

    def slow() -> Any:
        reads.append(1)
        time.sleep(0.05)
        return Settings(switches_for(Phase.NEW_READS))

    def ask() -> Phase:
        all_waiting.wait(10)
        return current_plan().phase

    monkeypatch.setattr(switches, "stored_settings", slow)
    monkeypatch.setattr(switches, "stored_retirement", lambda: False)
    with ThreadPoolExecutor(8) as threads:
        found = [threads.submit(ask) for _ in range(8)]
    assert {each.result() for each in found} == {Phase.NEW_READS}
    assert len(reads) == 1


def test_a_read_that_waits_holds_nobody_up_who_may_be_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It waits for a connection of a pool, whose last one is held by whoever asks here."""
    set_rows(Phase.DUAL_WRITE)
    snapshot.forget()
    assert current_plan().phase == Phase.DUAL_WRITE
    snapshot.clear()
    reading, given_back = threading.Event(), threading.Event()

    def waiting() -> Any:
        reading.set()
        assert given_back.wait(10)
        return Settings(switches_for(Phase.NEW_READS))

    monkeypatch.setattr(switches, "stored_settings", waiting)
    monkeypatch.setattr(switches, "stored_retirement", lambda: False)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(current_plan)
        assert reading.wait(10)
        assert current_plan().phase == Phase.DUAL_WRITE
        given_back.set()
        assert other.result().phase == Phase.NEW_READS
    assert current_plan().phase == Phase.NEW_READS
