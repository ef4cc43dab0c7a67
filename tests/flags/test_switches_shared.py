"""Threads that want the switches at the same moment: one reads, and none waits for ever."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from flags import switches
from flags.conf import SNAPSHOT_SECONDS
from flags.phases import Phase, Switch, switches_for
from flags.switches import Settings, current_plan, snapshot
from tests.flags.test_switches import Rows, set_rows

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

    monkeypatch.setattr(switches, "try_read_settings", slow)
    monkeypatch.setattr(switches, "read_retirement", lambda: False)
    with ThreadPoolExecutor(8) as threads:
        found = [threads.submit(ask) for _ in range(8)]
    assert {each.result() for each in found} == {Phase.NEW_READS}
    assert len(reads) == 1


def test_a_waiting_read_does_not_block_a_thread_it_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The read waits for a connection of a pool, and this thread holds the last one."""
    set_rows(Phase.DUAL_WRITE)
    snapshot.forget()
    assert current_plan().phase == Phase.DUAL_WRITE
    snapshot.clear()
    reading, given_back = threading.Event(), threading.Event()

    def waiting() -> Any:
        reading.set()
        assert given_back.wait(10)
        return Settings(switches_for(Phase.NEW_READS))

    monkeypatch.setattr(switches, "try_read_settings", waiting)
    monkeypatch.setattr(switches, "read_retirement", lambda: False)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(current_plan)
        assert reading.wait(10)
        assert current_plan().phase == Phase.DUAL_WRITE
        given_back.set()
        assert other.result().phase == Phase.NEW_READS
    assert current_plan().phase == Phase.NEW_READS


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_transaction_with_an_old_view_gives_it_to_no_other_thread(isolation: str) -> None:
    """A report that runs for minutes sees the switches as they were when it began."""
    if connection.vendor == "sqlite":
        pytest.skip("SQLite's transactions are asked to begin IMMEDIATE by a check")
    set_rows(Phase.DUAL_WRITE)
    with ThreadPoolExecutor(1) as threads, transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
        snapshot.forget()
        assert current_plan().phase == Phase.DUAL_WRITE
        time.sleep(SNAPSHOT_SECONDS)
        assert threads.submit(flipped, Phase.NEW_READS).result() == Phase.NEW_READS
        # Not even when all is read anew: others know better by now, and so does this one.
        for _ in range(2):
            time.sleep(SNAPSHOT_SECONDS)
            assert current_plan().phase == Phase.NEW_READS
        snapshot.clear()
        assert current_plan().phase == Phase.DUAL_WRITE
        assert threads.submit(seen).result() == Phase.NEW_READS


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("known", [True, False])
def test_a_transaction_with_an_old_view_asks_no_more_often_than_others(known: bool) -> None:
    """A report that runs for minutes and loads a thousand conversations."""
    if connection.vendor == "sqlite":
        pytest.skip("SQLite's transactions are asked to begin IMMEDIATE by a check")
    set_rows(Phase.DUAL_WRITE)
    with ThreadPoolExecutor(1) as threads, transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT 1")
        time.sleep(SNAPSHOT_SECONDS)
        if known:
            # By then, what others have read is too old as well.
            threads.submit(flipped, Phase.NEW_READS).result()
            time.sleep(SNAPSHOT_SECONDS)
        assert asked(times=20) == 1
        # It keeps no other process from asking.
        assert threads.submit(flipped, Phase.NEW_PRIMARY).result() == Phase.NEW_PRIMARY
        assert asked(times=20) == 0
        snapshot.clear()
        assert asked(times=20) == 1
    snapshot.clear()
    assert current_plan().phase == Phase.NEW_PRIMARY


@pytest.mark.django_db(transaction=True)
def test_a_clock_that_was_put_back_gives_no_time_in_the_future(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite's transactions are asked to begin IMMEDIATE by a check")
    # The server's clock an hour before the transaction began.
    put_back = switches._AGE.replace("clock_timestamp()", "(clock_timestamp() - interval '1 h')")
    assert put_back != switches._AGE
    set_rows(Phase.DUAL_WRITE)
    with monkeypatch.context() as patched, transaction.atomic():
        patched.setattr(switches, "_AGE", put_back)
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        snapshot.forget()
        assert current_plan().phase == Phase.DUAL_WRITE
    assert Rows._base_manager.filter(name=Switch.USE_NEW_LOAD).update(active=True) == 1
    time.sleep(SNAPSHOT_SECONDS)
    assert current_plan().phase == Phase.NEW_READS


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("isolation", ["READ COMMITTED", "READ UNCOMMITTED"])
def test_a_long_transaction_at_read_committed_sees_a_flip_like_any_other(
    isolation: str,
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    set_rows(Phase.DUAL_WRITE)
    with ThreadPoolExecutor(1) as threads, transaction.atomic():
        if isolation != "READ COMMITTED":
            with connection.cursor() as cursor:
                cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
        snapshot.forget()
        assert current_plan().phase == Phase.DUAL_WRITE
        threads.submit(flipped, Phase.NEW_READS).result()
        time.sleep(SNAPSHOT_SECONDS)
        with CaptureQueriesContext(connection) as queries:
            for _ in range(3):
                assert current_plan().phase == Phase.NEW_READS
        assert len([each for each in queries if "waffle_switch" in each["sql"]]) == 1


def asked(*, times: int) -> int:
    """Return how often the switches are read by so many operations."""
    with CaptureQueriesContext(connection) as queries:
        for _ in range(times):
            current_plan()
    return len([each for each in queries if "waffle_switch" in each["sql"]])


def flipped(phase: Phase) -> Phase:
    """Set the switches from this thread, and close its connection. Returns: what it then sees."""
    try:
        set_rows(phase)
        return current_plan().phase
    finally:
        connection.close()


def seen() -> Phase:
    """Return what a thread of its own sees, and close its connection."""
    try:
        return current_plan().phase
    finally:
        connection.close()
