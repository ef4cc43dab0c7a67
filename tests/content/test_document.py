"""What callers pass is made canonical, or refused with the place named, before any SQL."""

from __future__ import annotations

import json
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from django.contrib.auth.models import Group
from django.utils.translation import gettext_lazy
from hypothesis import given, settings as hypothesis_settings

from conversations.content.digests import digest_of
from conversations.content.document import BASELINE_KEY, DEFAULTS, ITEMS, MESSAGES, Document
from conversations.content.validation import Known, canonical, check_document, check_messages
from conversations.exceptions import InvalidState
from conversations.state import AgentState
from conversations.storage import StoredMessage
from tests.support.scale import pure_examples
from tests.support.strategies import inexact, nested, states


@pytest.mark.long
@given(state=states())
@hypothesis_settings(max_examples=pure_examples(500))
def test_a_document_is_the_legacy_blob(state: AgentState) -> None:
    document = check_document(state.to_dict()).document
    assert document.to_json() == json.dumps(json.loads(json.dumps(state.to_dict())))


@given(value=inexact)
@hypothesis_settings(max_examples=pure_examples(500))
def test_tuples_and_odd_keys_become_what_json_makes_of_them(value: Any) -> None:
    made, size = canonical(value, path="x", max_bytes=10**6)
    text = json.dumps(value)
    assert json.dumps(made) == json.dumps(json.loads(text))
    assert size == len(text)


def test_the_fields_stand_in_the_order_of_the_legacy_format() -> None:
    document = Document.from_dict({"zeta": 1, "step_count": 2, "alpha": 3, "user_input": "hi"})
    assert json.dumps(document.to_dict()) == (
        '{"user_input": "hi", "memory_context": [], "history": [], "step_count": 2, "focus": [],'
        ' "conversation_history": [], "last_tool_result": null, "zeta": 1, "alpha": 3}'
    )


def test_a_document_shares_no_list_with_the_defaults() -> None:
    Document.from_dict({}).messages.append("x")
    assert DEFAULTS[MESSAGES] == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, True),
        (AgentState().to_dict(), True),
        ({"user_input": "x"}, False),
        ({"conversation_history": [None]}, False),
        ({"timestamp": None}, False),
    ],
)
def test_a_document_is_empty_when_it_says_nothing(data: dict[str, Any], expected: bool) -> None:
    assert Document.from_dict(data).empty is expected


def test_digests_tell_messages_from_everything_else() -> None:
    plain = Document.from_dict({})
    spoken = Document.from_dict({MESSAGES: ["a"]})
    noted = Document.from_dict({ITEMS: ["a"]})
    stepped = Document.from_dict({"step_count": 1})
    assert spoken.state_digest == plain.state_digest
    assert spoken.messages_digest != plain.messages_digest
    assert noted.messages_digest == stepped.messages_digest == plain.messages_digest
    assert len({plain.state_digest, noted.state_digest, stepped.state_digest}) == 3


def test_the_baseline_is_no_content() -> None:
    assert BASELINE_KEY not in check_document({BASELINE_KEY: {"token": "x"}}).document.to_dict()


# Refusals


def self_containing() -> list[Any]:
    inner: list[Any] = []
    inner.append(inner)
    return inner


REFUSED: list[tuple[Any, str, str]] = [
    ([], "state", "to_dict() gave a list, not a mapping"),
    ({1: 2}, "state", "the name of a field is a int, not a string"),
    ({"user_input": None}, "user_input", "is a NoneType, not a str"),
    ({"user_input": b""}, "user_input", "is a bytes, not a str"),
    ({"memory_context": None}, "memory_context", "is a NoneType, not a list"),
    ({"memory_context": {}}, "memory_context", "is a dict, not a list"),
    ({"history": "x"}, "history", "is a str, not a list"),
    ({"step_count": 1.0}, "step_count", "is a float, not a int"),
    ({"step_count": True}, "step_count", "is a bool, not a int"),
    ({"step_count": None}, "step_count", "is a NoneType, not a int"),
    ({"focus": "sales"}, "focus", "is a str, not a list"),
    ({"conversation_history": "hi"}, "conversation_history", "is a str, not a list"),
    ({"conversation_history": {1, 2}}, "conversation_history", "is a set, not a list"),
    (
        {"conversation_history": [{}, {"at": datetime(2026, 1, 2)}]},
        "conversation_history[1].at",
        "datetime is no JSON value",
    ),
    (
        {"memory_context": [{"a": [0, {"b": Decimal(1)}]}]},
        "memory_context[0].a[1].b",
        "Decimal is no JSON value",
    ),
    ({"last_tool_result": {"a": {1, 2}}}, "last_tool_result.a", "set is no JSON value"),
    ({"last_tool_result": {(1, 2): 3}}, "last_tool_result", "the key is a tuple, not a string"),
    ({"other": [object()]}, "other[0]", "object is no JSON value"),
    ({"focus": [b"x"]}, "focus[0]", "bytes is no JSON value"),
    ({"history": self_containing()}, "history[0]", "contains itself"),
    ({"other": 10**5000}, "other", "int is no JSON value"),
]


@pytest.mark.parametrize(("data", "path", "message"), REFUSED)
def test_a_value_that_json_cannot_hold_is_refused_with_its_place(
    data: Any, path: str, message: str
) -> None:
    with pytest.raises(InvalidState) as refused:
        check_document(data)
    assert refused.value.path == path
    assert str(refused.value).startswith(f"{path}: {message}")


# What json.dumps takes although JSON does not have it, and what is stored.
class Mode(StrEnum):
    FAST = "fast"


class Old(str, Enum):  # noqa: UP042  (as hosts wrote it before StrEnum)
    FAST = "fast"


class Level(IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: int


class Text(str):
    pass


class Share(float):
    pass


CHANGED: list[tuple[Any, str]] = [
    ((1, (2, ())), "[1, [2, []]]"),
    (Point(1, 2), "[1, 2]"),
    ({1: "a", -1: "b"}, '{"1": "a", "-1": "b"}'),
    ({1.5: "a", 1e22: "b"}, '{"1.5": "a", "1e+22": "b"}'),
    ({True: "a", None: "b"}, '{"true": "a", "null": "b"}'),
    ({Mode.FAST: Mode.FAST, Old.FAST.name: Old.FAST}, '{"fast": "fast", "FAST": "fast"}'),
    ({Level.HIGH: Level.HIGH}, '{"3": 3}'),
    ([Text("a"), Share(0.5)], '["a", 0.5]'),
    (OrderedDict(b=1, a=2), '{"b": 1, "a": 2}'),
    (defaultdict(list, a=(1,)), '{"a": [1]}'),
    ("\ud83d\ude00", '"\\ud83d\\ude00"'),
]


@pytest.mark.parametrize(("value", "stored"), CHANGED, ids=range(len(CHANGED)))
def test_a_value_like_json_is_stored_as_json_dumps_writes_it(value: Any, stored: str) -> None:
    made, _ = canonical(value, path="x", max_bytes=1000)
    assert json.dumps(made) == stored == json.dumps(value)
    (message,) = check_messages([{"content": value}])
    document = check_document({MESSAGES: [value], "other": value}).document
    assert json.dumps([message["content"], document.messages[0], document.fields["other"]]) == (
        f"[{stored}, {stored}, {stored}]"
    )
    # The plain types, so that digests and stores never see another one.
    assert digest_of(made) == digest_of(json.loads(stored))


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({1: "a", "1": "b"}, ""),
        ({"a": [{None: 1, "null": 2}]}, ".a[0]"),
        ((0, {"\ud83d\ude00": 1, "\U0001f600": 2}), "[1]"),
        ({1.0: {Level.HIGH: 1, "3": 2}}, ".1.0"),
    ],
)
def test_keys_that_are_one_in_json_are_refused_since_a_value_would_be_lost(
    value: Any, place: str
) -> None:
    for check in (
        lambda: check_messages([value]),
        lambda: check_document({"messages": [value]}),
    ):
        with pytest.raises(InvalidState, match="two of its keys are one in JSON") as refused:
            check()
        assert refused.value.path == f"messages[0]{place}"


def test_names_of_fields_that_are_one_in_json_are_refused() -> None:
    with pytest.raises(InvalidState, match="the names of two fields are one in JSON"):
        check_document({"\ud83d\ude00": 1, "\U0001f600": 2})


def test_keys_alike_to_python_alone_are_kept_as_they_are() -> None:
    value = {"1": 1, "01": 2, "True": 3, "true": 4, "é": 5, "e\u0301": 6, "nan": float("nan")}
    assert json.dumps(check_messages([value])) == json.dumps([value])


# Objects of SDKs and of Python


class Model:
    """What pydantic's models have, which yield their fields when iterated."""

    secret = "s3cret"

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:
        return {"content": self.secret}

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump()

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self.model_dump().items())

    def __repr__(self) -> str:
        return self.secret


class OldModel:
    __fields__ = {"content": str}

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter([("content", "s3cret")])


class Sdk:
    def to_dict(self) -> dict[str, Any]:
        return {}


class Attrs:
    __attrs_attrs__ = ()


class Struct:
    __struct_fields__ = ()


class Array:
    def tolist(self) -> list[Any]:
        return []


@dataclass
class Data:
    content: str = "s3cret"


class Colour(Enum):
    RED = "s3cret"


OBJECTS: list[tuple[Any, str]] = [
    (Model(), "Model is no JSON value: call its model_dump(mode='json')"),
    (OldModel(), "OldModel is no JSON value: call its dict()"),
    (Sdk(), "Sdk is no JSON value: call its to_dict()"),
    (Data(), "Data is no JSON value: use dataclasses.asdict()"),
    (Attrs(), "Attrs is no JSON value: use attrs.asdict()"),
    (Struct(), "Struct is no JSON value: use msgspec.to_builtins()"),
    (Array(), "Array is no JSON value: call its tolist()"),
    (Model, "type is no JSON value: pass an instance, not its class"),
    (UUID(int=5), "UUID is no JSON value: use str()"),
    (ValueError("s3cret"), "ValueError is no JSON value: use str()"),
    (Decimal("1.5"), "Decimal is no JSON value: use str() or float()"),
    (b"s3cret", "bytes is no JSON value: decode it, or use base64"),
    (datetime(2026, 1, 2), "datetime is no JSON value: use isoformat()"),
    (date(2026, 1, 2), "date is no JSON value: use isoformat()"),
    (timedelta(1), "timedelta is no JSON value: use total_seconds()"),
    ({"s3cret"}, "set is no JSON value: use sorted() or list()"),
    (frozenset({"s3cret"}), "frozenset is no JSON value: use sorted() or list()"),
    (MappingProxyType({"s3cret": 1}), "mappingproxy is no JSON value: use dict()"),
    ((text for text in ["s3cret"]), "generator is no JSON value: use list()"),
    (range(3), "range is no JSON value: use list()"),
    (Colour.RED, "Colour is no JSON value: use its value"),
    (gettext_lazy("s3cret"), "__proxy__ is no JSON value: use str()"),
    (Group(name="s3cret"), "Group is no JSON value: use django.forms.models.model_to_dict()"),
    (StoredMessage(1, None, "s3cret", 1), "StoredMessage is no JSON value: pass its message"),
    (10**5000, "int is no JSON value: it has more digits than Python writes"),
    (object(), "object is no JSON value: pass a value that json.dumps takes"),
]


@pytest.mark.parametrize(("value", "expected"), OBJECTS, ids=range(len(OBJECTS)))
def test_an_object_is_refused_by_its_place_with_the_call_that_makes_json_of_it(
    value: Any, expected: str
) -> None:
    for check, path in (
        (lambda: check_messages([{"a": [value]}]), "messages[0].a[0]"),
        (lambda: check_messages([value]), "messages[0]"),
        (lambda: check_document({MESSAGES: [{"a": value}]}), f"{MESSAGES}[0].a"),
        (lambda: check_document({"last_tool_result": value}), "last_tool_result"),
    ):
        with pytest.raises(InvalidState) as refused:
            check()
        assert str(refused.value) == f"{path}: {expected}"
        assert refused.value.path == path


@pytest.mark.parametrize("key", [(1, 2), UUID(int=5), b"s3cret", Colour.RED, frozenset()])
def test_a_key_that_json_cannot_write_is_refused_by_its_type(key: Any) -> None:
    with pytest.raises(InvalidState) as refused:
        check_messages([{"a": {key: 1}}])
    name = type(key).__name__
    assert str(refused.value) == f"messages[0].a: the key is a {name}, not a string"


@pytest.mark.parametrize("one", [Model(), OldModel(), {"s3cret"}, frozenset({1})])
def test_one_object_or_a_set_is_no_list_of_messages(one: Any) -> None:
    with pytest.raises(InvalidState, match=f"messages: is a {type(one).__name__}, not a list"):
        check_messages(one)


@pytest.mark.parametrize("mapping", [False, True])
@pytest.mark.parametrize("name", ["conversation_history", "memory_context", "history", "other"])
def test_nesting_up_to_the_limit_is_kept_and_beyond_it_refused(
    settings: Any, name: str, mapping: bool
) -> None:
    settings.CONVERSATIONS = {"MAX_DEPTH": 30}
    deepest = nested(30, 1, mapping=mapping)
    value = [deepest] if name in (MESSAGES, ITEMS) else nested(29, 1, mapping=mapping)
    whole = value if name in (MESSAGES, ITEMS) else [value]
    assert check_document({name: whole}).document.to_dict()[name] == whole
    with pytest.raises(InvalidState, match="nested deeper than 30 levels") as refused:
        check_document({name: [[whole[0]]]})
    assert refused.value.path.startswith(name)


def test_nesting_deeper_than_python_can_follow_is_refused() -> None:
    with pytest.raises(InvalidState, match="nested deeper than 400 levels") as refused:
        check_document({MESSAGES: [{"a": nested(100_000, 1, mapping=False)}]})
    assert refused.value.path.startswith("conversation_history[0].a[0][0]")
    assert len(refused.value.path) <= 201


def test_a_message_that_is_too_big_is_refused_and_named(settings: Any) -> None:
    settings.CONVERSATIONS = {"MAX_MESSAGE_BYTES": 20}
    check_document({MESSAGES: ["x" * 18]})
    with pytest.raises(InvalidState, match="21 bytes of JSON are more than the limit of 20") as e:
        check_document({MESSAGES: ["x", "x" * 19]})
    assert e.value.path == "conversation_history[1]"


def test_a_state_that_is_too_big_is_refused(settings: Any) -> None:
    settings.CONVERSATIONS = {"MAX_STATE_BYTES": 100}
    check_document({MESSAGES: ["x" * 20]})
    with pytest.raises(InvalidState, match="are more than the limit of 100") as refused:
        check_document({MESSAGES: ["x" * 20] * 5})
    assert refused.value.path == "state"


@pytest.mark.parametrize("values", ["text", b"bytes", {"role": "user"}, 5, None])
def test_messages_to_append_must_be_a_list(values: Any) -> None:
    with pytest.raises(InvalidState) as refused:
        check_messages(values)
    assert str(refused.value) == f"messages: is a {type(values).__name__}, not a list"


def test_messages_may_come_from_a_generator() -> None:
    assert check_messages({"n": (n,)} for n in range(2)) == [{"n": [0]}, {"n": [1]}]


# What a load gave need not be looked at again, unless it is something else now


def test_an_unchanged_given_message_is_taken_as_it_is() -> None:
    given = {"content": "x"}
    document = check_document({MESSAGES: [given]}, messages=Known(digest_of(given))).document
    assert document.messages[0] is given


@pytest.mark.parametrize(
    "changed",
    [{"content": ("x",)}, {"content": ["x"], 1: 2}, {"content": ["y"]}],
)
def test_a_changed_given_message_is_made_canonical(changed: Any) -> None:
    digest = digest_of({"content": ["x"]})
    document = check_document({MESSAGES: [changed]}, messages=Known(digest)).document
    assert json.dumps(document.messages) == json.dumps(json.loads(json.dumps([changed])))


def test_a_spoilt_given_message_is_refused() -> None:
    given = {"content": "x"}
    digest = digest_of(given)
    given["content"] = object()  # type: ignore[assignment]
    with pytest.raises(InvalidState) as refused:
        check_document({MESSAGES: [given]}, messages=Known(digest))
    assert refused.value.path == "conversation_history[0].content"


@pytest.mark.parametrize("now", [[], ["a"], ["b"], ["a", "b", "c"]])
def test_lists_of_any_length_are_compared_with_the_given_ones(now: list[Any]) -> None:
    checked = check_document(
        {MESSAGES: now, ITEMS: now},
        messages=Known(digest_of("a") + digest_of("b")),
        items=Known(digest_of("a")),
    )
    assert (checked.document.messages, checked.document.items) == (now, now)
    assert checked.message_digests == checked.item_digests == b"".join(map(digest_of, now))


def test_the_names_of_fields_are_made_canonical_as_values_are() -> None:
    """What the next load gives must have the digests that this save stores."""
    document = check_document({"\ud83d\ude00": 1, "\ud83d": 2}).document
    assert document.fields["\U0001f600"] == 1
    assert document.fields["\ud83d"] == 2
    again = json.loads(document.to_json())
    assert Document.from_dict(again).state_digest == document.state_digest
