"""A seal says that a list is what it was only where it is, type-strictly, to the last leaf."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from conversations.content.fingerprint import Seal
from tests.support.scale import pure_examples
from tests.support.strategies import values

CALL = {"id": "c", "function": {"name": "f", "arguments": "{}"}, "weights": [1, 2.0, None]}


def sealed() -> list[Any]:
    return [
        {"role": "user", "content": "a", "score": 1.0, "n": 1, "flag": True, "none": None},
        {"role": "assistant", "content": None, "tool_calls": [copy.deepcopy(CALL)]},
        {"role": "tool", "content": "b"},
    ]


def seal_of(messages: list[Any]) -> Seal:
    seal = Seal.of(messages)
    assert seal is not None
    return seal


def test_a_seal_holds_also_with_messages_added_behind() -> None:
    messages = sealed()
    seal = seal_of(messages)
    assert len(seal) == 3
    assert seal.unbroken(messages)
    assert seal.unbroken([*messages, {"role": "user", "content": "c"}])
    # Other lists and mappings of the same objects, as to_dict() of a host's class may give.
    assert seal.unbroken([dict(message) for message in messages])


EDITS: dict[str, Callable[[list[Any]], object]] = {
    "another text": lambda m: m[0].update(content="b"),
    "1.0 for 1": lambda m: m[0].update(n=1.0),
    "1 for 1.0": lambda m: m[0].update(score=1),
    "1 for True": lambda m: m[0].update(flag=1),
    "a key more": lambda m: m[0].update(more=None),
    "a key less": lambda m: m[0].pop("none"),
    "another key": lambda m: m[0].update(other=m[0].pop("none")),
    "another order": lambda m: m[0].update(role=m[0].pop("role")),
    "a call edited in place": lambda m: m[1]["tool_calls"][0]["function"].update(name="g"),
    "a number of a call": lambda m: m[1]["tool_calls"][0]["weights"].__setitem__(0, 1.0),
    "a call added in place": lambda m: m[1]["tool_calls"].append(dict(CALL)),
    "what is no JSON": lambda m: m[1]["tool_calls"].append(object()),
    "a message less": lambda m: m.pop(),
    "a message between": lambda m: m.insert(1, {"role": "user", "content": "x"}),
    "a message moved": lambda m: m.reverse(),
    "two messages split otherwise": lambda m: m[2].update(m.pop(1)),
    "no mapping": lambda m: m.__setitem__(2, "b"),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_every_edit_breaks_it(edit: Callable[[list[Any]], object]) -> None:
    messages = sealed()
    seal = seal_of(messages)
    edit(messages)
    assert not seal.unbroken(messages)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        (),
        None,
        "ab",
        ["a"],
        [{"content": ("a",)}],
        [{1: "a"}],
        [{"content": object()}],
        [{"content": [object()]}],
    ],
)
def test_an_unsealable_value_gets_no_seal(messages: Any) -> None:
    assert Seal.of(messages) is None


def test_a_value_that_is_no_list_breaks_the_seal() -> None:
    messages = sealed()
    assert not seal_of(messages).unbroken(tuple(messages))
    assert not seal_of(messages).unbroken(None)


@given(data=st.data(), messages=st.lists(st.dictionaries(st.text(), values), min_size=1))
@settings(max_examples=pure_examples(300))
def test_an_unbroken_seal_means_the_same_json(data: st.DataObject, messages: list[Any]) -> None:
    """Whatever is edited, and whether that changes anything."""
    messages = json.loads(json.dumps(messages))
    before, seal = json.dumps(messages), seal_of(messages)
    message = data.draw(st.sampled_from(messages))
    if message:
        message[data.draw(st.sampled_from(list(message)))] = data.draw(values)
    if seal.unbroken(messages):
        assert json.dumps(messages) == before
