"""Statements of loads and saves go through Django's connection, and are bound by the server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from django.db import DatabaseError, connection, connections, transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from conversations.exceptions import StorageUnavailable
from conversations.storage import append_messages, load_state, save_state
from conversations.stores.normalized import append_postgresql, load
from conversations.stores.normalized.append import Shape
from conversations.stores.sql.cursors import execute
from flags.phases import Phase
from flags.switches import forced_phase
from tests.support.factories import message, messages, state, texts

pytestmark = pytest.mark.django_db(transaction=True)
postgresql = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="SQLite binds anyway, and has no server"
)


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    with override_settings(CONVERSATIONS={"REQUIRE_OWNER": False}), forced_phase(Phase.NEW_ONLY):
        yield


def test_placeholders_are_the_databases_own_and_percent_signs_stay() -> None:
    sql = "SELECT %s, '%%', '%%s', %s"
    for watched in (nullcontext(), CaptureQueriesContext(connection)):
        with watched:
            assert execute(connections["default"], sql, [1, "x%s"]).fetchall() == [
                (1, "%", "%s", "x%s")
            ]


def test_errors_are_djangos_also_while_rows_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatabaseError):
        execute(connections["default"], "SELECT nothing", [])
    save_state("c", state("a", "b"))
    whole = load._statement

    def failing(*given: Any, **named: Any) -> str:
        # SQLite cannot make the row of the last message; PostgreSQL refuses the whole.
        column = "abs(-9223372036854775808 + (sequence - 2) * (sequence <> 2)) || content"
        return whole(*given, **named).replace("role, content,", f"role, {column},")

    monkeypatch.setattr(load, "_statement", failing)
    # Step by step, after an error of the database.
    assert texts(load_state("c")) == ["a", "b"]


def test_an_execute_wrapper_sees_the_statements() -> None:
    save_state("c", state("a"))
    seen: list[str] = []

    def look(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        seen.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(look):
        load_state("c")
    assert len(seen) == 1
    with CaptureQueriesContext(connection) as captured:
        load_state("c")
    assert len(captured) == 1


def test_a_wrapper_that_refuses_is_obeyed() -> None:
    save_state("c", state("a"))

    def refuse(*args: Any) -> Any:
        raise DatabaseError("not here")

    with connection.execute_wrapper(refuse), pytest.raises(StorageUnavailable):
        load_state("c")


def test_a_broken_transaction_of_the_caller_is_no_place_to_read() -> None:
    save_state("c", state("a"))
    with pytest.raises(transaction.TransactionManagementError), transaction.atomic():
        transaction.set_rollback(True)
        execute(connections["default"], "SELECT 1", [])


def test_another_thread_has_no_part_in_a_connection() -> None:
    failures: list[BaseException] = []
    ours = connections["default"]

    def use() -> None:
        try:
            execute(ours, "SELECT 1", [])
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(failures) == 1
    assert "thread" in str(failures[0])


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A connection whose host has it checked before its first use in a request."""
    monkeypatch.setattr(connection, "health_check_enabled", True)
    monkeypatch.setattr(connection, "health_check_done", True)
    yield
    connection.close()


def cut_off() -> None:
    """End our session on the server, and let a request begin."""
    other = connections.create_connection("default")
    with other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", [connection.connection.info.backend_pid])
    other.close()
    connection.health_check_done = False


@postgresql
def test_a_connection_that_fails_its_health_check_is_replaced(checked: None) -> None:
    save_state("c", state("a"))
    loaded = load_state("c")
    loaded.conversation_history += messages("b")
    cut_off()
    save_state("c", loaded)
    cut_off()
    assert texts(load_state("c")) == ["a", "b"]


def test_a_connection_with_replaced_cursors_is_used_through_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So does a debug toolbar look on, and Django's SimpleTestCase forbid every statement."""
    save_state("c", state("a"))
    given, cursor = [], connection.cursor

    def watched() -> Any:
        given.append(cursor())
        return given[-1]

    monkeypatch.setattr(connection, "cursor", watched, raising=False)
    loaded = load_state("c")
    assert len(given) == 1
    loaded.conversation_history += [message("b"), {"role": "tool", "tool_success": True}]
    save_state("c", loaded)
    append_messages("c", messages("c"), keys=["k"])
    found = load_state("c").conversation_history
    assert found == [*loaded.conversation_history, message("c")]


def test_a_closed_connection_fails_with_djangos_error() -> None:
    """Also where the driver's own refuses to give a cursor: then nothing is executed."""
    save_state("c", state("a"))
    connection.connection.close()
    try:
        with pytest.raises(StorageUnavailable):
            load_state("c")
    finally:
        connection.close()


def test_a_backend_with_cursors_of_its_own_gives_ours_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that chooses the tenant's schema before each cursor would show another tenant's rows."""
    save_state("c", state("a"))
    ours, chosen = connections["default"], []

    class Choosing(type(ours)):  # type: ignore[misc]
        def _cursor(self, name: str | None = None) -> Any:
            chosen.append("tenant")
            return super()._cursor(name)

    monkeypatch.setattr(ours, "__class__", Choosing)
    loaded = load_state("c")
    assert chosen == ["tenant"]
    loaded.conversation_history += [message("b"), {"role": "tool", "tool_success": True}]
    save_state("c", loaded)
    append_messages("c", messages("c"))
    found = load_state("c").conversation_history
    assert found == [*loaded.conversation_history, message("c")]


# Callers who commit for themselves


@pytest.fixture
def without_autocommit() -> Iterator[None]:
    """On PostgreSQL: SQLite's savepoints, as Django makes them there, commit."""
    save_state("c", state("a"))
    transaction.set_autocommit(False)
    yield
    transaction.rollback()
    transaction.set_autocommit(True)


@postgresql
def test_a_save_without_autocommit_is_not_committed(without_autocommit: None) -> None:
    loaded = load_state("c")
    loaded.conversation_history += messages("b")
    for _ in range(2):
        assert save_state("c", loaded)["committed"] is False
        assert texts(load_state("c")) == ["a", "b"]
        transaction.rollback()
        assert texts(load_state("c")) == ["a"]
    save_state("c", loaded)
    transaction.commit()
    loaded.conversation_history += messages("c")
    save_state("c", loaded)
    transaction.commit()
    assert texts(load_state("c")) == ["a", "b", "c"]


@postgresql
@pytest.mark.parametrize("legacy", ["memory_chunks", None])
def test_a_statement_that_fails_costs_nothing_of_a_transaction_without_autocommit(
    legacy: str | None, without_autocommit: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = append_postgresql._statement

    def failing(shape: Shape) -> str:
        return whole(shape).replace("RETURNING", "AND 1 / (revision - revision) > 0 RETURNING")

    monkeypatch.setattr(append_postgresql, "_statement", failing)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE conversation_states SET user_input = 'mine'")
    chosen = {"LEGACY": legacy} if legacy else {"REQUIRE_OWNER": False}
    with override_settings(CONVERSATIONS=chosen):
        with nullcontext() if legacy else pytest.raises(StorageUnavailable):
            append_messages("c", messages("b"))
        assert load_state("c").user_input == "mine"
