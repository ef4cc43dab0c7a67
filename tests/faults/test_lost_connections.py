"""A connection that is lost outside of a request: one error at most, then everything works."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from unittest import mock

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.core.management import CommandError, call_command
from django.db import Error, OperationalError, connection, transaction

from conversations import aio
from conversations.admin.legacy import legacy_page, stand_in
from conversations.exceptions import ConversationStoreError, StorageUnavailable
from conversations.formats import export_lines, import_lines
from conversations.rollout import retirement
from conversations.rollout.findings import findings, pending, quarantined
from conversations.rollout.overtaken import prune_overtaken
from conversations.rollout.runs import records
from conversations.rollout.sync import runs as sync_runs, sync
from conversations.rollout.sync.estimating import estimate
from conversations.rollout.verification import runs as verification_runs, verify
from conversations.routing.ids import out_of_step
from conversations.routing.transactions import give_back
from conversations.storage import append_messages, list_messages, load_state, save_state
from conversations.writing.retention import prune
from flags import beginnings, processes, reporter, transitions
from flags.connections import close_if_lost, reopened
from flags.exceptions import TransitionRefused
from flags.gates import ask
from flags.health import report
from flags.phases import Phase
from flags.switches import current_plan, forced_phase, read_retirement, snapshot
from tests.api import unasked
from tests.faults.injection import failing, touches_tables
from tests.flags.test_fence import until_true
from tests.flags.test_switches import set_rows
from tests.storage.test_asgi import pooled  # noqa: F401
from tests.support.factories import messages, state, texts
from tests.support.scratch import plain_connection

pytestmark = pytest.mark.django_db(transaction=True)

only_postgresql = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="SQLite has no session that could be ended"
)
SETTINGS = {"LEGACY": "memory_chunks"}


@pytest.fixture(autouse=True)
def _end() -> Iterator[None]:
    yield
    connection.close()


def end_session(pid: int) -> None:
    """Let the server end a session, and wait until it is gone."""
    with plain_connection(connection) as other:
        other.autocommit = True
        other.execute("SELECT pg_terminate_backend(%s)", [pid])
        gone = "SELECT NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid = %s)"
        until_true(lambda: other.execute(gone, [pid]).fetchone()[0])


def lose() -> None:
    """Lose this thread's connection as an idle one is lost."""
    connection.ensure_connection()
    if connection.vendor == "postgresql":
        end_session(connection.connection.info.backend_pid)
    else:
        connection.connection.close()


def errors_of(call: Callable[[], Any]) -> list[str]:
    """Return the errors of a call that is repeated until it is answered, three times at most.

    An answer may be that there is no such message, or that a step is refused.
    """
    errors = []
    for _ in range(3):
        try:
            call()
        except (StorageUnavailable, Error, CommandError) as error:
            errors.append(type(error).__name__)
        except (ConversationStoreError, TransitionRefused):
            return errors
        else:
            return errors
    return [*errors, "never works again"]


# Every call of the public API


@pytest.mark.parametrize("call", unasked().values(), ids=unasked())
def test_a_call_after_a_lost_connection_fails_once_at_most(
    phase: Phase, call: Callable[[], Any]
) -> None:
    save_state("c", state("a", "b"))
    lose()
    assert errors_of(call) in ([], ["StorageUnavailable"])


def test_a_repeat_after_a_lost_connection_adds_nothing_twice(phase: Phase) -> None:
    save_state("c", state("a"))
    loaded = load_state("c")
    loaded.conversation_history += messages("b")
    for call in (
        lambda: save_state("c", loaded),
        lambda: append_messages("c", messages("c"), keys=["key"]),
    ):
        lose()
        assert errors_of(call) in ([], ["StorageUnavailable"])
        call()
    assert texts(load_state("c")) == ["a", "b", "c"]


def test_a_coroutine_after_a_lost_connection_of_its_thread_fails_once_at_most(
    new_only: None,
) -> None:
    save_state("c", state("a"))

    async def main() -> list[str]:
        with suppress(StorageUnavailable):
            await aio.load_state("c")
        await sync_to_async(lose)()
        errors = []
        for _ in range(3):
            try:
                found = await aio.load_state("c")
            except StorageUnavailable as error:
                errors.append(type(error).__name__)
                continue
            assert texts(found) == ["a"]
            await sync_to_async(lambda: connection.close())()
            return errors
        return [*errors, "never works again"]

    assert asyncio.run(main()) in ([], ["StorageUnavailable"])


# Everything else that asks the database outside of a request

LINE = (
    '{"format": 1, "conversation_id": "line", "user": null, "forked_from": null,'
    ' "created_at": null, "updated_at": null, "state": {}, "messages": []}'
)

OTHERS: dict[str, Callable[[], Any]] = {
    "transitions.status": transitions.status,
    "transitions.history": transitions.history,
    "transitions.check": transitions.check,
    "transitions.advance": transitions.advance,
    "transitions.canary": lambda: transitions.canary(100),
    "transitions.rollback": transitions.rollback,
    "transitions.emergency": transitions.emergency,
    "transitions.resume": transitions.resume,
    "transitions.rehearse": transitions.rehearse,
    "processes.live": processes.live,
    "health.report": report,
    "sync begin": lambda: sync_runs.begin("tables"),
    "sync work": lambda: list(sync_runs.work(sync_runs.begin("tables"))),
    "sync work of a run": lambda: list(sync_runs.work(0)),
    "verification work of a run": lambda: list(verification_runs.work(0)),
    "sync pause": lambda: sync_runs.pause(0),
    "sync resume": lambda: sync_runs.resume(0),
    "sync cancel": lambda: sync_runs.cancel(0),
    "sync progress": lambda: sync_runs.progress(0),
    "sync failures": lambda: list(sync_runs.failures(0)),
    "sync tally": lambda: records.tally(0),
    "sync latest": sync_runs.latest,
    "sync last_finished": lambda: sync_runs.last_finished("tables"),
    "verification begin": verification_runs.begin,
    "verification work": lambda: list(verification_runs.work(verification_runs.begin())),
    "verification latest": verification_runs.latest_verification,
    "verify": lambda: list(verify()),
    "findings": findings,
    "pending": lambda: list(pending()),
    "quarantined": quarantined,
    "out_of_step": lambda: list(out_of_step()),
    "prune": lambda: list(prune()),
    "prune_overtaken": lambda: list(prune_overtaken(keep=1)),
    "sync": lambda: list(sync("tables")),
    "estimate": lambda: estimate("tables"),
    "export_lines": lambda: list(export_lines()),
    "import_lines": lambda: list(import_lines([LINE])),
    "holdings": retirement.holdings,
    "retirement conditions": retirement.conditions,
    "retirement finished": retirement.finished,
    "retirement retire": lambda: list(retirement.retire()),
    "retirement restore": retirement.restore,
    "monitor.beat": reporter.beat,
    "the admin's page of legacy": lambda: legacy_page(mock.Mock()),
    "the admin's look for a conversation": lambda: stand_in(mock.Mock(), "c"),
    "rollout status": lambda: call_command("rollout", "status"),
    "conversations prune": lambda: call_command("conversations", "prune"),
    "conversations verify": lambda: call_command("conversations", "verify"),
    "conversations findings": lambda: call_command("conversations", "findings"),
    "conversations runs": lambda: call_command("conversations", "runs"),
}


@pytest.mark.parametrize("call", OTHERS.values(), ids=OTHERS)
def test_operations_on_the_rollout_fail_once_at_most_as_well(
    settings: Any, call: Callable[[], Any]
) -> None:
    settings.CONVERSATIONS = SETTINGS
    save_state("c", state("a"))
    lose()
    assert len(errors_of(call)) <= 1


@pytest.mark.parametrize(
    "call",
    [retirement.holdings, retirement.conditions, lambda: list(retirement.retire())],
    ids=["holdings", "conditions", "retire"],
)
def test_a_connection_lost_after_the_status_was_read_fails_once_as_well(
    settings: Any, call: Callable[[], Any]
) -> None:
    settings.CONVERSATIONS = SETTINGS
    with forced_phase(Phase.LEGACY):
        save_state("c", state("a"))
    look = transitions.status

    def look_and_lose() -> Any:
        found = look()
        lose()
        return found

    with mock.patch.object(transitions, "status", look_and_lose), suppress(Error):
        call()
    assert errors_of(call) == []


@pytest.mark.parametrize("runs", [sync_runs, verification_runs], ids=["sync", "verification"])
def test_a_worker_that_loses_its_connection_between_two_batches_goes_on(
    settings: Any, monkeypatch: pytest.MonkeyPatch, runs: Any
) -> None:
    settings.CONVERSATIONS = SETTINGS
    monkeypatch.setattr(records, "FIRST_BATCH", 1)
    with forced_phase(Phase.LEGACY if runs is sync_runs else Phase.NEW_ONLY):
        for name in "abcde":
            save_state(name, state(name))
    run = runs.begin("tables") if runs is sync_runs else runs.begin()
    batches = 0
    for _ in runs.work(run):
        lose()
        batches += 1
    assert batches > 1
    progress = sync_runs.progress(run)
    assert (progress.state, progress.conversations, progress.failed) == ("finished", 5, 0)


class Losing:
    """Lose the connection before a statement, counted from 1."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, execute: Any, *statement: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            lose()
        return execute(*statement)


def work_on(run: int) -> None:
    for _ in sync_runs.work(run):
        pass


@only_postgresql
def test_a_worker_that_loses_its_connection_at_any_statement_fails_once_at_most(
    settings: Any,
) -> None:
    settings.CONVERSATIONS = SETTINGS
    with forced_phase(Phase.LEGACY):
        save_state("a", state("a"))
    for at in range(1, 100):
        run = sync_runs.begin("tables")
        losing = Losing(at)
        with connection.execute_wrapper(losing):
            assert len(errors_of(partial(work_on, run))) <= 1
        assert [*sync_runs.work(run)] == []
        assert sync_runs.progress(run).state == "finished"
        if losing.left > 0:
            return
    raise AssertionError("a run takes fewer statements")


def test_a_connection_that_is_lost_where_its_error_is_swallowed_is_replaced() -> None:
    def look(*_: Any) -> bool:
        return bool(connection.cursor().execute("SELECT 1"))

    lose()
    assert not ask(mock.Mock(look=look), mock.Mock()).passed
    assert connection.connection is None


def test_a_rollout_without_a_beginning_is_seen_on_a_lost_connection(settings: Any) -> None:
    settings.CONVERSATIONS = SETTINGS
    with forced_phase(Phase.LEGACY):
        save_state("c", state("a"))
    set_rows(Phase.NEW_ONLY)
    read = beginnings.read_settings

    def read_and_lose() -> Any:
        found = read()
        lose()
        return found

    with mock.patch.object(beginnings, "_said_by_the_settings", return_value=False):
        assert beginnings.unanswered()
        with mock.patch.object(beginnings, "read_settings", read_and_lose):
            assert beginnings.unanswered()


# The switches


def test_switches_that_are_read_on_a_lost_connection_are_those_of_the_database(
    settings: Any,
) -> None:
    settings.CONVERSATIONS = SETTINGS
    for stored in (Phase.NEW_READS, Phase.LEGACY, Phase.NEW_ONLY):
        set_rows(stored)
        snapshot.clear()
        lose()
        assert current_plan().phase == stored
        lose()
        assert read_retirement() is False


def test_switches_that_are_read_in_a_lost_transaction_are_read_again_behind_it(
    settings: Any,
) -> None:
    settings.CONVERSATIONS = SETTINGS
    set_rows(Phase.NEW_READS)
    assert current_plan().phase == Phase.NEW_READS
    with pytest.raises(Error), transaction.atomic():
        lose()
        snapshot.clear()
        lost = connection.connection
        assert current_plan().phase == Phase.NEW_READS
        assert connection.connection is lost
    set_rows(Phase.DUAL_WRITE)
    snapshot.clear()
    assert current_plan().phase == Phase.DUAL_WRITE


# What is lost in other ways


@only_postgresql
def test_a_session_that_is_ended_in_the_middle_of_a_statement_costs_one_error(
    new_only: None,
) -> None:
    save_state("c", state("a"))
    connection.ensure_connection()
    pid = connection.connection.info.backend_pid
    with plain_connection(connection) as holder:
        holder.execute("SELECT 1 FROM conversation_states FOR UPDATE")

        def kill() -> None:
            waits = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
            with plain_connection(connection) as other:
                other.autocommit = True
                until_true(lambda: other.execute(waits, [pid]).fetchone() is not None)
            end_session(pid)
            holder.rollback()

        killer = threading.Thread(target=kill)
        killer.start()
        assert errors_of(lambda: append_messages("c", messages("b"), keys=["b"])) == [
            "StorageUnavailable"
        ]
        killer.join()
    assert texts(load_state("c")) == ["a", "b"]


class TimeIsUp(Exception):
    """What a queue raises in the middle of a task that takes too long."""


@contextmanager
def interrupted() -> Iterator[None]:
    """Interrupt this thread in a moment, in any wait."""

    def interrupt(*_: Any) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@only_postgresql
def test_a_connection_that_still_waits_for_an_interrupted_statement_is_replaced(
    new_only: None,
) -> None:
    save_state("c", state("a"))
    with plain_connection(connection) as holder:
        holder.execute("SELECT 1 FROM conversation_states FOR UPDATE")
        with pytest.raises(TimeIsUp), interrupted():
            append_messages("c", messages("b"), keys=["b"])
        holder.rollback()
    assert errors_of(lambda: load_state("c")) in ([], ["StorageUnavailable"])
    assert errors_of(lambda: append_messages("c", messages("b"), keys=["b"])) == []
    assert texts(load_state("c")) == ["a", "b"]


@only_postgresql
def test_a_pool_that_lost_all_its_connections_costs_one_error(
    pooled: None,  # noqa: F811
    new_only: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(connection.settings_dict, "CONN_HEALTH_CHECKS", False)
    save_state("c", state("a"))
    others = [connection.copy() for _ in range(4)]
    for other in (connection, *others):
        other.ensure_connection()
    sessions = [other.connection.info.backend_pid for other in (connection, *others)]
    for other in (connection, *others):
        other.close()
    for session in sessions:
        end_session(session)
    errors = []
    for _ in range(10):
        try:
            assert texts(load_state("c")) == ["a"]
        except StorageUnavailable as error:
            errors.append(error)
        connection.close()
    assert len(errors) == 1


@only_postgresql
def test_no_connection_is_made_only_to_give_it_back(pooled: None) -> None:  # noqa: F811
    connection.close()
    give_back()
    assert connection.connection is None


# What must be kept


def test_a_failed_statement_keeps_a_working_connection(phase: Phase) -> None:
    save_state("c", state("a"))
    before = connection.connection
    with failing(touches_tables), suppress(StorageUnavailable):
        append_messages("c", messages("b"))
    with failing(touches_tables), suppress(StorageUnavailable):
        list_messages("c")
    assert connection.connection is before


def test_the_text_of_an_error_closes_no_working_connection() -> None:
    connection.ensure_connection()
    before = connection.connection
    error = OperationalError("sending failed")
    error.__cause__ = psycopg.OperationalError("sending failed")
    close_if_lost(connection, error)
    assert connection.connection is before


def test_a_lost_transaction_of_the_caller_stays_an_error_until_it_ends(new_only: None) -> None:
    save_state("c", state("a"))
    with pytest.raises(Error), transaction.atomic():
        append_messages("c", messages("lost"))
        lose()
        append_messages("c", messages("lost too"))
    assert errors_of(lambda: append_messages("c", messages("b"))) == []
    assert texts(load_state("c")) == ["a", "b"]


def test_a_caller_who_catches_everything_in_a_lost_transaction_hears_of_it_in_the_end(
    phase: Phase,
) -> None:
    save_state("c", state("a"))
    with pytest.raises(Error), transaction.atomic():
        append_messages("c", messages("lost"))
        lose()
        for call in (lambda: load_state("c"), lambda: report(), lambda: list_messages("c")):
            with suppress(Error):
                call()
    assert errors_of(lambda: append_messages("c", messages("b"), keys=["b"])) == []
    assert texts(load_state("c")) == ["a", "b"]


@only_postgresql
def test_a_connection_without_autocommit_is_the_callers_to_close(new_only: None) -> None:
    save_state("c", state("a"))
    connection.set_autocommit(False)
    before = connection.connection
    append_messages("c", messages("lost"))
    lose()
    snapshot.clear()
    for call in (*unasked().values(), report, current_plan):
        with suppress(Error, ConversationStoreError):
            call()
        with pytest.raises(Error):
            append_messages("c", messages("lost too"))
        assert connection.connection is before
    connection.close()
    assert texts(load_state("c")) == ["a"]


@only_postgresql
def test_a_read_is_never_repeated_inside_a_transaction() -> None:
    with suppress(Error), transaction.atomic():
        lose()
        calls = []

        def read() -> None:
            calls.append(connection.connection)
            connection.cursor().execute("SELECT 1")

        with pytest.raises(Error):
            reopened(connection, read)
        assert len(calls) == 1
