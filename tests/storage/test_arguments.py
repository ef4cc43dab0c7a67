"""Bad input is refused by its place, before any SQL."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pytest
from django.test import override_settings

from conversations import storage
from conversations.exceptions import InvalidState
from conversations.state import AgentState
from conversations.storage import (
    append_messages,
    fork_conversation,
    list_conversations,
    list_messages,
    load_state,
    redact_message,
    remove_messages,
    replace_message,
    restore_message,
    save_state,
    should_resume_conversation,
    update_state_partial,
)
from flags.phases import Phase
from tests import api
from tests.support.factories import message, messages, state, texts
from tests.support.strategies import nested

DEEP = nested(500, 1, mapping=False)
CIRCULAR: list[Any] = []
CIRCULAR.append(CIRCULAR)


class NumberForAKey:
    def to_dict(self) -> Any:
        return {1: "a number for a key"}


class NoMapping:
    def to_dict(self) -> Any:
        return ["a list"]


def misspelt() -> AgentState:
    bad = AgentState()
    bad.conversation_histry = messages("x")  # type: ignore[attr-defined]
    return bad


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
    (NumberForAKey(), "state"),
    (NoMapping(), "state"),
    (
        AgentState(conversation_history=["fine", {"at": datetime(2026, 1, 1, tzinfo=UTC)}]),
        "conversation_history[1].at",
    ),
    (AgentState(focus=[CIRCULAR]), "focus[0][0]"),
    (misspelt(), "conversation_histry"),
    (AgentState(last_tool_result=10**5000), "last_tool_result"),
]


# By number: pytest would write ten thousand digits into an id.
@pytest.mark.parametrize(("bad", "path"), BAD_STATES, ids=range(len(BAD_STATES)))
def test_an_invalid_state_is_refused_with_its_place_before_any_sql(
    phase: Phase, no_sql: None, bad: Any, path: str
) -> None:
    with pytest.raises(InvalidState) as refused:
        save_state("c", bad)
    assert refused.value.path == path
    assert str(refused.value).startswith(f"{path}: ")


@pytest.mark.parametrize("field", ["conversation_history", "memory_context", "history", "focus"])
def test_too_deep_nesting_is_refused_before_any_sql(no_sql: None, field: str) -> None:
    with pytest.raises(InvalidState, match="nested deeper than 400 levels") as refused:
        save_state("c", AgentState(**{field: [DEEP]}))
    assert refused.value.path.startswith(f"{field}[0][0]" if "_" in field else f"{field}[0]")


@pytest.mark.parametrize(
    ("call", "path"),
    [
        (lambda: append_messages("c", "text"), "messages"),
        (lambda: append_messages("c", [{"a": object()}]), "messages[0].a"),
        (lambda: append_messages("c", None), "messages"),
        (lambda: append_messages("c", message("x")), "messages"),
        (lambda: append_messages("c", messages("x"), keys="k"), "keys"),
        (lambda: append_messages("c", messages("x"), keys=b"k"), "keys"),
        (lambda: append_messages("c", messages("x"), keys={"k"}), "keys"),
        (lambda: append_messages("c", messages("x"), keys=frozenset("k")), "keys"),
        (lambda: append_messages("c", messages("x"), keys=["k", "l"]), "keys"),
        (lambda: append_messages("c", [{1: "a", "1": "b"}]), "messages[0]"),
        (lambda: load_state("c", state_class=dict), "state_class"),
        (lambda: load_state("c", state_class="dict"), "state_class"),
        (lambda: should_resume_conversation("2026-01-02"), "last_timestamp"),
        (lambda: should_resume_conversation(date(2026, 1, 2)), "last_timestamp"),
        (lambda: remove_messages("c"), "keys_or_sequences"),
        (lambda: remove_messages("c", [1.5]), "keys_or_sequences[0]"),
        (lambda: remove_messages("c", b"ab"), "keys_or_sequences"),
        (lambda: remove_messages("c", {1, 2}), "keys_or_sequences"),
        (lambda: list_messages("c", before=-1), "before"),
        (lambda: list_conversations(None, before="2026-01-01|c"), "before"),
        (lambda: replace_message("c", 1, {"a": {1}}), "message[0].a"),
        (lambda: replace_message("c", 1.5, message("x")), "key_or_sequence"),
        (lambda: replace_message("c", True, message("x")), "key_or_sequence"),
        (lambda: restore_message("c", None), "key_or_sequence"),
        (lambda: restore_message("c", 1, revision=-1), "revision"),
        (lambda: redact_message("c", 1, replacement=None), "replacement"),
        (lambda: redact_message("c", 1, replacement="a\0b"), "replacement"),
        (lambda: redact_message("c", 1, replacement="a\udc80"), "replacement"),
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
    for call in api.CALLS.values():
        with pytest.raises(InvalidState) as refused:
            call(storage, bad, 1)
        assert refused.value.path == "conversation_id"


@pytest.mark.django_db
def test_ids_of_any_script_and_up_to_255_characters_are_kept(phase: Phase) -> None:
    for conversation_id in ("x" * 255, "日本語 ' \" \\ %s {}", " ", "A"):
        save_state(conversation_id, state(conversation_id))
    save_state("a", state("small a"))
    for conversation_id in ("x" * 255, "日本語 ' \" \\ %s {}", " ", "A"):
        assert texts(load_state(conversation_id)) == [conversation_id]


@pytest.mark.django_db
def test_a_uuid_is_an_id(phase: Phase) -> None:
    conversation_id = uuid.uuid4()
    save_state(conversation_id, state("a"))
    assert texts(load_state(str(conversation_id))) == ["a"]


def test_a_value_that_is_too_big_is_refused_by_its_place() -> None:
    with override_settings(
        CONVERSATIONS={"MAX_MESSAGE_BYTES": 100, "MAX_STATE_BYTES": 300, "REQUIRE_OWNER": False}
    ):
        with pytest.raises(InvalidState, match=r"conversation_history\[1\]"):
            save_state("c", state("small", "x" * 200))
        with pytest.raises(InvalidState, match="last_tool_result"):
            save_state("c", state(last_tool_result="x" * 400))
        with pytest.raises(InvalidState, match="state: "):
            save_state("c", state(*["x" * 50] * 5))
