"""Health: what is said of the stores, from what was measured and found, and how soon."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from conversations.checks.settings import check_settings
from conversations.models import ConversationMismatch, ConversationState
from conversations.rollout import health as conversations_health
from conversations.storage import load_state, save_state
from flags import metrics, processes, reporter
from flags.exceptions import TimeIsUp
from flags.health import Level, Reason, report
from flags.histogram import Measure
from flags.models import MeasuredMinute, ReportingProcess, Transition
from flags.phases import Phase, Switch
from flags.switches import forced_phase, snapshot
from flags.timeouts import LOCKED, Deadline
from tests.faults.injection import failing, locked, touches_legacy, touches_tables
from tests.flags.test_switches import touches_switches
from tests.support.blobs.models import TextSession
from tests.support.factories import state
from tests.support.health import committed, conflict, enter, measured, monitor, said, switch

pytestmark = pytest.mark.django_db


TABLES = ("conversation_states", "conversation_messages", "memory_context_items")


@pytest.fixture(autouse=True)
def _monitored(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor(settings, monkeypatch)


# Measures


def test_stores_that_answer_and_do_not_fail_are_healthy() -> None:
    cells = Measure()
    for _ in range(600):
        cells.observe(0.003)
    measured(count=600, seconds=1.8, cells=json.dumps(cells.cells))
    found = report()
    assert (found.status, found.reasons, found.measured) == (Level.HEALTHY, (), True)
    assert found.can_serve == {"tables": True, "legacy": True}
    (operation,) = found.operations
    assert (operation.operation, operation.store, operation.count) == ("load", "legacy", 600)
    seconds = (found.at - found.since).total_seconds()
    assert timedelta(minutes=5) <= found.at - found.since < timedelta(minutes=6)
    assert operation.rate == pytest.approx(600 / seconds)
    assert operation.p50 is not None
    assert 0.002 < operation.p50 <= 0.004


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"count": 19, "errors": 19, "fallbacks": 19, "stale": 19}, []),
        ({"count": 20, "errors": 1}, [("errors", "critical")]),
        ({"count": 1000, "errors": 50}, [("errors", "critical")]),
        ({"count": 1000, "errors": 49}, [("errors", "warning")]),
        ({"count": 1000, "errors": 10}, [("errors", "warning")]),
        ({"count": 1000, "errors": 9, "fallbacks": 9, "stale": 9}, []),
        ({"count": 1000, "fallbacks": 10}, [("fallbacks", "warning")]),
        ({"count": 1000, "fallbacks": 900}, [("fallbacks", "warning")]),
        ({"count": 1000, "stale": 10}, [("stale", "warning")]),
    ],
)
def test_shares_are_judged_from_a_minimum_sample_on(
    numbers: dict[str, int], expected: list[tuple[str, str]]
) -> None:
    measured(**numbers)
    measured(operation="save", count=1000)
    found = report()
    assert said(found) == expected
    assert found.status == (expected[0][1] if expected else "healthy")
    if expected:
        slug = expected[0][0]
        assert found.reasons[0].about == "load legacy"
        assert found.reasons[0].number == numbers[slug] / numbers["count"]


def test_measures_older_than_the_window_do_not_count() -> None:
    old = timezone.now() - timedelta(minutes=7)
    measured(count=100, errors=100)
    MeasuredMinute.objects.update(began_at=old.replace(second=0, microsecond=0))
    assert report().reasons == ()
    assert said(report(timedelta(minutes=10))) == [("errors", "critical")]


def test_limits_are_settings(settings: Any) -> None:
    measured(count=10, errors=1)
    assert report().reasons == ()
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks", "HEALTH": {"MINIMUM": 10, "CRITICAL": 0.2}}
    assert said(report()) == [("errors", "warning")]


@pytest.mark.parametrize(
    "value", [{"MINIMUM": 0}, {"WARNING": 0}, {"WARNING": 0.1, "CRITICAL": 0.05}, {"X": 1}, 5]
)
def test_limits_that_make_no_sense_are_found_by_a_check(settings: Any, value: Any) -> None:
    settings.CONVERSATIONS = {"HEALTH": value}
    assert [message.id for message in check_settings()] == ["conversations.E007"]
    settings.CONVERSATIONS = {"HEALTH": {"MINIMUM": 5, "WARNING": 0.02}, "READ_BREAKER": True}
    assert check_settings() == []


def test_unmeasured_is_unknown_and_not_healthy() -> None:
    measured(count=100, errors=100)
    switch(Switch.PERFORMANCE_MONITORING, on=False)
    found = report()
    assert (found.status, said(found)) == (Level.UNKNOWN, [("not_measured", "unknown")])
    assert (found.measured, found.operations) == (False, ())
    conflict("merged")
    assert report().status == Level.CRITICAL


# Findings


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize(
    ("kind", "slug"), [("merged", "conflicts"), ("quarantined", "quarantined")]
)
def test_conflicts_are_critical_once_both_stores_are_written(
    phase: Phase, kind: str, slug: str
) -> None:
    enter(phase)
    conflict(kind)
    level = "warning" if phase == Phase.LEGACY else "critical"
    assert said(report()) == [(slug, level)]


def test_two_edits_of_one_message_and_old_conflicts_are_no_trouble() -> None:
    conflict("overwritten")
    conflict("merged", minutes=6)
    assert report().reasons == ()


@pytest.mark.parametrize("phase", Phase)
def test_mismatches_are_critical_once_the_tables_are_read(phase: Phase) -> None:
    enter(phase)
    for minutes in (1, 6):
        ConversationMismatch.rows.create(
            conversation_id="c",
            seen_at=timezone.now() - timedelta(minutes=minutes),
            phase=int(phase),
            revision=1,
            places="[]",
        )
    found = report()
    level = "critical" if phase >= Phase.NEW_READS else "warning"
    assert said(found) == [("mismatches", level)]
    assert found.reasons[0].number == 1


@pytest.mark.parametrize("phase", Phase)
def test_falling_behind_is_critical_while_both_stores_are_written(
    phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations_health, "SNAPSHOT_SECONDS", 0)
    enter(phase)
    with forced_phase(Phase.DUAL_WRITE):
        save_state("behind", state("a"))
    with forced_phase(Phase.NEW_ONLY):
        save_state("behind", load_state("behind"))
        save_state("behind", state("a", "b"))
    dual = Phase.DUAL_WRITE <= phase <= Phase.NEW_PRIMARY
    assert said(report()) == ([("behind", "critical")] if dual else [])


def test_a_lag_from_before_the_phase_is_no_trouble() -> None:
    enter(Phase.NEW_ONLY)
    save_state("behind", state("a"))
    enter(Phase.NEW_PRIMARY)
    assert ConversationState.rows.get().legacy_revision < ConversationState.rows.get().revision
    assert report().reasons == ()


def test_a_count_stops_at_its_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations_health, "MOST", 2)
    for _ in range(3):
        conflict("merged")
    assert report().reasons[0].number == 2


@pytest.mark.parametrize(("late", "slugs"), [(True, ["old_epoch"]), (False, [])])
def test_a_live_process_on_an_old_epoch_is_critical_after_a_while(
    monkeypatch: pytest.MonkeyPatch, late: bool, slugs: list[str]
) -> None:
    processes.report()
    processes._rows().update(host="web1", pid=7)
    assert report().reasons == ()
    enter(Phase.NEW_READS)
    if late:
        monkeypatch.setattr(processes, "GRACE", timedelta(seconds=-1))
    found = report()
    assert [reason.slug for reason in found.reasons] == slugs
    if late:
        message = "1 live processes act on an old transition: web1:7."
        assert found.reasons[0] == Reason("old_epoch", Level.CRITICAL, message, 1.0)
        ReportingProcess.objects.update(seen_at=timezone.now() - timedelta(minutes=1))
        assert report().reasons == ()


def test_an_emergency_and_mixed_switches_are_said() -> None:
    switch(Switch.EMERGENCY_ROLLBACK, on=True)
    assert said(report()) == [("emergency", "warning")]
    switch(Switch.EMERGENCY_ROLLBACK, on=False)
    switch(Switch.USE_NEW_STORAGE, on=True)
    switch(Switch.USE_NEW_SAVE, on=False)
    assert said(report()) == [("mixed_switches", "warning")]


def test_a_team_without_legacy_has_one_store(settings: Any) -> None:
    settings.CONVERSATIONS = {}
    found = report()
    assert (found.status, found.can_serve) == (Level.HEALTHY, {"tables": True})


def test_a_legacy_that_was_given_up_is_not_asked_any_more() -> None:
    enter(Phase.NEW_ONLY)
    conflict("merged")
    assert said(report()) == [("conflicts", "critical")]
    last = Transition.objects.order_by("-pk").values("switches", "from_phase", "to_phase")[0]
    Transition(at=timezone.now(), kind="retired", **last).save()
    with failing(touches_legacy) as failed:
        found = report()
    assert (found.reasons, found.can_serve) == ((), {"tables": True})
    assert failed == []


@pytest.mark.parametrize("down", [False, True])
def test_a_store_of_the_hosts_own_is_asked(settings: Any, down: bool) -> None:
    settings.CONVERSATIONS = {
        "LEGACY": {
            "model": "blobs.TextSession",
            "conversation_id": "session_key",
            "owner": "owner_id",
            "state": "payload",
        }
    }
    with failing(lambda sql: down and TextSession._meta.db_table in sql):
        assert report().can_serve == {"tables": True, "legacy": not down}


# Where it cannot look


@pytest.mark.parametrize("phase", Phase)
def test_a_store_that_is_needed_and_down_is_critical(phase: Phase) -> None:
    enter(phase)
    with failing(touches_legacy):
        found = report()
    reads_legacy = phase <= Phase.DUAL_WRITE
    assert found.can_serve == {"tables": True, "legacy": False}
    assert said(found)[0] == ("store_down", "critical" if reads_legacy else "warning")
    with failing(touches_tables):
        found = report()
    assert found.can_serve == {"tables": False, "legacy": True}
    assert said(found)[0] == ("store_down", "warning" if reads_legacy else "critical")


@contextmanager
def renamed_away(*tables: str) -> Iterator[None]:
    with connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"ALTER TABLE {table} RENAME TO {table}_away")
        try:
            yield
        finally:
            for table in tables:
                cursor.execute(f"ALTER TABLE {table}_away RENAME TO {table}")


OTHERS = ("conversation_conflicts", "conversation_mismatches", "rollout_measures")


@committed
def test_dropped_tables_are_said_and_break_nothing() -> None:
    with renamed_away("conversation_messages", *OTHERS, "rollout_processes"):
        found = report()
    assert found.can_serve == {"tables": False, "legacy": True}
    unread = [reason.about for reason in found.reasons if reason.slug == "unread"]
    assert unread == ["conflicts", "mismatches", "measures", "processes"]
    assert found.status == Level.WARNING
    assert report().reasons == ()


def test_unreadable_findings_leave_health_unknown() -> None:
    with failing(lambda sql: "conversation_conflicts" in sql):
        found = report()
    assert found.status == Level.UNKNOWN
    assert found.reasons[0].message == "conflicts could not be looked at."


def test_unread_switches_leave_the_last_ones_known_in_force() -> None:
    enter(Phase.NEW_READS)
    snapshot.refresh()
    with failing(lambda sql: touches_switches(sql) or touches_tables(sql)):
        found = report()
    assert said(found)[0] == ("store_down", "critical")
    assert found.measured


@committed
@pytest.mark.parametrize("inside", [False, True])
def test_locked_tables_are_waited_for_a_second_at_most(inside: bool) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("readers of SQLite wait for nobody")
    tables = (*TABLES, *OTHERS, "memory_chunks", "memory_metadata", "rollout_processes")
    with locked(*tables), transaction.atomic() if inside else connection.cursor():
        started = time.monotonic()
        found = report()
        assert time.monotonic() - started < 1.5
    assert found.can_serve == {"tables": False, "legacy": False}
    assert found.status == Level.CRITICAL


@committed
def test_a_callers_transaction_is_left_as_it_was() -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL lock_timeout = '7s'")
        save_state("c", state("a"))
        with failing(lambda sql: touches_tables(sql) or "rollout" in sql):
            report()
        report()
        if connection.vendor == "postgresql":
            cursor.execute("SHOW lock_timeout")
            assert cursor.fetchone() == ("7s",)
            cursor.execute("SHOW statement_timeout")
            assert cursor.fetchone() == ("0",)
    assert load_state("c").conversation_history == state("a").conversation_history


@committed
@pytest.mark.parametrize(
    ("span", "most"), [(timedelta(minutes=1), LOCKED), (LOCKED / 4, LOCKED / 4)]
)
def test_a_lock_is_waited_for_a_moment_only_and_never_past_the_end(
    span: timedelta, most: timedelta
) -> None:
    """However much time is left: one locked table must leave the others theirs."""
    setting = "SHOW lock_timeout" if connection.vendor == "postgresql" else "PRAGMA busy_timeout"

    def bound() -> timedelta:
        with connection.cursor() as cursor:
            cursor.execute(setting)
            (found,) = cursor.fetchone()
        return timedelta(milliseconds=int(str(found).removesuffix("ms")))

    found = Deadline(span).read(bound)
    assert timedelta(0) < found <= most
    assert span < LOCKED or found == LOCKED


def test_nothing_is_asked_once_the_time_is_up() -> None:
    """A timeout of nothing would be none at all."""
    asked: list[int] = []
    with pytest.raises(TimeIsUp):
        Deadline(timedelta(0)).read(lambda: asked.append(1))
    assert asked == []


@committed
def test_the_timeouts_of_a_connection_is_as_before() -> None:
    report()
    setting = {"postgresql": "SHOW statement_timeout", "sqlite": "PRAGMA busy_timeout"}
    with connection.cursor() as cursor:
        cursor.execute(setting[connection.vendor])
        assert cursor.fetchone() in [("0",), (20000,)]


@committed
def test_a_connection_that_was_lost_while_idle_is_no_trouble() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no server")
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    other = connections["default"].copy()
    with other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
    other.close()
    assert report().can_serve == {"tables": True, "legacy": True}


@committed
def test_a_server_that_says_nothing_is_waited_for_two_seconds_at_most() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no server")
    before = connection.settings_dict
    connection.close()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = {"HOST": "127.0.0.1", "PORT": str(silent.getsockname()[1])}
        connection.settings_dict = {**before, **address}
        started = time.monotonic()
        try:
            found = report()
        finally:
            connection.settings_dict = before
        assert time.monotonic() - started < 4
    assert found.can_serve == {"tables": False, "legacy": False}


# What measuring costs and keeps


@committed
def test_measures_survive_the_callers_rollback() -> None:
    snapshot.refresh()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        save_state("c", state("a"))
        load_state("c")
        raise ZeroDivisionError
    reporter.beat()
    counts = {(each.operation, each.store): each.count for each in report().operations}
    assert counts == {("save", "legacy"): 1, ("load", "legacy"): 1, ("leg", "legacy"): 1}
    assert not ConversationState.rows.exists()


def test_minutes_are_made_in_one_order() -> None:
    """Else two processes that begin a minute together could wait for each other's rows."""
    snapshot.refresh()
    for operation in ("save", "load", "append"):
        for store in ("tables", "legacy"):
            metrics.observe(operation, store, 0.001)
    metrics.flush()
    made = list(MeasuredMinute.objects.order_by("pk").values_list("operation", "store"))
    assert made == sorted(made)
    assert len(made) == 6


def test_unmonitored_operations_ask_nothing_and_start_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def started() -> None:
        raise AssertionError("a monitor was started")

    monkeypatch.setattr(reporter, "ensure", started)
    switch(Switch.PERFORMANCE_MONITORING, on=False)
    snapshot.refresh()
    with CaptureQueriesContext(connection) as queries:
        save_state("c", state("a"))
        load_state("c")
    assert [each["sql"] for each in queries if "rollout_" in each["sql"]] == []
    assert metrics._measured == {}
