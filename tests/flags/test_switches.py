"""Reading the switches: fresh within half a second, never raising, never breaking a transaction."""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
from django.core.cache.backends.base import BaseCache
from django.core.management import call_command
from django.db import (
    DEFAULT_DB_ALIAS,
    DatabaseError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.test.utils import CaptureQueriesContext
from waffle import get_waffle_switch_model

from flags import switches
from flags.phases import (
    HELP_TEXTS,
    PLANS,
    SWITCHES_OF,
    Phase,
    Switch,
    plan_of,
    switches_for,
)
from flags.switches import current_plan, forced_phase, snapshot, try_read_settings
from tests.faults.injection import failing, locked
from tests.support.factories import UserFactory

pytestmark = pytest.mark.django_db

Rows = get_waffle_switch_model()


def set_rows(phase: Phase) -> None:
    """Set the switches in the database alone: no signal, no cache is told."""
    for name, active in switches_for(phase).items():
        Rows._base_manager.update_or_create(name=name, defaults={"active": active})
        Rows._base_manager.filter(name=name).update(active=active)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock that only the test moves."""

    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    ticking = Clock()
    monkeypatch.setattr(switches, "time", ticking)
    return ticking


def touches_switches(sql: str) -> bool:
    return Rows._meta.db_table in sql


@pytest.mark.parametrize("phase", Phase)
def test_the_rows_decide(phase: Phase) -> None:
    set_rows(phase)
    snapshot.forget()
    assert current_plan() == PLANS[phase]


def test_an_absent_row_has_its_default(settings: Any) -> None:
    settings.CONVERSATIONS = {
        "LEGACY": "memory_chunks",
        "SWITCHES": {"use_new_save": True, "parallel_mode": True},
    }
    Rows._base_manager.all().delete()
    Rows._base_manager.create(name=Switch.USE_NEW_LOAD, active=True)
    snapshot.forget()
    assert current_plan() == PLANS[Phase.NEW_READS]


@pytest.mark.parametrize("default", [True, False])
def test_waffles_own_default_is_ignored(settings: Any, default: bool) -> None:
    settings.WAFFLE_SWITCH_DEFAULT = default
    settings.WAFFLE_CREATE_MISSING_SWITCHES = True
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks", "SWITCHES": {"use_new_load": not default}}
    Rows._base_manager.all().delete()
    snapshot.forget()
    expected = Phase.LEGACY if default else Phase.NEW_READS
    assert current_plan().phase == expected
    assert not Rows._base_manager.exists()


def test_one_query_reads_all_switches(clock: Any) -> None:
    set_rows(Phase.DUAL_WRITE)
    snapshot.forget()
    with CaptureQueriesContext(
        connection,
    ) as queries:
        for _ in range(5):
            assert current_plan() == PLANS[Phase.DUAL_WRITE]
    assert len([q for q in queries if touches_switches(q["sql"])]) == 1


def test_a_snapshot_is_kept_for_less_than_half_a_second(clock: Any) -> None:
    set_rows(Phase.DUAL_WRITE)
    snapshot.forget()
    assert current_plan().phase == Phase.DUAL_WRITE
    set_rows(Phase.NEW_READS)
    snapshot._read_at = clock.now
    clock.now += 0.49
    assert current_plan().phase == Phase.DUAL_WRITE
    clock.now += 0.02
    assert current_plan().phase == Phase.NEW_READS


def test_a_snapshot_is_as_old_as_the_moment_before_it_was_read(
    clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that takes long must not make its answer younger than it is."""
    set_rows(Phase.LEGACY)
    snapshot.forget()

    def slow() -> Any:
        values = try_read_settings()
        clock.now += 10
        return values

    monkeypatch.setattr(switches, "try_read_settings", slow)
    assert current_plan().phase == Phase.LEGACY
    monkeypatch.undo()
    assert snapshot._read_at == 1000.0


def test_a_flip_in_this_process_is_seen_at_once(clock: Any, settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    set_rows(Phase.DUAL_WRITE)
    snapshot.forget()
    assert current_plan().phase == Phase.DUAL_WRITE
    row = Rows._base_manager.get(name=Switch.USE_NEW_LOAD)
    row.active = True
    row.save()
    assert current_plan().phase == Phase.NEW_READS
    row.delete()
    assert current_plan().phase == Phase.DUAL_WRITE


@pytest.mark.django_db(transaction=True)
def test_a_flip_that_is_rolled_back_is_not_believed(clock: Any) -> None:
    set_rows(Phase.DUAL_WRITE)
    snapshot.forget()
    with transaction.atomic():
        row = Rows._base_manager.get(name=Switch.USE_NEW_LOAD)
        row.active = True
        row.save()
        assert current_plan().phase == Phase.NEW_READS
        transaction.set_rollback(True)
    clock.now += 1
    assert current_plan().phase == Phase.DUAL_WRITE


def test_while_the_switches_cannot_be_read_the_last_known_plan_holds(clock: Any) -> None:
    set_rows(Phase.NEW_READS)
    snapshot.forget()
    assert current_plan().phase == Phase.NEW_READS
    set_rows(Phase.LEGACY)
    clock.now += 60
    with failing(touches_switches) as failed:
        assert current_plan().phase == Phase.NEW_READS
        assert current_plan().phase == Phase.NEW_READS
    assert len(failed) == 1
    clock.now += 0.5
    assert current_plan().phase == Phase.LEGACY


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("threshold", [None, 0, 1, 5])
def test_the_switches_are_read_whenever_psycopg_prepares(
    clock: Any, monkeypatch: pytest.MonkeyPatch, threshold: int | None
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("only psycopg prepares")
    connection.ensure_connection()
    monkeypatch.setattr(connection.connection, "prepare_threshold", threshold)
    for phase in [Phase.NEW_READS, Phase.DUAL_WRITE] * 5:
        set_rows(phase)
        clock.now += 1
        assert current_plan().phase == phase


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("inside", [True, False])
def test_a_locked_table_holds_up_an_operation_for_a_moment_only(inside: bool) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite locks nothing but the whole database")
    set_rows(Phase.NEW_READS)
    snapshot.forget()
    current_plan()
    with locked(Rows._meta.db_table), transaction.atomic() if inside else nullcontext():
        snapshot.clear()
        started = time.monotonic()
        assert current_plan().phase == Phase.NEW_READS
        assert time.monotonic() - started < 0.25
        started = time.monotonic()
        for _ in range(100):
            current_plan()
        assert time.monotonic() - started < 0.25
        with connection.cursor() as cursor:
            cursor.execute("SHOW lock_timeout")
            assert cursor.fetchone() == ("0",)


def test_a_process_that_never_read_the_switches_takes_the_default(settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks", "SWITCHES": {"use_new_save": True}}
    snapshot.forget()
    with failing(touches_switches) as failed:
        assert current_plan() == plan_of({"use_new_save": True})
    assert failed


def test_a_failed_read_does_not_break_the_hosts_transaction() -> None:
    """On PostgreSQL a failed statement aborts everything up to the next savepoint."""
    snapshot.forget()
    table = Rows._meta.db_table
    with transaction.atomic():
        user = UserFactory()
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {table} RENAME TO away")
        assert current_plan() is not None
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE away RENAME TO {table}")
        user.username = "still there"
        user.save()
    user.refresh_from_db()
    assert user.username == "still there"


@pytest.mark.parametrize("marked", [True, False])
def test_reading_in_an_aborted_transaction_does_not_raise(marked: bool) -> None:
    set_rows(Phase.NEW_READS)
    snapshot.forget()
    assert current_plan().phase == Phase.NEW_READS
    snapshot.clear()
    with pytest.raises(DatabaseError, match="no_such_table"), transaction.atomic():
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT * FROM no_such_table")
        except DatabaseError:
            transaction.set_rollback(marked)
            assert current_plan().phase == Phase.NEW_READS
            raise


def test_in_async_code_the_last_known_plan_holds(clock: Any) -> None:
    """A coroutine that asks by itself may not query; one that saves does so in a thread."""
    set_rows(Phase.NEW_READS)
    snapshot.forget()
    assert current_plan().phase == Phase.NEW_READS
    clock.now += 60

    async def ask() -> Phase:
        return current_plan().phase

    assert asyncio.run(ask()) == Phase.NEW_READS


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("seconds", [0, 60])
def test_a_dead_database_is_asked_once_in_half_a_second(clock: Any, seconds: int) -> None:
    set_rows(Phase.NEW_READS)
    snapshot.forget()
    assert current_plan().phase == Phase.NEW_READS
    clock.now += 60
    wrapper = connections[DEFAULT_DB_ALIAS]
    wrapper.close()

    def refuse() -> None:
        # So many threads that wait for one another would wait for so many minutes.
        clock.now += seconds
        raise OperationalError("connection refused")

    with mock.patch.object(wrapper, "connect", side_effect=refuse) as connect:
        for _ in range(100):
            assert current_plan().phase == Phase.NEW_READS
    assert connect.call_count == 1


def test_a_cache_that_is_dead_is_not_even_asked(clock: Any, settings: Any) -> None:
    settings.CACHES = {"default": {"BACKEND": "tests.flags.test_switches.DeadCache"}}
    set_rows(Phase.NEW_READS)
    snapshot.forget()
    assert current_plan().phase == Phase.NEW_READS


class DeadCache(BaseCache):
    """A cache that does not answer."""

    def __init__(self, *args: Any) -> None:
        super().__init__({})

    def get(self, *args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("the cache is dead")

    set = get_many = set_many = delete = get


def test_a_misspelt_preset_is_named_by_a_check_and_stops_no_operation(settings: Any) -> None:
    preset = {"use_new_lod": True, "use_new_save": True}
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks", "SWITCHES": preset}
    Rows._base_manager.all().delete()
    snapshot.forget()
    assert current_plan() == plan_of({"use_new_save": True})
    snapshot.forget()
    with failing(touches_switches):
        assert current_plan() == plan_of({"use_new_save": True})


@pytest.mark.parametrize("phase", Phase)
def test_a_phase_can_be_forced_for_a_while(phase: Phase) -> None:
    set_rows(Phase.DUAL_WRITE)
    snapshot.forget()
    with forced_phase(phase):
        assert current_plan() == PLANS[phase]
        with forced_phase(Phase.NEW_ONLY):
            assert current_plan() == PLANS[Phase.NEW_ONLY]
        assert current_plan() == PLANS[phase]
    assert current_plan() == PLANS[Phase.DUAL_WRITE]


# The rows that migrate makes


def test_a_migration_makes_the_rows_with_their_help(settings: Any) -> None:
    settings.CONVERSATIONS = {
        "LEGACY": "memory_chunks",
        "SWITCHES": {"use_new_save": True, "parallel_mode": True},
    }
    Rows._base_manager.all().delete()
    call_command("migrate", verbosity=0, interactive=False)
    rows = Rows._base_manager.values_list("name", "active", "note")
    values = (*SWITCHES_OF[Phase.DUAL_WRITE], False, False)
    assert {name: (active, note) for name, active, note in rows} == {
        switch.value: (active, HELP_TEXTS[switch])
        for switch, active in zip(Switch, values, strict=True)
    }


def test_a_migration_leaves_rows_alone_that_exist(settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    Rows._base_manager.all().delete()
    Rows._base_manager.create(name=Switch.USE_NEW_LOAD, active=True, note="ours")
    call_command("migrate", verbosity=0, interactive=False)
    row = Rows._base_manager.get(name=Switch.USE_NEW_LOAD)
    assert (row.active, row.note) == (True, "ours")
    assert Rows._base_manager.count() == len(Switch)


def test_a_fresh_team_gets_rows_that_say_new_only(settings: Any) -> None:
    settings.CONVERSATIONS = {}
    Rows._base_manager.all().delete()
    call_command("migrate", verbosity=0, interactive=False)
    assert dict(Rows._base_manager.values_list("name", "active")) == {
        **switches_for(Phase.NEW_ONLY),
        "emergency_rollback": False,
        "performance_monitoring": False,
    }
