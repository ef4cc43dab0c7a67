"""Every operation, refused, cut off or inside a caller's transaction: an error stays an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
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
    claim_conversation,
    clear_conversation,
    create_new_conversation,
    delete_conversation,
    fork_conversation,
    get_conversation_id,
    get_conversation_timestamp,
    list_conversations,
    list_messages,
    load_state,
    redact_message,
    remove_messages,
    replace_message,
    restore_message,
    save_state,
    update_state_partial,
)
from flags.phases import Phase
from flags.switches import forced_phase
from tests.factories import UserFactory, message, messages, state, texts
from tests.faults.injection import failing, touches_legacy, touches_tables
from tests.strategies import nested

CALLS: dict[str, Callable[[], Any]] = {
    "save_state": lambda: save_state("c", state("x")),
    "load_state": lambda: load_state("c"),
    "load_state filtered": lambda: load_state("c", 0.5, max_messages=1),
    "append_messages": lambda: append_messages("c", messages("x"), create=True),
    "append_messages keyed": lambda: append_messages("c", messages("x"), keys=["k"]),
    "update_state_partial": lambda: update_state_partial("c", {"step_count": 9}),
    "replace_message": lambda: replace_message("c", 1, message("x")),
    "remove_messages": lambda: remove_messages("c", last=1),
    "restore_message": lambda: restore_message("c", 1),
    "redact_message": lambda: redact_message("c", 1),
    "list_messages": lambda: list_messages("c"),
    "list_conversations": lambda: list_conversations(None),
    "get_conversation_id": lambda: get_conversation_id(1),
    "get_conversation_timestamp": lambda: get_conversation_timestamp(None, "c"),
    "create_new_conversation": lambda: create_new_conversation(),
    "clear_conversation": lambda: clear_conversation("c"),
    "claim_conversation": lambda: claim_conversation("c", 1),
    "fork_conversation": lambda: fork_conversation("c"),
    "delete_conversation": lambda: delete_conversation("c"),
}


@pytest.fixture
def no_sql() -> Iterator[None]:
    """Fail on any statement."""

    def refuse(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        raise AssertionError(f"a statement was executed: {sql}")

    with connection.execute_wrapper(refuse):
        yield


# Bad input: named, before any SQL

DEEP = nested(500, 1, mapping=False)
BAD_STATES: list[tuple[Any, str]] = [
    (None, "state"),
    ({}, "state"),
    ("text", "state"),
    (AgentState, "state"),
    (object(), "state"),
    (AgentState(user_input=None), "user_input"),  # type: ignore[arg-type]
    (AgentState(step_count="1"), "step_count"),  # type: ignore[arg-type]
    (AgentState(step_count=True), "step_count"),
    (AgentState(focus=None), "focus"),  # type: ignore[arg-type]
    (AgentState(memory_context={}), "memory_context"),  # type: ignore[arg-type]
    (AgentState(conversation_history="hi"), "conversation_history"),  # type: ignore[arg-type]
    (
        AgentState(conversation_history=[{"role": "user"}, {"content": {1, 2}}]),
        "conversation_history[1].content",
    ),
    (AgentState(conversation_history=[datetime(2026, 1, 2)]), "conversation_history[0]"),
    (AgentState(memory_context=[{"score": object()}]), "memory_context[0].score"),
    (AgentState(last_tool_result={"a": [b"x"]}), "last_tool_result.a[0]"),
    (AgentState(history=[{(1, 2): 3}]), "history[0]"),
    (AgentState(extra={"user_input": "x"}), "extra.user_input"),
    (AgentState(extra={5: "x"}), "state"),
    (AgentState(extra=None), "extra"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("bad", "path"), BAD_STATES)
def test_what_is_no_state_is_refused_with_its_place_before_any_sql(
    phase: Phase, no_sql: None, bad: Any, path: str
) -> None:
    with pytest.raises(InvalidState) as refused:
        save_state("c", bad)
    assert refused.value.path == path
    assert str(refused.value).startswith(f"{path}: ")


@pytest.mark.parametrize("field", ["conversation_history", "memory_context", "history", "focus"])
def test_what_is_too_deep_is_refused_before_any_sql(no_sql: None, field: str) -> None:
    with pytest.raises(InvalidState, match="nested deeper than 400 levels") as refused:
        save_state("c", AgentState(**{field: [DEEP]}))
    assert refused.value.path.startswith(f"{field}[0][0]" if "_" in field else f"{field}[0]")


@pytest.mark.parametrize(
    ("call", "path"),
    [
        (lambda: append_messages("c", "text"), "messages"),
        (lambda: append_messages("c", [{"a": object()}]), "messages[0].a"),
        (lambda: append_messages("c", None), "messages"),
        (lambda: replace_message("c", 1, {"a": {1}}), "message[0].a"),
        (lambda: replace_message("c", 1.5, message("x")), "key_or_sequence"),
        (lambda: replace_message("c", True, message("x")), "key_or_sequence"),
        (lambda: restore_message("c", None), "key_or_sequence"),
        (lambda: restore_message("c", 1, revision=-1), "revision"),
        (lambda: redact_message("c", 1, replacement=None), "replacement"),
        (lambda: fork_conversation("c", -1), "at"),
        (lambda: load_state("c", max_messages=-1), "max_messages"),
        (lambda: load_state("c", max_messages=1.0), "max_messages"),
        (lambda: load_state("c", max_context_items="1"), "max_context_items"),
        (lambda: load_state("c", "high"), "context_quality_threshold"),
        (lambda: load_state("c", float("nan")), "context_quality_threshold"),
        (lambda: load_state("c", True), "context_quality_threshold"),
        (lambda: update_state_partial("c", [("step_count", 1)]), "updates"),
        (lambda: update_state_partial("c", {"history": []}), "updates.history"),
        (lambda: update_state_partial("c", {"step_count": "1"}), "updates.step_count"),
        (lambda: update_state_partial("c", {"focus_areas": None}), "updates.focus_areas"),
        (lambda: update_state_partial("c", {"user_input": 5}), "updates.user_input"),
        (
            lambda: update_state_partial("c", {"last_tool_result": {"a": {1}}}),
            "updates.last_tool_result.a",
        ),
        (lambda: update_state_partial("c", {"new_messages": "hi"}), "updates.new_messages"),
        (
            lambda: update_state_partial("c", {"new_context_items": [{"a": b""}]}),
            "updates.new_context_items[0].a",
        ),
    ],
)
def test_bad_arguments_are_refused_with_their_place_before_any_sql(
    no_sql: None, call: Callable[[], Any], path: str
) -> None:
    with pytest.raises(InvalidState) as refused:
        call()
    assert refused.value.path == path


@pytest.mark.parametrize("bad", [None, 5, "", "x" * 256, "\x00", "a\ud800", b"c", ["c"]])
def test_a_bad_id_is_refused_before_any_sql(no_sql: None, bad: Any) -> None:
    for call in (
        lambda: load_state(bad),
        lambda: save_state(bad, state("x")),
        lambda: append_messages(bad, messages("x")),
        lambda: list_messages(bad),
        lambda: delete_conversation(bad),
        lambda: fork_conversation(bad),
    ):
        with pytest.raises(InvalidState) as refused:
            call()
        assert refused.value.path == "conversation_id"


@pytest.mark.django_db
def test_ids_of_any_script_and_up_to_255_characters_are_kept(phase: Phase) -> None:
    for conversation_id in ("x" * 255, "日本語 ' \" \\ %s {}", " ", "A"):
        save_state(conversation_id, state(conversation_id))
    save_state("a", state("small a"))
    for conversation_id in ("x" * 255, "日本語 ' \" \\ %s {}", " ", "A"):
        assert texts(load_state(conversation_id)) == [conversation_id]


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
        if sql.startswith("INSERT"):
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
