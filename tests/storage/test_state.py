"""A state survives all changes of its callers between a load and a save."""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings, strategies as st

from conversations.content.baseline import Baseline
from conversations.content.digests import digest_of
from conversations.content.document import BASELINE_KEY
from conversations.exceptions import InvalidState
from conversations.state import AgentState, LoadInfo
from tests.support.scale import pure_examples
from tests.support.strategies import states

DIGEST = bytes(range(16))


def baseline(**changes: Any) -> Baseline:
    values: dict[str, Any] = {
        "conversation_id": "c",
        "store": "tables",
        "revision": 7,
        "version": "abc",
        "sequences": [3, 4],
        "message_digests": DIGEST * 2,
        "item_ids": [1024],
        "item_digests": DIGEST,
        "field_digests": {"user_input": DIGEST},
        "history_length": 2,
        "stored_history_length": 3,
        "stored_history_digest": b"h" * 16,
        "hidden_messages": 2,
        "hidden_items": 0,
        "token": "t",
    }
    return Baseline(**values | changes)


def loaded(**changes: Any) -> AgentState:
    info = LoadInfo("tables", 7, hidden_messages=2)
    return AgentState(
        user_input="hi",
        conversation_history=["c", "d"],
        extra={"config": {"a": 1}},
        load_info=info,
        _baseline=baseline(**changes),
    )


def through_json(state: AgentState) -> AgentState:
    return AgentState.from_dict(json.loads(json.dumps(state.to_dict(with_baseline=True))))


JOURNEYS: dict[str, Callable[[AgentState], AgentState]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
    "old pickle": lambda state: pickle.loads(pickle.dumps(state, protocol=2)),
    "replace": lambda state: dataclasses.replace(state, step_count=state.step_count),
    "json": through_json,
}


@pytest.mark.parametrize("journey", JOURNEYS.values(), ids=JOURNEYS)
def test_a_state_and_its_baseline_survive(journey: Callable[[AgentState], AgentState]) -> None:
    state = loaded()
    arrived = journey(state)
    assert arrived == state
    assert arrived._baseline is not None
    assert state._baseline is not None
    assert arrived._baseline.to_json() == state._baseline.to_json()


@pytest.mark.parametrize("name", ["copy", "deepcopy", "pickle", "old pickle", "replace"])
def test_the_load_info_survives_within_python(name: str) -> None:
    assert JOURNEYS[name](loaded()).load_info == LoadInfo("tables", 7, hidden_messages=2)


def test_baseline_and_load_info_take_no_part_in_equality() -> None:
    state = loaded()
    assert state == AgentState(
        user_input="hi", conversation_history=["c", "d"], extra={"config": {"a": 1}}
    )
    assert "baseline" not in repr(state)


@pytest.mark.parametrize(
    ("hidden", "asked", "expected"),
    [
        ({"hidden_messages": 2}, None, True),
        ({"hidden_messages": 0, "hidden_items": 1}, None, True),
        ({"hidden_messages": 0}, None, False),
        ({"hidden_messages": 0}, True, True),
        ({"hidden_messages": 2}, False, False),
    ],
)
def test_to_dict_carries_the_baseline_when_something_is_hidden_or_on_request(
    hidden: dict[str, int], asked: bool | None, expected: bool
) -> None:
    data = loaded(**hidden).to_dict(with_baseline=asked)
    assert (BASELINE_KEY in data) is expected


def test_a_state_of_the_callers_own_has_no_baseline_to_carry() -> None:
    assert BASELINE_KEY not in AgentState().to_dict(with_baseline=True)


def test_to_dict_is_the_legacy_blob() -> None:
    state = AgentState("hi", ["item"], ["step"], 3, ["f"], ["m"], {"r": 1}, extra={"z": 1, "a": 2})
    assert json.dumps(state.to_dict()) == (
        '{"user_input": "hi", "memory_context": ["item"], "history": ["step"], "step_count": 3,'
        ' "focus": ["f"], "conversation_history": ["m"], "last_tool_result": {"r": 1},'
        ' "z": 1, "a": 2}'
    )


@given(state=states())
@settings(max_examples=pure_examples(300))
def test_from_dict_takes_back_what_to_dict_gives(state: AgentState) -> None:
    data = state.to_dict()
    assert json.dumps(AgentState.from_dict(data).to_dict()) == json.dumps(data)


def test_from_dict_gives_absent_fields_their_defaults() -> None:
    assert AgentState.from_dict({"user_input": "hi"}) == AgentState(user_input="hi")


def test_from_dict_keeps_unknown_fields_even_those_named_like_ours() -> None:
    data = {"extra": 1, "load_info": 2, "other": 3}
    state = AgentState.from_dict(data)
    assert state.extra == data
    assert state.load_info is None


@pytest.mark.parametrize("name", ["user_input", "conversation_history", BASELINE_KEY])
def test_extra_may_not_repeat_a_field(name: str) -> None:
    with pytest.raises(InvalidState, match=f"extra.{name}: repeats a field of the state"):
        AgentState(extra={name: 1}).to_dict()


@pytest.mark.parametrize("extra", [None, [], "text", 5])
def test_extra_that_is_no_mapping_is_refused(extra: Any) -> None:
    with pytest.raises(InvalidState, match=f"extra: is a {type(extra).__name__}, not a mapping"):
        AgentState(extra=extra).to_dict()


# An attribute that is no field would be lost


def test_an_attribute_that_is_no_field_is_refused_with_the_field_it_looks_like() -> None:
    for name, near in (
        ("conversation_histry", "conversation_history"),
        ("conversation_messages", "conversation_history"),
        ("step_counts", "step_count"),
        ("last_tool_results", "last_tool_result"),
        ("extras", "extra"),
    ):
        state = loaded()
        setattr(state, name, [])
        with pytest.raises(InvalidState, match=f"^{name}: .* did you mean {near}") as refused:
            state.to_dict()
        assert refused.value.path == name
    state = loaded()
    state.tenant = "t"  # type: ignore[attr-defined]
    with pytest.raises(InvalidState, match="tenant: is no field of a state: put it into extra"):
        state.to_dict()


@pytest.mark.parametrize("name", ["copy", "deepcopy", "pickle", "old pickle"])
def test_a_misspelt_attribute_is_refused_wherever_the_state_was(name: str) -> None:
    state = loaded()
    state.conversation_histry = []  # type: ignore[attr-defined]
    with pytest.raises(InvalidState, match="did you mean conversation_history"):
        JOURNEYS[name](state).to_dict()


@dataclasses.dataclass
class Ticket(AgentState):
    """A host's class: fields more, and attributes of its own."""

    ticket: str = ""
    histories: int = 0
    client: ClassVar[Any] = None
    conversation_histories: dict[str, Any] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.conversation_histories = {}
        self.connection = object()

    @cached_property
    def step_counts(self) -> int:
        return self.step_count + 1

    @property
    def focus_area(self) -> str:
        return "".join(self.focus)


class Undecorated(AgentState):
    """A host's class that declares what it has by annotations alone."""

    conversation_histories: dict[str, Any]


@pytest.mark.parametrize("journey", JOURNEYS.values(), ids=JOURNEYS)
def test_attributes_of_a_hosts_subclass_are_its_own(
    journey: Callable[[AgentState], AgentState],
) -> None:
    ticket = Ticket(ticket="T-1", step_count=4)
    # Only what JSON takes makes every journey.
    ticket.connection = "c"  # type: ignore[assignment]
    assert ticket.step_counts == 5
    ticket.client = "mine"  # type: ignore[misc]
    ticket._cache = 1  # type: ignore[attr-defined]
    ticket.anything = 2  # type: ignore[attr-defined]
    data = ticket.to_dict()
    assert (data["ticket"], data["histories"], data["conversation_histories"]) == ("T-1", 0, {})
    arrived = journey(ticket) if journey is not JOURNEYS["json"] else ticket
    assert arrived.to_dict() == data


def test_a_misspelt_field_is_refused_in_a_subclass_too_unless_it_declares_it() -> None:
    for cls in (Ticket, Undecorated):
        state = cls()
        state.conversation_histry = []  # type: ignore[attr-defined]
        with pytest.raises(InvalidState, match="did you mean conversation_history"):
            state.to_dict()
    declared = Undecorated()
    declared.conversation_histories = {}
    assert declared.to_dict() == AgentState().to_dict()


def test_a_subclass_keeps_attributes_of_its_own_that_resemble_a_field() -> None:
    """What is as near to one as a slip of the pen is refused; in AgentState all is."""
    state = Ticket()
    state.focused = state.my_history = True  # type: ignore[attr-defined]
    assert "focused" not in state.to_dict()
    plain = AgentState()
    plain.focused = True  # type: ignore[attr-defined]
    with pytest.raises(InvalidState, match="did you mean focus"):
        plain.to_dict()


def test_no_two_baselines_share_a_token() -> None:
    assert baseline(token="").token != baseline(token="").token


def test_a_baseline_never_changes() -> None:
    with pytest.raises(AttributeError, match="cannot assign"):
        baseline().revision = 8


def test_a_baseline_is_json() -> None:
    data = baseline().to_json()
    assert Baseline.from_json(json.loads(json.dumps(data))).to_json() == data


SPOILT: list[tuple[str, Any]] = [
    ("conversation_id", 5),
    ("store", 5),
    ("store", "elsewhere"),
    ("revision", "7"),
    ("revision", None),
    ("revision", True),
    ("revision", 7.0),
    ("version", None),
    ("sequences", None),
    ("sequences", [3]),
    ("sequences", ["3", "4"]),
    ("message_digests", None),
    ("message_digests", "not base64!"),
    ("message_digests", ""),
    ("item_ids", []),
    ("item_ids", [1.5]),
    ("item_digests", "AAAA"),
    ("field_digests", None),
    ("field_digests", []),
    ("field_digests", {"user_input": "xyz"}),
    ("field_digests", {"user_input": 5}),
    ("history_length", "2"),
    ("history_length", None),
    ("hidden_messages", "2"),
    ("hidden_items", None),
    ("token", 5),
    ("token", ["t"]),
    ("unknown", 1),
    ("message_seal", {}),
    ("revision", 2**63),
]


@pytest.mark.parametrize(("name", "value"), SPOILT)
def test_a_spoilt_baseline_is_refused_rather_than_guessed(name: str, value: Any) -> None:
    data = loaded().to_dict()
    data[BASELINE_KEY] = data[BASELINE_KEY] | {name: value}
    with pytest.raises(InvalidState, match="_baseline: is not the value that to_dict"):
        AgentState.from_dict(data)


@pytest.mark.parametrize("value", [5, "text", [], {}, True, [1, 2]])
def test_a_false_baseline_is_refused(value: Any) -> None:
    with pytest.raises(InvalidState, match="_baseline: is not the value that to_dict"):
        AgentState.from_dict({BASELINE_KEY: value})


@given(
    cut=st.sampled_from(["sequences", "message_digests", "item_ids", "item_digests", "token"]),
)
@settings(max_examples=5)
def test_a_baseline_that_lost_a_part_is_refused_or_whole(cut: str) -> None:
    data = baseline().to_json()
    del data[cut]
    if cut == "token":
        assert Baseline.from_json(data).token
        return
    with pytest.raises(InvalidState):
        Baseline.from_json(data)


# pickle.dumps of `held_before()`, made by a process of the build before Baseline had a module of
# its own.
PICKLED_BEFORE = (
    "gASVwgIAAAAAAACME2NvbnZlcnNhdGlvbnMuc3RhdGWUjApBZ2VudFN0YXRllJOUKYGUfZQojAp1c2VyX2lucHV0"
    "lIwCaGmUjA5tZW1vcnlfY29udGV4dJRdlIwHaGlzdG9yeZRdlIwKc3RlcF9jb3VudJRLAIwFZm9jdXOUXZSMFGNv"
    "bnZlcnNhdGlvbl9oaXN0b3J5lF2UKIwBYZSMAWKUZYwQbGFzdF90b29sX3Jlc3VsdJROjAVleHRyYZR9lIwBbpRL"
    "AXOMCWxvYWRfaW5mb5RoAIwITG9hZEluZm+Uk5QpgZRdlCiMBnRhYmxlc5RLB4lLA0sASwBlYowJX2Jhc2VsaW5l"
    "lIwIYnVpbHRpbnOUjAdnZXRhdHRylJOUaACMCEJhc2VsaW5llJOUjAlmcm9tX2pzb26UhpRSlH2UKIwPY29udmVy"
    "c2F0aW9uX2lklIwBY5SMDWZpZWxkX2RpZ2VzdHOUfZRoBYwgMjY1Y2FmNTk2MzQxYmNjOWE0MDczNWYzMjU5YmRi"
    "NDOUc4wMaGlkZGVuX2l0ZW1zlEsAjA9oaWRkZW5fbWVzc2FnZXOUSwOMDmhpc3RvcnlfbGVuZ3RolEsAjAxpdGVt"
    "X2RpZ2VzdHOUjACUjAhpdGVtX2lkc5RdlIwPbWVzc2FnZV9kaWdlc3RzlIwsMGNXODlJdys5Sjk0L1hMb1phWmcz"
    "Y2crWElGcFE1VzZNZ09oaFN4RWxYcz2UjA9tZXNzYWdlc19iZWZvcmWUSwKMCHJldmlzaW9ulEsHjAlzZXF1ZW5j"
    "ZXOUXZQoSwFLBGWMBXN0b3JllGgbjBVzdG9yZWRfaGlzdG9yeV9kaWdlc3SUaC+MFXN0b3JlZF9oaXN0b3J5X2xl"
    "bmd0aJRLAIwFdG9rZW6UjAF0lIwHdmVyc2lvbpSMAXaUdYWUUpSMDF91bmNvbW1pdHRlZJROdWIu"
)


def held_before() -> AgentState:
    held = AgentState(user_input="hi", conversation_history=["a", "b"], extra={"n": 1})
    held.load_info = LoadInfo("tables", 7, hidden_messages=3)
    held._baseline = Baseline(
        conversation_id="c",
        store="tables",
        revision=7,
        version="v",
        sequences=[1, 4],
        message_digests=digest_of("a") + digest_of("b"),
        field_digests={"user_input": digest_of("hi")},
        hidden_messages=3,
        messages_before=2,
        token="t",
    )
    return held


def test_states_are_pickled_between_processes_of_this_build_and_the_one_before() -> None:
    loaded = pickle.loads(base64.b64decode(PICKLED_BEFORE))
    held = held_before()
    assert loaded == held
    assert (loaded.load_info, loaded._baseline.to_json()) == (
        held.load_info,
        held._baseline.to_json() if held._baseline else None,
    )
    assert b"conversations.content" not in pickle.dumps(held)
