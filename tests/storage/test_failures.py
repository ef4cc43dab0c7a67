"""Every operation, refused, cut off or inside a caller's transaction: an error stays an error."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import DatabaseError, connection, transaction

from conversations import aio
from conversations.exceptions import (
    ConversationNotFound,
    ConversationStoreError,
    InvalidState,
    MessageNotFound,
    StorageUnavailable,
)
from conversations.state import AgentState
from conversations.storage import (
    append_messages,
    load_state,
    remove_messages,
    replace_message,
    save_state,
)
from flags.phases import Phase
from flags.switches import forced_phase
from tests import api
from tests.faults.injection import failing, touches_legacy, touches_messages, touches_tables
from tests.support.factories import UserFactory, message, messages, state, texts

CALLS = api.unasked()


# A store that is down


@pytest.mark.django_db
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_dead_database_is_storage_unavailable(phase: Phase, call: Callable[[], Any]) -> None:
    save_state("c", state("a"))
    replace_message("c", 1, message("b"))
    with failing(lambda sql: "waffle" not in sql), pytest.raises(StorageUnavailable):
        call()
    assert texts(load_state("c")) == ["b"]


@pytest.mark.django_db
def test_missing_is_answered_only_when_every_store_that_may_hold_it_has_answered(
    phase: Phase,
) -> None:
    assert load_state("c") == AgentState(user_input="")
    for down in (touches_legacy, touches_tables):
        with failing(down) as failed, pytest.raises(StorageUnavailable):
            load_state("c")
        assert failed


@pytest.mark.django_db
@pytest.mark.parametrize("down", [touches_legacy, touches_tables], ids=["legacy", "tables"])
def test_a_load_never_gives_an_empty_state_for_one_that_is_there(
    phase: Phase, down: Callable[[str], bool]
) -> None:
    for writing in Phase:
        with forced_phase(writing):
            save_state(writing.label, state("a"))
    for writing in Phase:
        with failing(down):
            try:
                found = load_state(writing.label)
            except StorageUnavailable:
                continue
        assert texts(found) == ["a"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.NEW_READS, Phase.NEW_PRIMARY])
@pytest.mark.parametrize("down", [touches_messages, touches_legacy], ids=["tables", "legacy"])
def test_with_two_legs_one_that_fails_does_not_fail_the_save(phase: Phase, down: Any) -> None:
    with forced_phase(phase):
        save_state("c", state("a"))
        loaded = load_state("c")
        loaded.conversation_history += messages("b")
        with failing(down) as failed:
            result = save_state("c", loaded)
        assert failed
        survivor = "legacy" if down is touches_messages else "tables"
        decides = "legacy" if phase == Phase.DUAL_WRITE else "tables"
        assert result["stores"] == [survivor]
        assert result["fallback"] is (survivor != decides)
    for later in Phase:
        with forced_phase(later):
            found = load_state("c")
            assert texts(found) == ["a", "b"]
            assert not found.load_info.stale


@pytest.mark.django_db(transaction=True)
def test_in_new_only_a_failure_of_the_tables_is_an_error() -> None:
    with forced_phase(Phase.NEW_ONLY):
        save_state("c", state("a"))
        with failing(touches_messages), pytest.raises(StorageUnavailable):
            append_messages("c", messages("b"))
        assert texts(load_state("c")) == ["a"]


@pytest.mark.django_db(transaction=True)
def test_operations_that_need_rows_fail_when_the_tables_do() -> None:
    with forced_phase(Phase.LEGACY):
        save_state("c", state("a"))
        with failing(touches_tables), pytest.raises(StorageUnavailable):
            append_messages("c", messages("b"), keys=["k"])
        with failing(touches_legacy), pytest.raises(StorageUnavailable):
            append_messages("c", messages("b"), keys=["k"])
        assert texts(load_state("c")) == ["a"]


@pytest.mark.django_db(transaction=True)
def test_while_legacy_decides_trouble_with_the_tables_stops_no_save() -> None:
    for phase in (Phase.LEGACY, Phase.DUAL_WRITE):
        conversation_id = str(uuid.uuid4())
        with forced_phase(phase):
            append_messages(conversation_id, messages("a"), keys=["k"], create=True)
            with failing(touches_tables):
                append_messages(conversation_id, messages("b"))
                stale = load_state(conversation_id)
                assert stale.load_info.stale
                with pytest.raises(StorageUnavailable):
                    load_state("missing")
                with pytest.raises(StorageUnavailable):
                    append_messages("missing", messages("b"))
            assert texts(stale) == ["a", "b"]
            assert texts(load_state(conversation_id)) == ["a", "b"]


# Inside the caller's transaction


@pytest.mark.django_db(transaction=True)
def test_outside_a_transaction_a_save_is_committed(phase: Phase) -> None:
    assert save_state("c", state("a"))["committed"] is True
    assert append_messages("c", messages("b"))["committed"] is True


@pytest.mark.django_db(transaction=True)
def test_inside_a_transaction_a_save_is_written_and_not_yet_committed(phase: Phase) -> None:
    with transaction.atomic():
        result = save_state("c", state("a"))
        assert (result["success"], result["committed"]) == (True, False)
        assert append_messages("c", messages("b"))["committed"] is False
        assert texts(load_state("c")) == ["a", "b"]
    assert texts(load_state("c")) == ["a", "b"]


class Undo(Exception):
    pass


@pytest.mark.django_db(transaction=True)
def test_a_save_in_a_savepoint_that_was_rolled_back_is_made_again(phase: Phase) -> None:
    save_state("c", state("a"))
    held = load_state("c")
    held.conversation_history.extend(messages("b"))
    with transaction.atomic():
        with pytest.raises(Undo), transaction.atomic():
            save_state("c", held)
            raise Undo
        save_state("c", held)
    assert texts(load_state("c")) == ["a", "b"]


@pytest.mark.django_db(transaction=True)
def test_two_saves_in_one_transaction_add_everything_once(phase: Phase) -> None:
    save_state("c", state("a"))
    held = load_state("c")
    with transaction.atomic():
        held.conversation_history.extend(messages("b"))
        save_state("c", held)
        held.conversation_history.extend(messages("c"))
        save_state("c", held)
    assert texts(load_state("c")) == ["a", "b", "c"]
    held.conversation_history.extend(messages("d"))
    save_state("c", held)
    assert texts(load_state("c")) == ["a", "b", "c", "d"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_error_caught_inside_a_transaction_takes_nothing_of_the_host(
    phase: Phase, call: Callable[[], Any]
) -> None:
    """FACTS: an error caught without a savepoint ends the block without an exception, and
    without its rows."""
    save_state("c", state("a"))
    replace_message("c", 1, message("b"))
    broken = "SELECT * FROM no_such_table"

    def breaking(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        # A real error of the database, which aborts PostgreSQL's transaction.
        if "conversation" in sql or "memory_" in sql or "auth_user" in sql:
            return execute(broken, None, False, context)
        return execute(sql, params, many, context)

    with transaction.atomic():
        user = UserFactory()
        with connection.execute_wrapper(breaking), pytest.raises(StorageUnavailable):
            call()
    user.refresh_from_db()
    assert texts(load_state("c")) == ["b"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: append_messages("missing", messages("x")), ConversationNotFound),
        (lambda: replace_message("c", 99, message("x")), MessageNotFound),
        (lambda: remove_messages("c", [1, 99]), MessageNotFound),
        (lambda: save_state("c", AgentState(step_count=None)), InvalidState),  # type: ignore
    ],
)
def test_a_refusal_caught_inside_a_transaction_takes_nothing_of_the_host(
    phase: Phase, call: Callable[[], Any], error: type[Exception]
) -> None:
    save_state("c", state("a"))
    with transaction.atomic():
        user = UserFactory()
        append_messages("c", messages("b"))
        with pytest.raises(error):
            call()
    user.refresh_from_db()
    assert texts(load_state("c")) == ["a", "b"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_in_a_broken_transaction_nothing_succeeds(phase: Phase, call: Callable[[], Any]) -> None:
    save_state("c", state("a"))
    with pytest.raises(DatabaseError, match="no_such_table"), transaction.atomic():
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT * FROM no_such_table")
        except DatabaseError:
            transaction.set_rollback(True)
            with pytest.raises(StorageUnavailable):
                call()
            raise
    assert texts(load_state("c")) == ["a"]


@pytest.mark.django_db(transaction=True)
def test_a_connection_killed_inside_a_hosts_transaction_is_never_a_success(phase: Phase) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no connection that could be killed")
    save_state("c", state("a"))
    victim = connection.copy()
    connection.cursor().execute("SELECT 1")

    def killing(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "INSERT" in sql:
            with victim.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
        return execute(sql, params, many, context)

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        [(pid,)] = cursor.fetchall()
    try:
        with (
            pytest.raises((StorageUnavailable, DatabaseError)),
            transaction.atomic(),
            connection.execute_wrapper(killing),
        ):
            append_messages("c", messages("b"))
    finally:
        victim.close()
        connection.close()
    assert texts(load_state("c")) == ["a"]


@pytest.mark.django_db(transaction=True)
def test_a_snapshot_older_than_the_lock_loses_nothing_but_is_refused(phase: Phase) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite's transactions wait before they read")
    with pytest.raises(StorageUnavailable, match="READ COMMITTED"), transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        save_state("c", state("a"))
    assert load_state("c").load_info is None


@pytest.mark.django_db(transaction=True)
def test_a_coroutine_raises_storage_unavailable_too(phase: Phase) -> None:
    save_state("c", state("a"))
    with failing(lambda sql: "waffle" not in sql), pytest.raises(StorageUnavailable):
        async_to_sync(aio.load_state)("c")


def test_an_error_without_a_message_says_what_to_do() -> None:
    for error in (ConversationNotFound, StorageUnavailable, MessageNotFound):
        assert str(error()).endswith(".")
        assert ":" in str(error())
        assert issubclass(error, ConversationStoreError)
    assert str(InvalidState("is wrong", path="a.b")) == "a.b: is wrong"
