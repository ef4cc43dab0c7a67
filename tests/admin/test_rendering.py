"""Messages, context items and stored text of any form are laid out."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, strategies as st

from conversations.admin.rendering import shown_item, shown_message
from conversations.storage import StoredMessage
from flags.admin.text import shown, shown_json, visible

pytestmark = pytest.mark.django_db

KEYS = [
    *("role", "content", "tool_calls", "function_call", "function", "name", "arguments"),
    *("type", "text", "tool_name", "tool_success", "tool_call_id", "input", "id"),
]

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None, categories=None)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_value_can_be_shown_as_a_message(value: Any) -> None:
    message = shown_message(StoredMessage(1, None, value, 1))
    texts = [message.role, *message.labels]
    for block in message.blocks:
        texts += [block.title, block.note, block.content.text]
    item = shown_item(value, score=None)
    shown = "".join([*texts, item.source, item.kind, item.content.text, item.rest.text])
    # A lone surrogate, or a part that is no text, could not be sent to a browser.
    assert shown.encode().decode() == shown


@given(JSON)
def test_indenting_changes_nothing_but_the_layout(value: Any) -> None:
    text = json.dumps(value)
    indented = shown_json(text, limit=10**9)
    assert indented.is_json
    assert re.sub(r"\s", "", visible(json.dumps(json.loads(text), ensure_ascii=False))) == re.sub(
        r"\s", "", indented.text
    )


@pytest.mark.parametrize(
    ("message", "blocks"),
    [
        ({"content": "hello"}, [("text", "", "hello")]),
        ({"content": ["a", {"type": "text", "text": "b"}]}, [("text", "", "a"), ("text", "", "b")]),
        (
            {"content": [{"type": "tool_use", "name": "find", "input": {"n": 1}}]},
            [("call", "find", '{\n  "n": 1\n}')],
        ),
        (
            {"content": [{"type": "image", "url": "x"}]},
            [("part", "image", '{\n  "type": "image",\n  "url": "x"\n}')],
        ),
        (
            {"content": None, "function_call": {"name": "find", "arguments": "[1]"}},
            [("call", "find", "[\n  1\n]")],
        ),
        ({"tool_calls": [{"name": "find", "args": {}}]}, [("call", "find", "{}")]),
        ({"tool_calls": ["odd"]}, [("call", "tool call", "odd")]),
        ({"role": "tool", "content": "[]"}, [("result", "Result", "[]")]),
        ({"role": 5, "why": None}, [("rest", "More fields", '{\n  "role": 5,\n  "why": null\n}')]),
    ],
)
def test_every_form_of_message_is_laid_out(message: Any, blocks: Any) -> None:
    laid_out = shown_message(StoredMessage(1, None, message, 1)).blocks
    assert [(block.kind, block.title, block.content.text) for block in laid_out] == blocks


def test_a_long_text_is_cut_and_says_so() -> None:
    cut = shown("x" * 25_000)
    assert (len(cut.text), cut.hidden) == (20_000, 5_000)
