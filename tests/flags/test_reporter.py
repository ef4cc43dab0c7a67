"""One thread a process: begun behind every fork, signed off at the end, never in the way."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import DataError, OperationalError, connection, transaction
from django.utils import timezone

from conversations.storage import append_messages, save_state
from flags import metrics, processes, reporter
from flags.models import ReportingProcess
from flags.phases import Phase
from flags.processes import live
from flags.switches import snapshot
from flags.transitions import advance, status
from tests.faults.injection import failing
from tests.flags.test_fence import until_true
from tests.flags.test_metrics import monitoring
from tests.flags.test_switches import set_rows
from tests.support.factories import messages, state
from tests.support.processes import Job, result_of, start

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _fast(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks", "SHADOW_SHARE": 0}
    monkeypatch.setattr(reporter, "BEAT_SECONDS", 0.05)
    set_rows(Phase.DUAL_WRITE)
    monitoring(on=True)
    metrics.forget()
    yield
    reporter.stop()
    metrics.forget()


def reported() -> bool:
    return ReportingProcess.objects.exists()


def test_the_first_operation_begins_it_and_its_end_signs_off() -> None:
    assert not reported()
    save_state("c", state("a"))
    until_true(reported)
    (process,) = live()
    assert (process.pid, process.phase) == (os.getpid(), Phase.DUAL_WRITE)
    assert process.version == processes.our_version()
    reporter.stop()
    until_true(lambda: not reported())
    found = metrics.totals(timezone.now() - timedelta(minutes=2))
    assert found["save", "legacy"].count == 1


def test_it_reports_the_transition_that_it_acts_on() -> None:
    save_state("c", state("a"))
    epoch = status().last.epoch
    until_true(lambda: [process.epoch for process in live()] == [epoch])
    set_rows(Phase.LEGACY)
    snapshot.clear()
    later = status().last.epoch
    assert later > epoch
    until_true(lambda: [(p.epoch, p.phase) for p in live()] == [(later, Phase.LEGACY)])


def test_a_process_that_cannot_read_the_switches_reports_no_new_transition() -> None:
    status()
    processes.report()
    (before,) = live()
    set_rows(Phase.NEW_READS)
    later = status().last.epoch
    with failing(lambda sql: "waffle" in sql):
        processes.report()
    assert live()[0].epoch == before.epoch < later
    processes.report()
    assert live()[0].epoch == later


def test_turned_off_it_ends_and_has_no_connection() -> None:
    save_state("c", state("a"))
    until_true(reported)
    monitoring(on=False)
    until_true(lambda: not reported())
    until_true(lambda: not threads())
    append_messages("c", messages("b"))
    assert not threads()


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "conversations-monitor"]


def test_nothing_of_it_stands_in_the_callers_transaction() -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer: it waits until the caller has committed")
    with transaction.atomic():
        save_state("c", state("a"))
        until_true(lambda: seen_from_outside() == 1)
        transaction.set_rollback(True)
    assert reported()


def seen_from_outside() -> int:
    """Return how many processes another connection sees."""
    found: list[int] = []

    def look() -> None:
        from django.db import connections

        found.append(ReportingProcess.objects.count())
        connections.close_all()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0]


def test_a_database_that_does_not_answer_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    refusing = True

    def refuse() -> None:
        from django.db import OperationalError

        if refusing:
            raise OperationalError("down")

    reporter._every_beat.insert(0, refuse)
    try:
        save_state("c", state("a"))
        until_true(lambda: "monitoring is interrupted: OperationalError" in caplog.text)
        refusing = False
        until_true(reported)
        assert caplog.text.count("monitoring is interrupted") == 1
    finally:
        reporter._every_beat.remove(refuse)


def test_deferred_work_is_done_later_and_kept_if_it_fails() -> None:
    done: list[int] = []
    outcomes = iter([True, False])

    def work() -> None:
        from django.db import OperationalError

        if next(outcomes):
            raise OperationalError("down")
        done.append(1)

    reporter.defer(work)
    until_true(lambda: done == [1])


def test_one_thing_that_fails_keeps_nothing_else_from_being_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reporter, "ensure", lambda: None)
    done: list[str] = []

    def too_long() -> None:
        raise DataError("value too long")

    reporter.defer(too_long)
    reporter.defer(lambda: done.append("deferred"))
    metrics.observe("save", "legacy", 0.01)
    with failing(lambda sql: "rollout_measures" in sql), pytest.raises(OperationalError):
        reporter.beat()
    assert done == ["deferred"]
    assert live()
    assert "cannot be written was dropped: DataError" in caplog.text


def test_waiting_work_is_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reporter, "ensure", lambda: None)
    monkeypatch.setattr(reporter, "MOST_WAITING", 2)
    done: list[int] = []
    for number in range(5):
        reporter.defer(lambda number=number: done.append(number))  # type: ignore[misc]
    reporter.beat()
    assert done == [0, 1]
    assert caplog.text.count("a record was dropped") == 3


def fork_and_report(beats: str) -> list[int]:
    """Work, fork, and work in the child. Returns: the pids that reported."""
    reporter.BEAT_SECONDS = 0.05
    save_state("parent", state("a"))
    until_true(lambda: any(p.pid == os.getpid() for p in live()))
    from django.db import connections

    # As every server that forks does.
    connections.close_all()
    child = os.fork()
    if child == 0:
        snapshot.clear()
        save_state("child", state("a"))
        until_true(lambda: any(p.pid == os.getpid() for p in live()))
        Path(beats).touch()
        # A worker that is killed signs nothing off.
        os._exit(0)
    os.waitpid(child, 0)
    assert Path(beats).exists()
    return [os.getpid(), child]


def test_a_fork_that_waited_in_vain_keeps_the_lock_of_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporter, "BEAT_SECONDS", 0.01)
    reporter._before_fork()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(reporter._before_fork).result(timeout=60)
        threads.submit(reporter._after_fork).result(timeout=60)
    reporter._after_fork()
    assert not reporter._connected.locked()


def test_a_child_that_was_forked_reports_for_itself(tmp_path: Path) -> None:
    job = Job("tests.flags.test_reporter:fork_and_report", {"beats": str(tmp_path / "beat")})
    parent, child = result_of(start(job))
    left = [process.pid for process in live()]
    # The parent ended cleanly and signed off; the child did not, and expires.
    assert parent not in left
    assert left == [child]


def test_a_process_without_recent_reports_is_not_alive_and_is_removed() -> None:
    processes.report()
    (process,) = live()
    assert process.age < timedelta(seconds=5)
    ReportingProcess.objects.update(seen_at=timezone.now() - processes.EXPIRY * 2)
    assert live() == []
    processes.expire()
    assert reported()
    ReportingProcess.objects.update(seen_at=timezone.now() - processes.EXPIRY * 5)
    processes.expire()
    assert not reported()


def test_a_step_is_seen_by_live_processes(settings: Any) -> None:
    set_rows(Phase.LEGACY)
    snapshot.clear()
    save_state("c", state("a"))
    until_true(lambda: bool(live()))
    made = advance()
    until_true(lambda: [p.epoch for p in live()] == [made.epoch])
