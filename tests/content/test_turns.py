"""A window of messages parts no tool call from its results, in every format of messages."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.db import connection
from hypothesis import given, settings, strategies as st

from conversations.content import turns
from conversations.content.turns import Turns, first_of
from conversations.exceptions import InvalidState
from conversations.storage import (
    append_messages,
    fork_conversation,
    list_messages,
    load_state,
    save_state,
)
from flags.phases import Phase
from tests.storage.test_statements import statements
from tests.support.factories import message, messages, state
from tests.support.legacy_schema import old_save
from tests.support.scale import pure_examples


def openai(*ids: str) -> list[Any]:
    """Return parallel calls and their results, in OpenAI's form."""
    calls = [{"id": each, "type": "function", "function": {"name": "f"}} for each in ids]
    results = [{"role": "tool", "tool_call_id": each, "content": "7"} for each in ids]
    return [{"role": "assistant", "content": None, "tool_calls": calls}, *results]


# Each is a group that nothing may begin in, whole: its first message is one that can be sent.
GROUPS: dict[str, list[Any]] = {
    "openai": openai("c1", "c2"),
    "openai, legacy form": [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "7"},
    ],
    "openai, responses": [
        {"type": "reasoning", "id": "r", "summary": []},
        {"type": "function_call", "id": "fc1", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "id": "fc2", "call_id": "c2", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "7"},
        {"type": "function_call_output", "call_id": "c2", "output": "9"},
    ],
    "openai, reasoning before an answer": [
        {"type": "reasoning", "id": "r", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
    ],
    "openai, an answer later": [
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"role": "user", "content": "yes, do"},
        {"type": "function_call_output", "call_id": "c1", "output": "7"},
    ],
    "openai, approval": [
        {"type": "mcp_approval_request", "id": "m1", "name": "f"},
        {"type": "mcp_approval_response", "approval_request_id": "m1", "approve": True},
    ],
    "a host's own, without ids": [
        {"role": "assistant", "content": "I look it up."},
        {"role": "Tool", "content": "7"},
    ],
    "anthropic": [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f"}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "7"}]},
    ],
    "anthropic, each result by itself": [
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t1"}, {"type": "tool_use", "id": "t2"}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1"}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t2"}]},
    ],
    "claude agent sdk": [
        {"type": "assistant", "message": {"content": [{"type": "tool_use", "id": "t1"}]}},
        {"type": "user", "message": {"content": [{"type": "tool_result", "tool_use_id": "t1"}]}},
    ],
    "ours": [
        {"role": "assistant", "content": "let me see"},
        {"role": "tool", "content": "7", "tool_name": "f", "tool_success": True},
        {"role": "tool", "content": "9", "tool_name": "g", "tool_success": False},
    ],
    "langchain": [
        {"type": "ai", "data": {"content": "", "tool_calls": [{"name": "f", "id": "l1"}]}},
        {"type": "tool", "data": {"content": "7", "tool_call_id": "l1"}},
    ],
    "langchain, in openai's keywords": [
        {"type": "ai", "content": "", "additional_kwargs": {"tool_calls": [{"id": "l1"}]}},
        {"type": "tool", "content": "7", "tool_call_id": "l1"},
    ],
    "pydantic ai": [
        {
            "kind": "response",
            "parts": [
                {"part_kind": "tool-call", "tool_call_id": "p1"},
                {"part_kind": "tool-call", "tool_call_id": "p2"},
            ],
        },
        {
            "kind": "request",
            "parts": [
                {"part_kind": "tool-return", "tool_call_id": "p1"},
                {"part_kind": "retry-prompt", "tool_name": "f", "tool_call_id": "p2"},
            ],
        },
    ],
    "bedrock": [
        {"role": "assistant", "content": [{"toolUse": {"toolUseId": "b1", "name": "f"}}]},
        {"role": "user", "content": [{"toolResult": {"toolUseId": "b1", "content": []}}]},
    ],
    "google": [
        {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {}}}]},
    ],
    "agent framework": [
        {"role": "assistant", "contents": [{"type": "function_call", "call_id": "a1"}]},
        {"role": "tool", "contents": [{"type": "function_result", "call_id": "a1"}]},
    ],
    "ai sdk": [
        {"role": "assistant", "content": [{"type": "tool-call", "toolCallId": "v1"}]},
        {"role": "tool", "content": [{"type": "tool-result", "toolCallId": "v1"}]},
    ],
}
named = pytest.mark.parametrize("name", GROUPS)


@named
def test_nothing_begins_within_a_group(name: str) -> None:
    group = GROUPS[name]
    spoken = [message("a"), *group, message("z", role="assistant")]
    expected = [False, False, *[True] * (len(group) - 1), False]
    assert Turns.of(spoken).joined[: len(spoken)] == expected


@pytest.mark.parametrize(
    "alone",
    [
        "no mapping",
        None,
        ["a", "list"],
        message("text"),
        {"role": 5, "content": "x"},
        {"role": "assistant", "content": [{"type": "text", "text": "hi"}, "part"]},
        {"kind": "request", "parts": [{"part_kind": "retry-prompt", "tool_name": None}]},
        {"type": "web_search_call", "id": "w", "status": "completed"},
        # A provider's own tool: call and result stand in one message.
        {
            "role": "assistant",
            "content": [
                {"type": "server_tool_use", "id": "s1"},
                {"type": "web_search_tool_result", "tool_use_id": "s1"},
            ],
        },
    ],
)
def test_a_message_that_answers_nothing_can_be_sent(alone: Any) -> None:
    assert not any(Turns.of([message("a"), alone, message("b")]).joined)


def test_an_id_that_comes_again_is_the_latest_call() -> None:
    spoken = [*openai("call_0"), message("a"), *openai("call_0")]
    assert Turns.of(spoken).joined[: len(spoken)] == [False, True, False, False, True]


def test_too_deeply_nested_parts_are_not_read() -> None:
    part: Any = {"type": "tool_result", "tool_use_id": "t"}
    for _ in range(turns._DEPTH + 1):
        part = {"content": [part]}
    assert not any(Turns.of([message("a"), part]).joined)


def test_no_window_begins_at_or_before_a_result_with_an_earlier_call() -> None:
    spoken = [message("a"), *openai("c1"), message("b"), *openai("far")[1:], message("d")]
    assert first_of(spoken, 1, more=True) == 5
    assert first_of(spoken, 1, more=False) == 1
    assert first_of(spoken[:5], 1, more=True) is None


def test_results_without_stored_calls_go_with_the_message_before_them() -> None:
    spoken = [message("a"), *openai("c1")[1:], message("b"), *openai("c2")[1:]]
    assert [first_of(spoken, at, more=True) for at in range(4)] == [0, 0, 2, 2]


def test_the_first_that_was_read_begins_a_window_only_if_it_is_the_users() -> None:
    assert first_of(messages("a", "b"), 0, more=True) == 0
    assert first_of([message("a", role="assistant")], 0, more=True) is None
    assert first_of(["no mapping"], 0, more=True) is None
    assert first_of([message("a", role="assistant")], 0, more=False) == 0
    assert first_of(GROUPS["anthropic"][1:], 0, more=True) is None


# Loads


def stored(*spoken: Any) -> list[Any]:
    save_state("c", state())
    append_messages("c", spoken)
    return list(spoken)


def orphaned(given_messages: list[Any]) -> list[str]:
    """Return the ids of the results whose calls are not there, of OpenAI's messages."""
    calls: set[str] = set()
    found = []
    for each in given_messages:
        calls |= {call["id"] for call in each.get("tool_calls") or ()}
        if each["role"] == "tool" and each["tool_call_id"] not in calls:
            found.append(each["tool_call_id"])
    return found


@pytest.mark.django_db
@named
def test_a_window_begins_with_what_can_be_sent(new_only: None, name: str) -> None:
    windows_of(GROUPS[name])


@pytest.mark.django_db
def test_a_window_begins_so_in_every_phase(phase: Phase) -> None:
    windows_of(GROUPS["openai"])


def windows_of(group: list[Any]) -> None:
    """Load every window over a group between two messages, with whole turns and without."""
    spoken = stored(message("a"), *group, message("z", role="assistant"))
    for limit in range(1, len(spoken) + 1):
        loaded = load_state("c", max_messages=limit)
        given_messages = loaded.conversation_history
        first = len(spoken) - limit
        first = 1 if 0 < first <= len(group) else first
        assert given_messages == spoken[first:]
        assert loaded.load_info.hidden_messages == first
        assert loaded.load_info.messages_beyond_limit == len(given_messages) - limit
        exact = load_state("c", max_messages=limit, whole_turns=False)
        assert exact.conversation_history == spoken[len(spoken) - limit :]
        assert exact.load_info.messages_beyond_limit == 0
    assert load_state("c", max_messages=0).conversation_history == []


@pytest.mark.django_db
def test_a_window_is_as_long_as_asked_where_nothing_is_parted(phase: Phase) -> None:
    spoken = stored(*messages(*range(60)))
    loaded = load_state("c", max_messages=5)
    assert loaded.conversation_history == spoken[55:]
    assert loaded.load_info.messages_beyond_limit == 0


@pytest.mark.django_db
def test_a_window_begins_behind_a_group_that_is_too_long(phase: Phase) -> None:
    group = openai(*map(str, range(40)))
    spoken = stored(message("a"), *group, message("b"), message("c"))
    loaded = load_state("c", max_messages=10)
    assert loaded.conversation_history == spoken[-2:]
    assert loaded.load_info.messages_beyond_limit == -8


@pytest.mark.django_db
@pytest.mark.parametrize("length", [40, 1500])
def test_a_window_that_is_nothing_but_a_group_is_the_group(new_only: None, length: int) -> None:
    group = openai(*map(str, range(length)))
    spoken = stored(message("a"), *group)
    loaded = load_state("c", max_messages=10)
    assert loaded.conversation_history == spoken[1:]
    assert loaded.load_info.messages_beyond_limit == length - 9


@pytest.mark.django_db(transaction=True)
def test_whole_turns_take_no_statement_more(new_only: None) -> None:
    stored(message("a"), *openai("c1", "c2"), message("b"))
    for limit in (1, 2, 3):
        assert len(statements(lambda: load_state("c", max_messages=limit))) == 1  # noqa: B023


@pytest.mark.django_db
def test_a_filtered_load_with_whole_turns_removes_nothing(phase: Phase) -> None:
    spoken = stored(message("a"), *openai("c1", "c2"), message("b"))
    loaded = load_state("c", max_messages=2)
    assert loaded.conversation_history == spoken[1:]
    loaded.conversation_history[-1] = message("edited")
    loaded.conversation_history.append(message("d"))
    save_state("c", loaded)
    assert load_state("c").conversation_history == [
        *spoken[:-1],
        message("edited"),
        message("d"),
    ]


@pytest.mark.django_db
def test_a_blob_that_old_code_pruned_within_a_group_is_loaded_whole(phase: Phase) -> None:
    spoken = [*openai("c1")[1:], message("b")]
    held = state()
    held.conversation_history = spoken
    old_save(connection, "c", None, held.to_dict())
    assert load_state("c", max_messages=20).conversation_history == spoken
    assert load_state("c", max_messages=1).conversation_history == spoken[1:]


@pytest.mark.parametrize("flag", [None, 1, "yes"])
def test_whole_turns_is_a_flag(flag: Any) -> None:
    for call in (
        lambda: load_state("c", max_messages=1, whole_turns=flag),
        lambda: list_messages("c", whole_turns=flag),
        lambda: fork_conversation("c", 1, whole_turns=flag),
    ):
        with pytest.raises(InvalidState, match="not True or False") as refused:
            call()
        assert refused.value.path == "whole_turns"


# Pages


def backwards(limit: int, **options: Any) -> list[list[Any]]:
    page = list_messages("c", limit=limit, **options)
    pages = [page]
    while page.has_earlier:
        page = list_messages("c", limit=limit, before=page.first, **options)
        pages.insert(0, page)
    return [[entry.message for entry in page] for page in pages]


def forwards(limit: int, **options: Any) -> list[list[Any]]:
    page = list_messages("c", limit=limit, after=0, **options)
    pages = [page]
    while page.has_later:
        page = list_messages("c", limit=limit, after=page.last, **options)
        pages.append(page)
    return [[entry.message for entry in page] for page in pages]


@pytest.mark.django_db
@named
def test_pages_of_whole_turns_hold_every_message_once(new_only: None, name: str) -> None:
    pages_over(GROUPS[name], 2)


@pytest.mark.django_db
@pytest.mark.parametrize("limit", [1, 3, 50])
def test_pages_of_whole_turns_hold_it_once_in_every_phase(phase: Phase, limit: int) -> None:
    pages_over(GROUPS["openai"], limit)


def pages_over(group: list[Any], limit: int) -> None:
    """Walk both ways over pages that would part a group."""
    spoken = stored(message("a"), *group, message("b"), *group, message("c"))
    texts = [str(each) for each in group[1:]]
    for pages in (backwards(limit, whole_turns=True), forwards(limit, whole_turns=True)):
        assert [each for page in pages for each in page] == spoken
        assert all(pages)
        assert not [page for page in pages if str(page[0]) in texts]


@pytest.mark.django_db
@pytest.mark.parametrize("length", [15, 16, 17, 40])
def test_pages_pass_groups_longer_than_their_extra_rows(new_only: None, length: int) -> None:
    group = openai(*map(str, range(length)))
    spoken = stored(*group, message("b"), *openai("x")[:1])
    for pages in (backwards(2, whole_turns=True), forwards(2, whole_turns=True)):
        assert [each for page in pages for each in page] == spoken
        assert [orphaned(page) for page in pages] == [[]] * len(pages)


turn = st.sampled_from(["text", "one", "two", "three", "alone"])


@pytest.mark.django_db
@given(shape=st.lists(turn, max_size=8), limit=st.integers(1, 6))
@settings(max_examples=pure_examples(60), deadline=None)
def test_any_window_and_page_of_any_turns_can_be_sent(shape: list[str], limit: int) -> None:
    spoken: list[Any] = []
    for number, kind in enumerate(shape):
        count = {"text": 0, "one": 1, "two": 2, "three": 3, "alone": 1}[kind]
        group = openai(*(f"{number}-{each}" for each in range(count)))
        spoken += [message(str(number))] if kind == "text" else group[: 1 if kind == "alone" else 9]
    name = str(uuid.uuid4())
    save_state(name, state())
    append_messages(name, spoken)
    given_messages = load_state(name, max_messages=limit).conversation_history
    assert spoken[len(spoken) - len(given_messages) :] == given_messages
    assert len(given_messages) >= min(limit, len(spoken))
    assert orphaned(given_messages) == []


@pytest.mark.django_db
@pytest.mark.parametrize(
    "options", [{"roles": ["user"]}, {"tool_name": "f"}, {"include_superseded": True}]
)
def test_whole_turns_of_some_messages_are_refused(options: dict[str, Any]) -> None:
    save_state("c", state("a"))
    with pytest.raises(InvalidState, match="give it without") as refused:
        list_messages("c", whole_turns=True, **options)
    assert refused.value.path == "whole_turns"


# Forks


@pytest.mark.django_db
def test_a_fork_that_would_part_a_call_from_its_results_is_refused(phase: Phase) -> None:
    spoken = stored(message("0"), message("a"), *openai("c1", "c2"), message("b"), message("c"))
    for at in (3, 4):
        with pytest.raises(InvalidState, match="give 2 or 5, or whole_turns=False") as refused:
            fork_conversation("c", at)
        assert refused.value.path == "at"
        copy = fork_conversation("c", at, whole_turns=False)
        assert load_state(copy).conversation_history == spoken[:at]
    for at in (0, 1, 2, 5, 6, 7, None):
        copy = fork_conversation("c", at)
        assert load_state(copy).conversation_history == spoken[:at]


@pytest.mark.django_db
def test_a_fork_may_end_with_a_call_that_nothing_answers(phase: Phase) -> None:
    spoken = stored(message("a"), *openai("c1")[:1], message("b"))
    assert load_state(fork_conversation("c", 2)).conversation_history == spoken[:2]


@pytest.mark.django_db
def test_a_fork_names_the_only_place_that_will_do(phase: Phase) -> None:
    stored(*openai("c1"))
    with pytest.raises(InvalidState, match="give 2, or whole_turns=False"):
        fork_conversation("c", 1)
