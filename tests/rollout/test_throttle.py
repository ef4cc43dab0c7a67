"""A run makes way: for a replica that lags, and for live saves that have become slow."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from conversations.rollout.runs import records, throttle, working
from conversations.rollout.runs.throttle import Saves
from conversations.rollout.sync import runs
from flags import metrics, reporter
from flags.models import MeasuredMinute
from flags.phases import Phase
from tests.faults.injection import failing
from tests.flags.test_metrics import monitoring
from tests.flags.test_switches import set_rows
from tests.support.factories import state
from tests.support.legacy_schema import old_save

pytestmark = pytest.mark.django_db(transaction=True)

SLOW = "saves take 100 ms, 10 ms before the run"


@pytest.fixture(autouse=True)
def _quick(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    monkeypatch.setattr(records, "FIRST_BATCH", 1)
    monkeypatch.setattr(throttle, "LOOK_EVERY_SECONDS", 0)
    monkeypatch.setattr(working, "MOMENT_SECONDS", 0.001)
    monkeypatch.setattr(working, "NOTE_EVERY_SECONDS", 0.02)


class Traffic:
    """Live saves: 10 ms before the run, `now` ever since; `count` of them each time."""

    def __init__(self, now: float, *, count: int = 50) -> None:
        self.now, self.count = now, count

    def __call__(self, since: datetime, until: datetime | None) -> Saves:
        return Saves(self.count, 0.01 if until is not None else self.now)


def why(saves: Callable[[datetime, datetime | None], Saves]) -> str:
    return throttle.throttle(timezone.now(), saves=saves)()


def a_run(count: int = 3) -> int:
    for number in range(count):
        old_save(connection, f"c{number}", None, state("a").to_dict())
    return runs.begin("tables")


def test_saves_that_take_twice_as_long_as_before_are_slow(settings: Any) -> None:
    assert why(Traffic(0.1)) == SLOW
    assert why(Traffic(0.02)) == ""
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks", "SYNC_MAX_SLOWDOWN": 1.5}
    assert why(Traffic(0.02)) != ""


def test_few_saves_say_nothing() -> None:
    assert why(Traffic(0.1, count=throttle.LEAST_SAVES - 1)) == ""
    assert why(throttle.measured_saves) == ""


def test_the_time_before_the_run_is_that_of_its_beginning() -> None:
    began = timezone.now() - timedelta(hours=5)
    asked: list[tuple[datetime, datetime | None]] = []

    def saves(since: datetime, until: datetime | None) -> Saves:
        asked.append((since, until))
        return Saves(50, 0.01)

    says = throttle.throttle(began, saves=saves)
    says()
    says()
    assert asked[0] == (began - throttle.BASELINE, began)
    assert [until for _, until in asked[1:]] == [None, None]


def test_the_times_are_those_that_all_processes_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "ensure", lambda: None)
    set_rows(Phase.DUAL_WRITE)
    monitoring(on=True)
    metrics.forget()
    now = timezone.now()
    began = now - timedelta(minutes=10)
    for at, seconds in ((began - timedelta(minutes=5), 0.01), (now, 0.5)):
        for _ in range(throttle.LEAST_SAVES // 2):
            metrics.observe("save", "legacy", seconds)
            metrics.observe("append", "tables", seconds)
            metrics.observe("load", "tables", 9.0)
        metrics.flush(now=at)
    assert throttle.measured_saves(began, None).count == throttle.LEAST_SAVES
    assert throttle.throttle(began)().startswith("saves take ")
    with failing(lambda sql: "SELECT" in sql and MeasuredMinute._meta.db_table in sql):
        assert throttle.throttle(began)() == ""


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has no replicas")
def test_a_replica_that_lags_is_a_reason(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    assert why(Traffic(0.01)) == ""
    monkeypatch.setattr(throttle, "_LAG", "SELECT 1, 1, interval '12 seconds'")
    assert why(Traffic(0.01)) == "a replica lags 12 s behind"
    settings.CONVERSATIONS = {
        "LEGACY": "memory_chunks",
        "SYNC_MAX_REPLICA_LAG": timedelta(seconds=12),
    }
    assert why(Traffic(0.01)) == ""
    monkeypatch.setattr(throttle, "_LAG", "SELECT nonsense")
    assert why(Traffic(0.01)) == ""


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has no replicas")
def test_a_replica_that_replays_nothing_more_lags_though_the_server_knows_no_lag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(throttle.time, "monotonic", lambda: now[0])
    says = throttle.throttle(timezone.now(), saves=Traffic(0.01))
    for written, replayed, seconds, said in (
        (100, 100, 0, ""),
        (200, 100, 0, ""),
        (300, 150, 11, "a replica lags 11 s behind"),
        (300, 200, 0, ""),
        (400, 299, 10, ""),
        (400, 299, 5, "a replica lags 15 s behind"),
        (500, "NULL", 60, ""),
    ):
        now[0] += seconds
        monkeypatch.setattr(throttle, "_LAG", f"SELECT {written}, {replayed}, NULL::interval")
        assert says() == said


@pytest.mark.skipif(connection.vendor == "postgresql", reason="PostgreSQL has replicas")
def test_without_replicas_none_lags() -> None:
    assert why(Traffic(0.01)) == ""


def test_a_run_waits_says_why_and_goes_on_when_saves_are_quick_again() -> None:
    run = a_run()
    traffic = Traffic(0.1)
    worker = runs.work(run, saves=traffic)
    assert [next(worker) for _ in range(3)] == [[], [], []]
    found = runs.progress(run)
    assert (found.waiting, found.conversations, found.stuck) == (SLOW, 0, False)
    traffic.now = 0.01
    assert sum(len(done) for done in worker) == 3
    found = runs.progress(run)
    assert (found.waiting, found.state) == ("", "finished")


@pytest.mark.parametrize("change", [runs.pause, runs.cancel])
def test_a_waiting_worker_is_paused_and_cancelled(change: Any) -> None:
    run = a_run()
    worker = runs.work(run, saves=Traffic(0.1))
    next(worker)
    change(run)
    assert not any(worker)
    assert runs.progress(run).conversations == 0
    assert runs.progress(run).waiting == ""


def test_a_waiting_worker_stops_when_told() -> None:
    run = a_run()
    told: list[bool] = []
    worker = runs.work(run, saves=Traffic(0.1), until=lambda: bool(told))
    next(worker)
    told.append(True)
    assert list(worker) == []
    assert runs.progress(run).conversations == 0


def test_a_waiting_worker_makes_one_batch_when_the_time_is_over() -> None:
    """A loop over calls that only wait would never end."""
    run = a_run()
    done = list(runs.work(run, saves=Traffic(0.1), seconds=0.05))
    assert [len(batch) for batch in done if batch] == [1]
    assert runs.progress(run).conversations == 1


def test_a_wait_ends_with_one_more_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a database that stays slow for another reason would never be synced."""
    run = a_run()
    monkeypatch.setattr(working, "LONGEST_WAIT_SECONDS", 0.01)
    assert sum(len(done) for done in runs.work(run, saves=Traffic(0.1))) == 3


def test_a_reason_of_a_worker_that_died_is_none() -> None:
    run = a_run()
    worker = runs.work(run, saves=Traffic(0.1))
    next(worker)
    assert runs.progress(run).waiting == SLOW
    records.runs().update(waited_at=timezone.now() - timedelta(minutes=1))
    assert runs.progress(run).waiting == ""
