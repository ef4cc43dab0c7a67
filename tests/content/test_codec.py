"""Messages, items and fields become columns that every database holds, and come back exactly."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from conversations.content import codec
from conversations.content.codec import (
    decode_item,
    decode_message,
    encode_item,
    encode_message,
    escape,
    storable,
    text_of,
    unescape,
)
from conversations.content.document import DEFAULTS, Document
from conversations.content.field_codec import decode_fields, encode_fields
from tests.support.scale import pure_examples
from tests.support.strategies import ITEM_KEYS, MESSAGE_KEYS, keys, mappings, states, texts, values

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def canonical(value: Any) -> Any:
    return json.loads(json.dumps(value))


def assert_databases_hold(columns: dict[str, Any]) -> None:
    """Every value fits its column on every database."""
    for name, value in columns.items():
        if isinstance(value, str):
            assert storable(value), name
            value.encode("utf-8")
        elif isinstance(value, int) and not isinstance(value, bool):
            assert -(2**63) <= value < 2**63, name
        elif isinstance(value, float):
            assert 0 <= value <= 1, name


@given(text=texts)
@settings(max_examples=pure_examples(1000))
def test_an_escaped_text_is_storable_and_comes_back(text: str) -> None:
    escaped = escape(text)
    assert storable(escaped)
    assert unescape(escaped) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x00b", "a\\u0000b"),
        ("\ud800", "\\ud800"),
        ("\\u0000", "\\\\u0000"),
        ("back\\slash", "back\\\\slash"),
        ("日本語 😀\n", "日本語 😀\n"),
    ],
)
def test_an_escaped_text_stays_readable(text: str, expected: str) -> None:
    assert escape(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", True), ("日本語 😀", True), ("\\", True), ("\x00", False), ("\udfff", False)],
)
def test_nul_and_lone_surrogates_alone_are_not_storable(text: str, expected: bool) -> None:
    assert storable(text) is expected


@pytest.mark.long
@given(message=mappings(MESSAGE_KEYS) | values)
@settings(max_examples=pure_examples(2000))
def test_a_message_comes_back_from_its_columns(message: Any) -> None:
    columns = encode_message(canonical(message), now=NOW)
    assert_databases_hold(columns)
    assert json.dumps(decode_message(columns)) == json.dumps(canonical(message))


@pytest.mark.long
@example(given=[{"content": "x", "role": "tool", "tool_success": good} for good in (True, False)])
@given(given=st.lists(mappings(MESSAGE_KEYS) | values, max_size=10))
@settings(max_examples=pure_examples(500))
def test_messages_of_one_batch_come_back_each_from_its_own_columns(given: list[Any]) -> None:
    """Their JSON texts are parsed together, and SQLite gives 0 and 1 for what is true or not."""
    expected = canonical(given)
    encoded = [encode_message(message, now=NOW) for message in expected]
    for columns in encoded:
        if columns["tool_success"] is not None:
            columns["tool_success"] = int(columns["tool_success"])
    rows = [(*(columns[name] for name in codec.MESSAGE_COLUMNS), 1, b"") for columns in encoded]
    assert json.dumps(codec.decode_messages(rows)) == json.dumps(expected)


@pytest.mark.long
@given(item=mappings(ITEM_KEYS) | values)
@settings(max_examples=pure_examples(2000))
def test_an_item_comes_back_from_its_columns(item: Any) -> None:
    columns = encode_item(canonical(item), now=NOW)
    assert_databases_hold(columns)
    assert json.dumps(decode_item(columns)) == json.dumps(canonical(item))


@given(state=states())
@settings(max_examples=pure_examples(500))
def test_fields_come_back_from_their_columns(state: Any) -> None:
    fields = Document.from_dict(canonical(state.to_dict())).fields
    columns = encode_fields(fields)
    assert_databases_hold(columns)
    assert json.dumps(decode_fields(columns)) == json.dumps(fields)


@given(unknown=st.dictionaries(keys.filter(lambda name: name not in DEFAULTS), values, max_size=5))
@settings(max_examples=pure_examples(500))
def test_unknown_fields_keep_their_order(unknown: dict[str, Any]) -> None:
    fields = Document.from_dict(canonical(unknown)).fields
    assert list(decode_fields(encode_fields(fields))) == list(fields)


def test_a_plain_message_fills_columns_and_nothing_else() -> None:
    message = {
        "role": "tool",
        "content": "22 °C",
        "message_type": "result",
        "tool_name": "weather",
        "tool_success": True,
        "tool_call_id": "call_1",
    }
    assert encode_message(message, now=NOW) == {
        **message,
        "tool_calls": None,
        "extra": "",
        "timestamp": NOW,
    }


def test_a_plain_item_fills_columns_and_nothing_else() -> None:
    item = {
        "content": "likes tea",
        "source": "chat",
        "relevance_score": 0.5,
        "context_type": "preference",
        "role": "user",
        "focus_area": "food",
        "preference_type": "drink",
    }
    columns = encode_item(item, now=NOW)
    role = columns.pop("original_role")
    assert role == item.pop("role")
    assert columns == {**item, "extra": "", "timestamp": NOW}


def test_tool_calls_are_a_column_with_the_arguments_as_they_were() -> None:
    arguments = '{"b":1.0,  "a": 1e22}'
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}]
    columns = encode_message({"role": "assistant", "content": None, "tool_calls": calls}, now=NOW)
    assert json.loads(columns["tool_calls"]) == calls
    assert columns["content"] is None
    decoded = decode_message(columns)
    assert decoded == {"role": "assistant", "content": None, "tool_calls": calls}
    assert decoded["tool_calls"][0]["function"]["arguments"] == arguments


def test_odd_messages_leave_the_orders_of_keys_their_room() -> None:
    """A text is looked up and parsed a second time for each message, once there is no room."""
    shapes = codec._Shapes()
    for number in range(300):
        odd = encode_message({"role": "user", "id": str(number), "content": "x"}, now=NOW)
        assert odd["extra"].startswith(shapes.BEGIN)
        assert shapes[odd["extra"]] is None
    tool = {"tool_name": "f", "role": "tool", "content": "x"}
    shape = shapes[encode_message(tool, now=NOW)["extra"]]
    assert shape is not None
    assert shape[0] == tuple(tool)
    assert len(shapes) == 1


def test_more_orders_of_keys_than_there_is_room_for_are_told_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(codec._Shapes, "MOST", 1)
    shapes = codec._Shapes()
    for tool in ({"tool_name": "f", "role": "tool"}, {"content": "x", "role": "user"}) * 2:
        shape = shapes[encode_message(tool, now=NOW)["extra"]]
        assert shape is not None
        assert shape[0] == tuple(tool)
    assert len(shapes) == 1


def test_null_and_absent_are_told_apart() -> None:
    for message in ({"role": None}, {}, {"content": None}, {"tool_calls": None}, {"a": None}):
        assert decode_message(encode_message(message, now=NOW)) == message


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("plain", "plain"),
        ([{"type": "text", "text": "one"}, "two", {"type": "image"}, 3], "one\ntwo"),
        ([], ""),
        (None, None),
        ({"text": "no part"}, None),
        (7, None),
    ],
)
def test_content_is_searchable_text(content: Any, text: str | None) -> None:
    assert text_of(content) == text
    assert encode_message({"content": content}, now=NOW)["content"] == text


def test_a_message_that_is_no_mapping_is_searchable_too() -> None:
    assert encode_message("just a text", now=NOW)["content"] == "just a text"


@pytest.mark.parametrize(
    ("message", "tool_name"),
    [
        ({"role": "tool", "name": "f"}, "f"),
        ({"role": "tool", "name": "f", "tool_name": "g"}, "g"),
        ({"role": "tool", "name": "f", "tool_name": None}, None),
        ({"role": "user", "name": "Ann"}, None),
        ({"role": "tool", "name": "\x00"}, None),
        ({"role": "tool", "name": 5}, None),
    ],
)
def test_a_tools_answer_is_found_by_the_tools_name(message: Any, tool_name: str | None) -> None:
    columns = encode_message(message, now=NOW)
    assert columns["tool_name"] == tool_name
    assert decode_message(columns) == message


@pytest.mark.parametrize(
    ("role", "column"), [("u" * 64, "u" * 64), ("u" * 65, None), (5, None), ("\ud800", None)]
)
def test_a_role_that_does_not_fit_its_column_is_kept_beside_it(role: Any, column: Any) -> None:
    columns = encode_message({"role": role}, now=NOW)
    assert columns["role"] == column
    assert decode_message(columns) == {"role": role}


@pytest.mark.parametrize(
    ("score", "column"),
    [
        (0.25, 0.25),
        (0, 0.0),
        (1, 1.0),
        (1.0, 1.0),
        (-0.0, 0.0),
        (True, None),
        (1.5, None),
        (-1, None),
        ("0.5", None),
        (None, None),
    ],
)
def test_the_score_column_holds_the_quality_and_the_item_its_own_score(
    score: Any, column: float | None
) -> None:
    columns = encode_item({"relevance_score": score}, now=NOW)
    assert columns["relevance_score"] == column
    assert json.dumps(decode_item(columns)) == json.dumps({"relevance_score": score})


@pytest.mark.parametrize("step_count", [2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 10**60])
def test_a_step_count_of_any_size_comes_back(step_count: int) -> None:
    fields = Document.from_dict({"step_count": step_count}).fields
    columns = encode_fields(fields)
    assert_databases_hold(columns)
    assert decode_fields(columns) == fields
