"""A flip waits for writes in flight, and writes that begin then wait for the flip."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import Error, connection, connections, transaction

from conversations.storage import append_messages, load_state, save_state
from flags import fence, transitions
from flags.exceptions import FenceBusy
from flags.phases import PLANS, Phase
from flags.switches import current_plan, snapshot
from tests.flags.test_switches import set_rows
from tests.support.factories import messages, state, texts
from tests.support.processes import Job, result_of, start
from tests.support.rollout import EASED

pytestmark = pytest.mark.django_db(transaction=True)


def append_and_wait(conversation_id: str, began: str, until: str) -> str:
    """Append in a transaction that stays open until a file exists. Runs in another process."""
    with transaction.atomic():
        append_messages(conversation_id, messages("in flight"), create=True)
        Path(began).touch()
        until_true(Path(until).exists)
    return "committed"


def until_true(condition: Callable[[], bool]) -> None:
    """Wait for a condition. Raises: TimeoutError."""
    ends = time.monotonic() + 60
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError
        threading.Event().wait(0.01)


class Writer:
    """Another process whose write is in flight until it is told to commit."""

    def __init__(self, folder: Path) -> None:
        self.began, self.until = folder / "began", folder / "until"
        arguments = {
            "conversation_id": "c",
            "began": str(self.began),
            "until": str(self.until),
        }
        self.process = start(Job("tests.flags.test_fence:append_and_wait", arguments))

    def __enter__(self) -> Writer:
        until_true(self.began.exists)
        return self

    def commit(self) -> None:
        self.until.touch()

    def __exit__(self, *error: Any) -> None:
        self.commit()
        assert result_of(self.process) == "committed"


@pytest.fixture(autouse=True)
def _begun(settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks", **EASED}
    set_rows(Phase.NEW_READS)
    snapshot.forget()
    save_state("c", state("a"))


def test_a_flip_waits_for_a_write_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write takes the last word of what the gates count inside the fence."""
    seen: list[str] = []
    again = transitions.refuse_unless_holding

    def noting(results: Any) -> None:
        if connection.in_atomic_block:
            seen.extend(texts(load_state("c")))
        again(results)

    monkeypatch.setattr(transitions, "refuse_unless_holding", noting)
    transitions.status()
    with Writer(tmp_path) as writer:
        timer = threading.Timer(0.5, writer.commit)
        timer.start()
        transitions.advance()
        timer.join()
    assert seen == ["a", "in flight"]


def test_writes_that_never_end_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite's busy timeout says when a wait was too long")
    with Writer(tmp_path):
        started = time.monotonic()
        with transaction.atomic(), pytest.raises(FenceBusy):
            fence.close(within=timedelta(milliseconds=300))
        assert time.monotonic() - started < 5
    assert current_plan() == PLANS[Phase.NEW_READS]


def waiting(mode: str = "ShareLock") -> int:
    """Return how many sessions wait for an advisory lock: with ShareLock, for the fence."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            " AND mode = %s"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            [mode],
        )
        return int(cursor.fetchone()[0])


def test_a_flip_that_two_notice_at_once_is_recorded_once() -> None:
    """Who looks second waits for the record of who looked first, instead of writing another."""
    transitions.status()
    set_rows(Phase.NEW_PRIMARY)
    before = transitions.history()
    began, ended = threading.Event(), threading.Event()

    def look() -> int:
        began.set()
        try:
            return transitions.status().last.epoch
        finally:
            ended.set()
            connections.close_all()

    with ThreadPoolExecutor(1) as threads:
        with transaction.atomic():
            first = transitions.status().last.epoch
            second = threads.submit(look)
            assert began.wait(30)
            if connection.vendor == "postgresql":
                until_true(lambda: ended.is_set() or waiting("ExclusiveLock") == 1)
        assert second.result(60) == first
    (made,) = transitions.history()[: -len(before)]
    assert (made.epoch, made.kind, made.target) == (first, "noticed", Phase.NEW_PRIMARY)


def test_a_write_waits_for_a_flip(tmp_path: Path) -> None:
    """Also one of a conversation that has no row yet."""
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer at a time: the fence is its write lock")
    began, until = tmp_path / "began", tmp_path / "until"
    until.touch()
    jobs = [
        Job(
            "tests.flags.test_fence:append_and_wait",
            {"conversation_id": name, "began": str(began) + name, "until": str(until)},
        )
        for name in ("c", "d")
    ]
    with transaction.atomic():
        fence.close()
        processes = [start(job) for job in jobs]
        until_true(lambda: waiting() == 2)
        assert [Path(str(began) + name).exists() for name in ("c", "d")] == [False, False]
    assert [result_of(process) for process in processes] == ["committed", "committed"]
    assert texts(load_state("c")) == ["a", "in flight"]
    assert texts(load_state("d")) == ["in flight"]


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has no server to end it")
@pytest.mark.parametrize("own", ["0", "100ms"])
def test_an_operator_who_falls_asleep_in_the_fence_stops_no_writer_for_long(
    own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence, "ASLEEP", timedelta(milliseconds=300))
    held, written = threading.Event(), threading.Event()

    def sleep() -> None:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute(f"SET LOCAL idle_in_transaction_session_timeout = '{own}'")
            fence.close()
            held.set()
            assert written.wait(30)
            set_rows(Phase.NEW_READS)

    def asleep() -> str:
        try:
            sleep()
        except Error as error:
            return type(error).__name__
        finally:
            connections.close_all()
        return "nothing happened"

    with ThreadPoolExecutor(1) as threads:
        sleeper = threads.submit(asleep)
        assert held.wait(30)
        append_messages("c", messages("b"))
        written.set()
        assert sleeper.result(timeout=60).endswith("Error")
    assert texts(load_state("c")) == ["a", "b"]


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has one writer at a time")
def test_a_flip_waits_longer_each_time_for_writers_who_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[timedelta] = []

    def never(alias: str, timeout: timedelta) -> bool:
        waited.append(timeout)
        return len(waited) == 8

    monkeypatch.setattr(fence, "_tried", never)
    monkeypatch.setattr(fence, "PAUSE", timedelta(0))
    fence.close()
    assert waited[:3] == [fence.TRY, fence.TRY * 3 / 2, fence.TRY * 9 / 4]
    assert waited[-1] == fence.LONGEST_TRY
