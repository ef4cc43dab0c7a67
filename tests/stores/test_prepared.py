"""Statements of loads and additions are prepared where the connection carries them, and heal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, connection, connections, transaction
from django.db.utils import IntegrityError, ProgrammingError
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from conversations.exceptions import StorageUnavailable
from conversations.storage import append_messages, load_state, save_state
from conversations.stores.sql import prepared as preparing
from conversations.stores.sql.cursors import execute
from conversations.stores.sql.prepared import (
    ASKED_AFTER,
    AUTO,
    MOST_TEXTS,
    ON_REQUEST,
    Session,
    session_of,
)
from flags.phases import Phase
from flags.switches import forced_phase
from tests.support.factories import message, messages, state, texts
from tests.support.scratch import plain_connection

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(
        connection.vendor != "postgresql", reason="SQLite binds anyway, and has no server"
    ),
]


def settings(prepare: Any) -> Any:
    return override_settings(CONVERSATIONS={"REQUIRE_OWNER": False, "PREPARE_STATEMENTS": prepare})


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """A new session, which no other test goes on with, in phase new_only."""
    connection.close()
    with override_settings(CONVERSATIONS={"REQUIRE_OWNER": False}), forced_phase(Phase.NEW_ONLY):
        yield
    connection.close()


@pytest.fixture
def other() -> Iterator[Any]:
    """A connection of another process: psycopg hears nothing of what it does to ours."""
    client = plain_connection(connection)
    client.autocommit = True
    yield client
    client.close()


def standing() -> list[str]:
    """Return the statements that the server holds prepared for this session."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement FROM pg_prepared_statements")
        return [row[0] for row in cursor.fetchall()]


def turns(count: int) -> None:
    save_state("c", state("a"))
    for number in range(count):
        loaded = load_state("c")
        loaded.conversation_history += messages(number)
        save_state("c", loaded)
        append_messages("c", messages(number))


def unseen(command: str) -> None:
    """Execute in our session what psycopg does not recognise."""
    with connection.cursor() as cursor:
        cursor.execute(f"DO $$ BEGIN EXECUTE '{command}'; END $$")


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The connections that were asked what they carry, in order."""
    asked: list[Any] = []
    ask = Session.ask

    def noted(self: Session, raw: Any) -> None:
        before = self.carries
        ask(self, raw)
        if before is None and self.carries is not None:
            asked.append(raw)

    monkeypatch.setattr(Session, "ask", noted)
    return asked


# Where


def test_by_default_a_direct_connection_prepares_our_statements_and_no_others() -> None:
    turns(8)
    found = standing()
    assert len(found) == 3
    assert all("conversation_states" in statement for statement in found)
    # It stays, or psycopg would overlook DISCARD ALL.
    assert connection.connection.prepare_threshold == ON_REQUEST
    plain = psycopg.Cursor(connection.connection)
    for _ in range(10):
        plain.execute("SELECT 1")
        with transaction.atomic(), transaction.atomic():
            connection.cursor().execute("SELECT 1")
    turns(2)
    assert sorted(standing()) == sorted(found)


def test_nothing_is_prepared_where_the_host_forbids_it() -> None:
    with settings(prepare=False):
        turns(8)
    assert standing() == []
    assert connection.connection.prepare_threshold is None


def test_a_connection_of_one_request_is_not_asked(questions: list[Any]) -> None:
    save_state("c", state("a"))
    for _ in range(4):
        load_state("c")
    assert questions == []
    for _ in range(4):
        load_state("c")
    assert questions == [connection.connection]


def test_each_connection_is_asked_once(questions: list[Any]) -> None:
    turns(8)
    first = connection.connection
    connection.close()
    turns(8)
    assert questions == [first, connection.connection]


def test_nothing_is_asked_inside_of_a_transaction(questions: list[Any]) -> None:
    save_state("c", state("a"))
    with transaction.atomic():
        for _ in range(2 * ASKED_AFTER):
            load_state("c")
    assert questions == []
    assert standing() == []
    # The host's block still chooses its isolation level.
    with transaction.atomic():
        connection.cursor().execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")


def test_nothing_is_asked_of_an_aborted_transaction(questions: list[Any]) -> None:
    with transaction.atomic():
        with pytest.raises(ProgrammingError):
            connection.cursor().execute("SELECT nothing")
        session_of(connection.connection).ask(connection.connection)
        transaction.set_rollback(True)
    assert questions == []


@pytest.mark.parametrize(("age", "asked"), [(0, False), (60, True), (None, True)])
def test_a_connection_that_lives_on_is_asked_before_its_first_transaction(
    monkeypatch: pytest.MonkeyPatch, age: Any, asked: bool
) -> None:
    """As with ATOMIC_REQUESTS, where each statement stands in a transaction."""
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", age)
    for number in range(3):
        with transaction.atomic():
            save_state(f"c{number}", state("a"))
            load_state(f"c{number}")
            append_messages(f"c{number}", messages("b"))
    assert bool(standing()) is asked
    assert session_of(connection.connection).carries is (True if asked else None)


@pytest.mark.parametrize("setting", [AUTO, True])
def test_a_pooler_that_makes_up_the_process_number_carries_nothing(
    monkeypatch: pytest.MonkeyPatch, setting: Any
) -> None:
    monkeypatch.setattr(psycopg.ConnectionInfo, "backend_pid", property(lambda info: -5))
    with settings(setting):
        turns(8)
        assert bool(standing()) is (setting is True)


def test_several_schemas_in_the_path_prepare_nothing() -> None:
    """A kept plan would overlook a new table in an earlier schema."""
    with connection.cursor() as cursor:
        cursor.execute("SET search_path TO public, pg_catalog, information_schema")
    turns(8)
    assert standing() == []


def test_a_threshold_of_the_hosts_own_stays_and_counts() -> None:
    connection.ensure_connection()
    connection.connection.prepare_threshold = 3
    turns(2)
    assert standing() == []
    turns(4)
    assert standing() != []
    assert connection.connection.prepare_threshold == 3


# What goes stale


def test_statements_that_the_host_discards_are_prepared_again() -> None:
    turns(8)
    for command in ("DISCARD ALL", "DEALLOCATE ALL"):
        with connection.cursor() as cursor:
            cursor.execute(command)
        assert standing() == []
        turns(3)
        assert standing() != []


def test_statements_that_vanish_unseen_are_prepared_again() -> None:
    turns(8)
    unseen("DEALLOCATE ALL")
    turns(3)
    assert len(standing()) == 3


def test_statements_that_vanish_unseen_stop_no_transaction_of_the_caller() -> None:
    """The statement fails in a savepoint of ours, and the long way prepares nothing."""
    turns(8)
    before = texts(load_state("c"))
    with transaction.atomic():
        unseen("DEALLOCATE ALL")
        append_messages("c", messages("in"))
        unseen("DEALLOCATE ALL")
        assert texts(load_state("c")) == [*before, "in"]
    turns(2)
    assert len(standing()) == 3


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE conversation_states ALTER COLUMN message_count TYPE {}",
        "ALTER TABLE conversation_messages ALTER COLUMN role TYPE {}",
    ],
)
def test_a_column_of_another_type_stops_nothing(other: Any, change: str) -> None:
    kinds = ("integer", "bigint") if "count" in change else ("varchar(900)", "text")
    turns(8)
    try:
        for kind in kinds:
            other.execute(change.format(kind))
            append_messages("c", messages(9))
            assert texts(load_state("c"))[-1] == 9
    finally:
        other.execute(change.format(kinds[-1]))


def test_a_new_column_stops_nothing(other: Any) -> None:
    turns(8)
    for table in ("conversation_messages", "conversation_states"):
        other.execute(f"ALTER TABLE {table} ADD COLUMN later integer")
    try:
        append_messages("c", messages("z"))
        assert texts(load_state("c"))[-1] == "z"
    finally:
        for table in ("conversation_messages", "conversation_states"):
            other.execute(f"ALTER TABLE {table} DROP COLUMN later")
    assert texts(load_state("c"))[-1] == "z"


def settle() -> Any:
    """Return our connection, after it was asked."""
    turns(8)
    return connections["default"]


def test_outside_of_a_transaction_a_stale_statement_is_repeated_and_prepared_again() -> None:
    ours = settle()
    for _ in range(2):
        assert execute(ours, "SELECT 'x'::text", []).fetchone() == ("x",)
    unseen("DEALLOCATE ALL")
    for _ in range(2):
        assert execute(ours, "SELECT 'x'::text", []).fetchone() == ("x",)
    assert standing() == ["SELECT 'x'::text"]


def test_inside_of_a_transaction_a_stale_statement_is_not_repeated() -> None:
    """The server answers nothing before the caller rolls back; the error says what was wrong."""
    ours = settle()
    execute(ours, "SELECT 'x'::text", [])
    unseen("DEALLOCATE ALL")
    with pytest.raises(DatabaseError) as failed, transaction.atomic():
        execute(ours, "SELECT 'x'::text", [])
    assert isinstance(failed.value.__cause__, psycopg.errors.InvalidSqlStatementName)


def test_inside_of_a_transaction_nothing_is_forgotten_and_nothing_new_is_prepared() -> None:
    ours = settle()
    execute(ours, "SELECT 'x'::text", [])
    session_of(ours.connection).is_stale = True
    with transaction.atomic():
        assert execute(ours, "SELECT 'y'::text", []).fetchone() == ("y",)
        assert "SELECT 'x'::text" in standing()
        assert "SELECT 'y'::text" not in standing()
    execute(ours, "SELECT 'y'::text", [])
    assert standing() == ["SELECT 'y'::text"]


def test_a_connection_that_does_not_answer_carries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "_QUESTION", "SELECT nothing")
    turns(8)
    assert session_of(connection.connection).reason == "it did not answer (UndefinedColumn)"
    assert standing() == []


# What stays in the server


def test_a_statement_that_fails_when_it_is_prepared_anew_does_not_stay(other: Any) -> None:
    ours, insert = settle(), "INSERT INTO refusing (name) VALUES (%s)"
    other.execute("CREATE TABLE refusing (name text UNIQUE)")
    try:
        for name in "ab":
            execute(ours, insert, [name], may_fail=True)
        assert any("refusing" in sql for sql in standing())
        with transaction.atomic():
            load_state("c")
            transaction.set_rollback(True)
        # psycopg has forgotten every statement now.
        for _ in range(50):
            with pytest.raises(IntegrityError):
                execute(ours, insert, ["a"], may_fail=True)
        load_state("c")
        assert [sql for sql in standing() if "refusing" in sql] == []
    finally:
        other.execute("DROP TABLE refusing")


def test_additions_that_fail_leave_no_statement_in_the_server(other: Any) -> None:
    """psycopg forgets a statement that fails when it is prepared; the server would keep it."""
    turns(8)
    other.execute(
        "ALTER TABLE conversation_messages ADD CONSTRAINT refusing CHECK (role <> 'refused')"
    )
    try:
        for number in range(500):
            with pytest.raises(StorageUnavailable):
                append_messages("c", [message("x", role="refused")])
            if number % 100 == 7:
                turns(1)
                with transaction.atomic():
                    load_state("c")
                    transaction.set_rollback(True)
        load_state("c")
        known = len(connection.connection._prepared._names)
        assert len(standing()) == known <= 4
    finally:
        other.execute("ALTER TABLE conversation_messages DROP CONSTRAINT refusing")


def memory() -> int:
    """Return the bytes that the server's process of this session uses."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT sum(used_bytes) FROM pg_backend_memory_contexts")
        return int(cursor.fetchone()[0])


def test_many_forms_of_additions_stay_few_in_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    turns(8)
    before, forgotten, forget = memory(), [], Session.forget
    monkeypatch.setattr(
        Session, "forget", lambda self, raw: forgotten.append(raw) or forget(self, raw)
    )
    for count in range(1, 14):
        for keyed in (False, True):
            for extra in ({}, {"tool_name": "t"}, {"timestamp": "2026-01-01T00:00:00Z"}):
                for turn in range(2):
                    added = [message(f"{count}") | extra for _ in range(count)]
                    keys = [f"{count}{keyed}{extra}{turn}{at}" for at in range(count)]
                    append_messages("c", added, keys=keys if keyed else None)
                    assert len(standing()) <= MOST_TEXTS + 3
        load_state("c", max_messages=count)
    assert memory() - before <= 6 * 2**20
    # 91 texts, 40 of which stand at a time.
    assert len(forgotten) == 2


def test_integers_of_any_size_share_one_statement() -> None:
    save_state("c", state("a"))
    for _ in range(ASKED_AFTER + 1):
        load_state("c")
    for size in (1, 300, 40_000, 3_000_000_000):
        load_state("c", max_messages=size)
    assert len([sql for sql in standing() if "LIMIT" in sql]) == 1


def test_what_watches_statements_sees_them_prepared_as_well() -> None:
    turns(8)
    before = len(standing())

    def watch(execute: Any, *arguments: Any) -> Any:
        return execute(*arguments)

    with connection.execute_wrapper(watch):
        load_state("c", max_messages=5)
        load_state("c", max_messages=5)
    assert len(standing()) == before + 1


def test_the_query_log_holds_the_text_of_each_statement() -> None:
    turns(8)
    with CaptureQueriesContext(connection) as logged:
        turns(1)
    assert all("conversation" in query["sql"] for query in logged.captured_queries[-3:])
    assert None not in [query["sql"] for query in logged.captured_queries]


def test_an_error_of_the_statement_itself_is_no_reason_to_forget() -> None:
    turns(8)
    before = len(standing())
    with pytest.raises(ProgrammingError):
        execute(connections["default"], "SELECT nothing", [])
    assert len(standing()) == before
    assert preparing.is_stale(psycopg.errors.InvalidSqlStatementName())
    assert not preparing.is_stale(psycopg.errors.UndefinedColumn())
