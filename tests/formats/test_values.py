"""The values of a file of any layout: exact, and with one of them in memory."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from typing import Any
from unittest import mock

import pytest
from django.test import override_settings
from hypothesis import given, settings, strategies as st

from conversations.exceptions import InvalidState
from conversations.formats import values as module
from conversations.formats.chats import is_conversation
from conversations.formats.values import Value, values_of
from tests.support.scale import pure_examples

CHATS: list[Any] = [{"id": str(number), "messages": [{"role": "user"}]} for number in range(3)]
AWKWARD = (
    '{"messages": [1, 1.0, -0.0, 1e22, NaN, Infinity, -Infinity, "\\ud800", "\\u0000", "é😀",'
    ' 123456789012345678901234567890, {"b": 1, "a": 2, "b": 3}, "a\\"]}[{", [], {}]}'
)


def read(text: str | bytes, chunk: int = module.CHUNK) -> list[Value]:
    raw = text.encode() if isinstance(text, str) else text
    with mock.patch.object(module, "CHUNK", chunk):
        return list(values_of(io.BytesIO(raw), apart=is_conversation))


def data(text: str | bytes, chunk: int = module.CHUNK) -> list[Any]:
    found = read(text, chunk)
    assert [one.problem for one in found] == [""] * len(found)
    return [one.data for one in found]


LAYOUTS = {
    "lines": "\n".join(map(json.dumps, CHATS)),
    "lines with blanks": "\n\n" + "\r\n\n".join(map(json.dumps, CHATS)) + "\n \n",
    "one array": json.dumps(CHATS),
    "indented array": json.dumps(CHATS, indent=2),
    "a chat a line in an array": "[\n" + ",\n".join(map(json.dumps, CHATS)) + "\n]\n",
    "commas first": "[ " + "\n, ".join(map(json.dumps, CHATS)) + "]",
    "indented, one after the other": "\n".join(json.dumps(one, indent=1) for one in CHATS),
    "an array a line": "\n".join(json.dumps([one]) for one in CHATS),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("chunk", [1, 7, 2**16])
def test_every_layout_gives_every_chat(layout: str, chunk: int) -> None:
    assert data(layout, chunk) == CHATS
    assert data(gzip.compress(layout.encode()), chunk) == CHATS
    assert data(b"\xef\xbb\xbf" + layout.encode(), chunk) == CHATS


def test_an_array_of_messages_is_one_value_and_an_indented_object_as_well() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for indent in (None, 2):
        assert data(json.dumps(messages, indent=indent)) == [messages]
        assert data(json.dumps(CHATS[0], indent=indent)) == CHATS[:1]
    assert data("[]") == [[]]
    assert data("[\n]") == [[]]
    assert data("") == data(" \n\n") == []


@pytest.mark.parametrize("chunk", [1, 5, 2**16])
def test_values_equal_those_of_json_bit_by_bit(chunk: int) -> None:
    wanted = json.dumps(json.loads(AWKWARD))
    for text in (AWKWARD, f"[{AWKWARD}]", f"[\n{AWKWARD},\n{AWKWARD}\n]", f"{AWKWARD}\n{AWKWARD}"):
        assert {json.dumps(one) for one in data(text, chunk)} == {wanted}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=pure_examples(400))
@given(
    chats=st.lists(st.fixed_dictionaries({"messages": st.lists(JSON, max_size=3)}), min_size=1),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    chunk=st.sampled_from([1, 3, 64]),
)
def test_any_file_gives_what_was_put_in(
    chats: list[Any], indent: int | None, ascii_only: bool, chunk: int
) -> None:
    def text(value: Any) -> bytes:
        written = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
        # A lone surrogate can only be written as an escape.
        return written.encode("utf-8", "surrogatepass")

    if not ascii_only:
        try:
            text(chats).decode()
        except UnicodeDecodeError:
            return
    wanted = json.dumps(chats)
    assert json.dumps(data(text(chats), chunk)) == wanted
    assert json.dumps(data(b"\n".join(map(text, chats)), chunk)) == wanted


def test_values_are_named_by_line_and_place() -> None:
    found = read(LAYOUTS["a chat a line in an array"])
    assert [(one.line, one.place) for one in found] == [(2, "[0]"), (3, "[1]"), (4, "[2]")]
    assert [one.line for one in read("\n{}\n\n{}")] == [2, 4]
    assert [one.size for one in read('{"a": 1}\n{}')] == [8, 2]


# What is no JSON


@pytest.mark.parametrize("chunk", [1, 2**16])
@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("no JSON", "column 1: is no JSON: Expecting value"),
        ('{"a": 1', "is no JSON: the line is broken off"),
        ('{"a": "x', "column 9: is no JSON: Invalid control character at"),
        ('[{"role": ', "is no JSON: the line is broken off"),
        ('[{"role": "x"} {}]', "column 16: is no JSON: Expecting ',' delimiter"),
        ("{} {}", "column 4: is no JSON: Extra data"),
        ("[1] 2", "column 5: is no JSON: Extra data"),
        ('{"a": tru}', "column 7: is no JSON: Expecting value"),
        ('"\\u12"', "column 3: is no JSON: Invalid \\uXXXX escape"),
        ("1" * 5000, "column 1: is no JSON that can be read (ValueError)"),
        ("{" * 3 + "[" * 100_000, mock.ANY),
        ("[" * 100_000, "column 2: is no JSON that can be read (RecursionError)"),
        (b'{"a": "\xff"}', "is no UTF-8 at byte 7"),
        ('{"é": "'.encode() + b'\xff"}', "is no UTF-8 at byte 8"),
        (b"\xff\xfe", "is no UTF-8 at byte 0"),
        (b'[{"a": "\xff"}]', "is no UTF-8 at byte 8"),
    ],
)
def test_a_line_that_is_no_json_is_named_and_the_next_one_is_read(
    line: str | bytes, problem: str, chunk: int
) -> None:
    raw = line.encode() if isinstance(line, str) else line
    good = json.dumps(CHATS[0]).encode()
    found = read(b"\n".join([good, raw, good]), chunk)
    assert [(one.line, one.problem) for one in found] == [(1, ""), (2, problem), (3, "")]
    # The first line is no different.
    assert [one.line for one in read(b"\n".join([raw, good]), chunk) if not one.problem] == [2]


def test_the_last_line_may_be_broken_off() -> None:
    for line, problem in (
        ("{", "column 2: is no JSON: Expecting property name enclosed in double quotes"),
        ("[", "column 2: is no JSON: the array has no end"),
        ("[1", "column 3: is no JSON: the array has no end"),
        ('[1, {"a"', "column 9: is no JSON: Expecting ':' delimiter"),
        ("[1,", "column 4: is no JSON: the array has no end"),
    ):
        found = read(f"{{}}\n{line}\n")
        assert [(one.line, one.problem) for one in found] == [(1, ""), (2, problem)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{\n "a": 1,\n "b": no\n}', "line 3: column 7: is no JSON: Expecting value"),
        ('{\n "a": 1\n "b": 2\n}', "line 3: column 2: is no JSON: Expecting ',' delimiter"),
        ('[\n {"messages": []}\n {}\n]', "line 3: column 2: is no JSON: Expecting ',' delimiter"),
        ('[\n {"messages": []},\n {"a": no}]', "line 3: column 8: is no JSON: Expecting value"),
        ('[\n {"messages": []},\n', "line 2: column 19: is no JSON: the array has no end"),
        (b'{\n "a": "\xff"}', "line 2: column 8: is no UTF-8"),
    ],
)
def test_a_document_that_is_broken_is_one_error(text: str | bytes, reason: str) -> None:
    with pytest.raises(InvalidState) as raised:
        read(text)
    assert str(raised.value) == reason


def test_a_damaged_file_is_no_shorter_file() -> None:
    whole = gzip.compress(b"\n".join([json.dumps(CHATS[0]).encode()] * 1000))
    for raw in (whole[:-20], whole[:60] + b"\x00\x00" + whole[62:]):
        with pytest.raises(InvalidState, match="cannot be read"):
            read(raw)


# Memory


@pytest.mark.parametrize("text", ['{"messages": ["', '[{"messages": ["', '[{"role": "', "{}\nno "])
def test_a_value_that_is_too_long_is_not_read_whole(text: str) -> None:
    class Endless(io.RawIOBase):
        taken = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            begin = text.encode() if not self.taken else b""
            buffer[:] = begin + b"x" * (len(buffer) - len(begin))
            self.taken += len(buffer)
            return len(buffer)

    endless = Endless()
    with (
        override_settings(CONVERSATIONS={"MAX_STATE_BYTES": 100_000}),
        pytest.raises(InvalidState, match="is longer than 600000 characters"),
    ):
        list(values_of(endless, apart=is_conversation))  # type: ignore[arg-type]
    assert endless.taken < 4_000_000


@override_settings(CONVERSATIONS={"MAX_STATE_BYTES": 100})
def test_a_list_of_messages_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidState, match=r"^line 1: is longer than 600 characters$"):
        read(json.dumps([{"role": "x" * 90}] * 10))


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_on_one_line_takes_the_memory_of_its_largest_chat(indent: int | None) -> None:
    chat = {"messages": [{"role": "user", "content": "x" * 50_000}] * 4}

    def peak_of(count: int) -> int:
        raw = gzip.compress(json.dumps([chat] * count, indent=indent).encode())
        tracemalloc.start()
        try:
            for one in values_of(io.BytesIO(raw), apart=is_conversation):
                assert one.place
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_of(2)
    assert peak_of(80) < peak_of(40) * 1.1 + 100_000
