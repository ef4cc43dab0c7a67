"""Operations are counted and timed for all processes, also those of rolled-back transactions."""

from __future__ import annotations

import json
import random
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from conversations.exceptions import ConversationNotFound, StorageUnavailable
from conversations.storage import (
    append_messages,
    list_conversations,
    load_state,
    replace_message,
    save_state,
    update_state_partial,
)
from flags import metrics, reporter
from flags.histogram import BOUNDS, Measure
from flags.models import MeasuredMinute
from flags.phases import Phase
from flags.switches import forced_phase, snapshot
from tests.faults.injection import failing, touches_legacy, touches_messages
from tests.flags.test_fence import until_true
from tests.flags.test_switches import Rows, set_rows
from tests.support.factories import message, messages, state
from tests.support.processes import Job, together

pytestmark = pytest.mark.django_db(transaction=True)


def monitoring(*, on: bool) -> None:
    name = "performance_monitoring"
    Rows._base_manager.update_or_create(name=name, defaults={"active": on})
    Rows._base_manager.filter(name=name).update(active=on)
    snapshot.refresh()


@pytest.fixture(autouse=True)
def _monitored(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Measure, and let the tests say when it is written."""
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks", "SHADOW_SHARE": 0}
    monkeypatch.setattr(reporter, "ensure", lambda: None)
    set_rows(Phase.DUAL_WRITE)
    monitoring(on=True)
    metrics.forget()
    yield
    metrics.forget()


def touches_rows(sql: str) -> bool:
    return "conversation_states" in sql


def counted() -> dict[tuple[str, str], Measure]:
    metrics.flush()
    return dict(metrics.totals(timezone.now() - timedelta(minutes=2)))


def counts() -> dict[tuple[str, str], int]:
    return {key: measure.count for key, measure in counted().items()}


def test_every_operation_is_counted_for_the_store_that_decides() -> None:
    save_state("c", state("a"))
    load_state("c")
    append_messages("c", messages("b"), keys=["k"])
    update_state_partial("c", {"step_count": 2})
    with forced_phase(Phase.NEW_READS):
        load_state("c")
        replace_message("c", "k", message("x"))
    list_conversations(None)
    found = counts()
    assert found.pop(("leg", "legacy")) == 4
    assert found == {
        ("save", "legacy"): 1,
        ("load", "legacy"): 1,
        ("append", "legacy"): 2,
        ("load", "tables"): 1,
        ("edit", "tables"): 1,
        ("list", "tables"): 1,
    }
    assert all(measure.p50 for measure in counted().values())


def test_a_mistake_of_the_caller_counts_as_no_error() -> None:
    with pytest.raises(ConversationNotFound):
        append_messages("missing", messages("b"))
    assert counts() == {}


def test_failing_stores_are_errors_and_fallbacks() -> None:
    with forced_phase(Phase.NEW_READS):
        save_state("c", state("a"))
        with failing(touches_messages):
            append_messages("c", messages("b"))
        with failing(touches_messages):
            load_state("c")
        with failing(touches_rows), pytest.raises(StorageUnavailable):
            load_state("c")
    found = counted()
    assert (found["append", "tables"].count, found["append", "tables"].fallbacks) == (1, 1)
    assert found["leg", "tables"].errors == 1
    assert found["load", "tables"].errors == 1


def test_a_leg_that_fails_is_an_error_of_its_store() -> None:
    with forced_phase(Phase.NEW_READS):
        save_state("d", state("a"))
        with failing(touches_legacy):
            append_messages("d", messages("b"))
    found = counted()
    assert (found["leg", "legacy"].count, found["leg", "legacy"].errors) == (2, 1)
    assert found["append", "tables"].errors == 0


def test_a_write_that_fails_is_an_error_of_the_store_that_decides() -> None:
    with forced_phase(Phase.NEW_ONLY):
        save_state("c", state("a"))
        with failing(touches_rows), pytest.raises(StorageUnavailable):
            append_messages("c", messages("b"))
    found = counted()["append", "tables"]
    assert (found.count, found.errors) == (1, 1)


def test_a_list_that_fails_is_an_error() -> None:
    with failing(touches_rows), pytest.raises(StorageUnavailable):
        list_conversations(None)
    assert (counted()["list", "tables"].errors) == 1


def test_a_load_that_fell_back_is_an_error_of_the_store_that_was_asked_first() -> None:
    with forced_phase(Phase.NEW_READS):
        save_state("c", state("a"))
        with failing(touches_messages):
            assert load_state("c").load_info.store == "legacy"
    found = counted()
    asked = found["load", "tables"]
    assert (asked.count, asked.errors, asked.fallbacks) == (1, 1, 1)
    assert found["load", "legacy"].count == 1


def test_a_stale_read_is_counted() -> None:
    save_state("c", state("a"))
    with failing(touches_rows):
        assert load_state("c").load_info.stale
    assert counted()["load", "legacy"].stale == 1


def test_counters_survive_the_rollback_of_the_caller() -> None:
    with transaction.atomic():
        save_state("c", state("a"))
        transaction.set_rollback(True)
    assert load_state("c").load_info is None
    assert counts()["save", "legacy"] == 1


def test_off_it_costs_no_statement_and_counts_nothing() -> None:
    save_state("c", state("a"))
    measured = statements()
    monitoring(on=False)
    assert statements() == measured
    metrics.forget()
    load_state("c")
    append_messages("c", messages("b"))
    monitoring(on=True)
    assert counts() == {}


def statements() -> list[str]:
    """Return what a load and a save send to the database, on the caller's connection."""
    with CaptureQueriesContext(connection) as captured:
        load_state("c")
        append_messages("c", messages("b"))
    return [q["sql"].split(" ", 1)[0] for q in captured.captured_queries]


def measure_in_another_process(count: int) -> int:
    reporter.ensure = lambda: None  # type: ignore[assignment]
    snapshot.refresh()
    for _ in range(count):
        metrics.observe("save", "legacy", 0.01)
        metrics.flush()
    return count


def test_processes_add_to_the_same_minutes() -> None:
    jobs = [
        Job("tests.flags.test_metrics:measure_in_another_process", {"count": 30}) for _ in range(3)
    ]
    assert sum(together(jobs)) == 90
    measure = counted()["save", "legacy"]
    assert (measure.count, sum(measure.cells)) == (90, 90)
    assert measure.seconds == pytest.approx(0.9)
    assert MeasuredMinute.objects.count() <= 2


def waiting_for_rows() -> int:
    """Return how many sessions wait for another one's row."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
            # Such a lock is no database's; what else its session holds is.
            " AND pid IN (SELECT pid FROM pg_locks WHERE database ="
            " (SELECT oid FROM pg_database WHERE datname = current_database()))"
        )
        return int(cursor.fetchone()[0])


def test_processes_that_measured_in_different_orders_never_wait_for_each_other() -> None:
    """Two hold what the other one needs, while a third one holds the row between them."""
    at = timezone.now().replace(second=0, microsecond=0)
    names = ("append", "edit", "load")

    def write(order: Sequence[str]) -> None:
        try:
            metrics._write({(at, name, "legacy"): Measure(count=1) for name in order})
        finally:
            connections.close_all()

    with ThreadPoolExecutor(2) as threads:
        with transaction.atomic():
            MeasuredMinute.objects.create(began_at=at, operation="edit", store="legacy")
            writers = []
            for number, order in enumerate((names, names[::-1]), start=1):
                writers.append(threads.submit(write, order))
                if connection.vendor == "postgresql":
                    until_true(lambda: waiting_for_rows() == number)  # noqa: B023
        for writer in writers:
            writer.result(60)
    assert counts() == dict.fromkeys(((name, "legacy") for name in names), 2)


def test_threads_lose_nothing() -> None:
    def observe() -> None:
        for _ in range(2_000):
            metrics.observe("save", "legacy", 0.001)

    threads = [threading.Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts()["save", "legacy"] == 8_000


def test_unwritten_measures_are_written_later() -> None:
    metrics.observe("save", "legacy", 0.001)
    with failing(lambda sql: "rollout_measures" in sql), pytest.raises(Exception, match="injected"):
        metrics.flush()
    metrics.observe("save", "legacy", 0.001)
    assert counts()["save", "legacy"] == 2


def test_minutes_are_kept_for_thirty_days() -> None:
    now = timezone.now()
    for age in (timedelta(days=31), timedelta(days=29), timedelta(0)):
        metrics.observe("save", "legacy", 0.001)
        metrics.flush(now=now - age)
    assert metrics.prune() == 1
    assert metrics.totals(now - timedelta(days=40))["save", "legacy"].count == 2
    assert metrics.totals(now - timedelta(minutes=5))["save", "legacy"].count == 1
    early = metrics.totals(now - timedelta(days=40), now - timedelta(days=1))
    assert early["save", "legacy"].count == 1


COUNTS = ("count", "errors", "fallbacks", "stale", "mismatches")
CELLS = len(BOUNDS) + 1
SERIES = [(name, store) for name in ("save", "load", "list") for store in ("legacy", "tables")]


def minutes(number: int, now: datetime) -> list[MeasuredMinute]:
    """Write what was measured in so many minutes; here and there no time was."""
    chance = random.Random(number)
    rows = [
        MeasuredMinute(
            began_at=now - timedelta(minutes=age),
            operation=operation,
            store=store,
            seconds=chance.random(),
            cells="" if chance.random() < 0.1 else json.dumps(chance.choices(range(99), k=CELLS)),
            **{name: chance.randrange(2**40) for name in COUNTS},
        )
        for age in range(number)
        for operation, store in SERIES
        if chance.random() < 0.95
    ]
    return MeasuredMinute.objects.bulk_create(rows, batch_size=1000)


def test_the_sums_of_the_database_equal_those_of_the_minutes() -> None:
    now = timezone.now().replace(second=0, microsecond=0)
    rows = minutes(90, now)
    MeasuredMinute.objects.create(began_at=now, operation="edit", store="legacy", count=1, cells="")
    for oldest, newest in ((90, 0), (60, 0), (60, 30), (200, 100), (30, 30)):
        since, until = now - timedelta(minutes=oldest), now - timedelta(minutes=newest)
        wanted: dict[tuple[str, str], Measure] = {}
        for row in rows:
            if since <= row.began_at <= until:
                one = Measure(**{name: getattr(row, name) for name in (*COUNTS, "seconds")})
                one.cells = json.loads(row.cells) if row.cells else one.cells
                wanted.setdefault((row.operation, row.store), Measure()).add(one)
        found = dict(metrics.totals(since, until))
        assert found.pop(("edit", "legacy"), None) == (None if newest else Measure(count=1))
        assert {key: replace(each, seconds=0) for key, each in found.items()} == {
            key: replace(each, seconds=0) for key, each in wanted.items()
        }
        seconds = {key: each.seconds for key, each in wanted.items()}
        assert {key: each.seconds for key, each in found.items()} == pytest.approx(seconds)


def test_weeks_of_minutes_take_one_statement_and_no_more_memory_than_one() -> None:
    now = timezone.now().replace(second=0, microsecond=0)

    def peak() -> int:
        tracemalloc.start()
        try:
            with CaptureQueriesContext(connection) as captured:
                found = metrics.totals(now - timedelta(days=29))
            assert len(captured) == 1
            assert len(found) == len(SERIES)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    minutes(30, now)
    peak()
    few = peak()
    MeasuredMinute.objects.all().delete()
    minutes(1_500, now)
    assert peak() < few + 64 * 1024


def test_totals_are_read_anew_after_and_in_another_read_once() -> None:
    now = timezone.now().replace(second=0, microsecond=0)
    minutes(3, now)
    with metrics.read_once():
        before = dict(metrics.totals(now))
        MeasuredMinute.objects.filter(began_at=now).delete()
        assert metrics.totals(now) == before
        assert metrics.totals(now - timedelta(minutes=1)).keys() == before.keys()
        assert metrics.totals(now, now) == {}
    assert metrics.totals(now) == {}
