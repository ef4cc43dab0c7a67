"""A load gives one revision, perhaps a part of it; saving that part loses nothing of the rest."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import tracemalloc
import uuid
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, connections
from hypothesis import given, settings, strategies as st

from conversations.content.entries import Given
from conversations.state import AgentState, LoadInfo
from conversations.storage import append_messages, load_state, save_state
from conversations.stores.normalized.load import BATCH, _ascending, load_at_once
from flags.phases import Phase
from flags.switches import forced_phase
from tests.support.factories import message, messages, state, texts
from tests.support.scale import examples

pytestmark = pytest.mark.django_db(transaction=True)


def through_json(held: AgentState) -> AgentState:
    return AgentState.from_dict(json.loads(json.dumps(held.to_dict())))


JOURNEYS: dict[str, Callable[[AgentState], AgentState]] = {
    "itself": lambda held: held,
    "dict": lambda held: AgentState.from_dict(held.to_dict()),
    "json": through_json,
    "pickle": lambda held: pickle.loads(pickle.dumps(held)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "replace": lambda held: dataclasses.replace(held, step_count=9),
}
ITEMS = [
    {"content": "low", "relevance_score": 0.1},
    {"content": "high", "relevance_score": 0.9},
    {"content": "unknown"},
    {"content": "middle", "relevance_score": 0.5},
]


def contents(items: list[Any]) -> list[Any]:
    return [item["content"] for item in items]


@pytest.mark.parametrize("journey", JOURNEYS.values(), ids=JOURNEYS)
def test_a_filtered_load_then_save_deletes_nothing(
    phase: Phase, journey: Callable[[AgentState], AgentState]
) -> None:
    save_state("c", state("a", "b", "c", "d", memory_context=ITEMS))
    held = journey(load_state("c", 0.5, max_messages=2))
    assert texts(held) == ["c", "d"]
    assert contents(held.memory_context) == ["high", "unknown", "middle"]
    held.conversation_history = messages("c!", "d", "e")
    held.memory_context = [*held.memory_context[1:], {"content": "new"}]
    save_state("c", held)
    found = load_state("c")
    assert texts(found) == ["a", "b", "c!", "d", "e"]
    assert contents(found.memory_context) == ["low", "unknown", "middle", "new"]


letters = st.text("abc", max_size=5)


@pytest.mark.long
@given(
    text=letters,
    window=st.integers(0, 6),
    wanted=letters,
    journey=st.sampled_from(sorted(JOURNEYS)),
    written=st.sampled_from(Phase),
    saved=st.sampled_from(Phase),
)
@settings(max_examples=examples(300))
def test_any_change_of_any_window_keeps_what_it_hid(
    text: str, window: int, wanted: str, journey: str, written: Phase, saved: Phase
) -> None:
    """Also across phases: loaded in one, saved in another."""
    conversation_id = str(uuid.uuid4())
    with forced_phase(written):
        save_state(conversation_id, state(*text))
        held = JOURNEYS[journey](load_state(conversation_id, max_messages=window))
    shown = text[max(0, len(text) - window) :]
    assert texts(held) == list(shown)
    held.conversation_history = messages(*wanted)
    with forced_phase(saved):
        save_state(conversation_id, held)
        hidden = text[: len(text) - len(shown)]
        assert texts(load_state(conversation_id)) == list(hidden + wanted)


scores = st.none() | st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0, 2.5, "high", True])


@pytest.mark.long
@given(
    given_=st.lists(scores, max_size=6),
    threshold=st.none() | st.sampled_from([0, 0.2, 0.5, 0.9, 2]),
    limit=st.none() | st.integers(0, 4),
    drop=st.integers(0, 5),
    phase=st.sampled_from(Phase),
)
@settings(max_examples=examples(300))
def test_any_filter_of_items_keeps_what_it_hid(
    given_: list[Any], threshold: float | None, limit: int | None, drop: int, phase: Phase
) -> None:
    conversation_id = str(uuid.uuid4())
    items = [{"content": n, "relevance_score": score} for n, score in enumerate(given_)]
    with forced_phase(phase):
        save_state(conversation_id, AgentState(memory_context=items))
        held = load_state(conversation_id, threshold, max_context_items=limit)
        shown = list(held.memory_context)
        hidden = [item for item in items if item not in shown]
        assert [item for item in items if item in shown] == shown
        held.memory_context = [*shown[:drop], *shown[drop + 1 :], {"content": "new"}]
        save_state(conversation_id, held)
        found = load_state(conversation_id).memory_context
    dropped = shown[drop : drop + 1]
    assert [item for item in found if item in items] == [i for i in items if i not in dropped]
    # A new item takes the place of a dropped one that it follows; a hidden one may come after.
    assert [item for item in found if item not in hidden] == held.memory_context


@pytest.mark.parametrize(
    ("score", "threshold", "given_"),
    [
        (0.5, 0.5, True),
        (0.49, 0.5, False),
        (1, 1, True),
        (0, 0.1, False),
        (0, 0, True),
        (None, 1, True),
        ("0.1", 0.5, True),
        (True, 0.5, True),
        (1.5, 2, True),
        (-0.5, 0.5, True),
        (0.1, -1, True),
        (0.9, 2, False),
        (0.9, 10**400, False),
        (0.1, -(10**400), True),
        (0.9, float("inf"), False),
    ],
)
def test_a_threshold_leaves_out_known_lower_quality_alone(
    phase: Phase, score: Any, threshold: float, given_: bool
) -> None:
    items = [{"relevance_score": score}]
    save_state("c", AgentState(memory_context=items))
    held = load_state("c", threshold)
    assert held.memory_context == (items if given_ else [])
    assert held.load_info.hidden_items == (0 if given_ else 1)


def test_an_item_that_is_no_mapping_is_of_unknown_quality(phase: Phase) -> None:
    save_state("c", AgentState(memory_context=["text", 5, None]))
    assert load_state("c", 1).memory_context == ["text", 5, None]


def test_the_best_items_are_given_in_their_order(phase: Phase) -> None:
    save_state("c", AgentState(memory_context=ITEMS))
    for limit, expected in (
        (0, []),
        (1, ["unknown"]),
        (2, ["high", "unknown"]),
        (3, ["high", "unknown", "middle"]),
        (9, ["low", "high", "unknown", "middle"]),
    ):
        assert contents(load_state("c", max_context_items=limit).memory_context) == expected


def test_a_load_says_where_it_came_from_and_what_it_left_out(phase: Phase) -> None:
    save_state("c", state("a", "b", "c", memory_context=ITEMS))
    store = "legacy" if phase in (Phase.LEGACY, Phase.DUAL_WRITE) else "tables"
    revision = 0 if phase == Phase.LEGACY else 1
    assert load_state("c", 0.5, max_messages=1).load_info == LoadInfo(store, revision, False, 2, 1)
    assert load_state("c").load_info == LoadInfo(store, revision)


def test_a_missing_conversation_is_an_empty_state_that_says_nothing(phase: Phase) -> None:
    found = load_state("missing")
    assert found == AgentState(user_input="")
    assert found.load_info is None
    assert json.dumps(found.to_dict()) == json.dumps(AgentState().to_dict())


def test_a_state_without_baseline_says_what_the_lists_are(phase: Phase) -> None:
    save_state("c", state("a", "b", "c", memory_context=["i", "j"]))
    save_state("c", state("a", "c", "d", memory_context=["j"], user_input="hi"))
    found = load_state("c")
    assert (texts(found), found.memory_context) == (["a", "c", "d"], ["j"])
    assert found.user_input == "hi"


def test_a_saved_state_goes_on_from_its_save(phase: Phase) -> None:
    held = state("a")
    for line in ("b", "c"):
        save_state("c", held)
        append_messages("c", messages(f"another's {line}"))
        held.conversation_history.extend(messages(line))
    save_state("c", held)
    assert texts(load_state("c")) == ["a", "another's b", "b", "another's c", "c"]


class HostState:
    """A host's own class: from_dict, to_dict, and room for attributes."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> HostState:
        return cls(data)

    def to_dict(self) -> dict[str, Any]:
        return self.data


def test_a_hosts_own_class_is_loaded_and_loses_nothing_either(settings: Any, phase: Phase) -> None:
    settings.CONVERSATIONS = {
        **settings.CONVERSATIONS,
        "STATE_CLASS": "tests.reading.test_loading.HostState",
    }
    save_state("c", state("a", "b", "c"))
    held = load_state("c", max_messages=1)
    assert isinstance(held, HostState)
    held.data["conversation_history"].append(message("d"))
    save_state("c", held)
    assert [m["content"] for m in load_state("c").data["conversation_history"]] == list("abcd")
    assert load_state("missing").data == AgentState().to_dict()


def test_a_class_that_the_caller_names_is_loaded_instead(settings: Any, phase: Phase) -> None:
    save_state("c", state("a", "b", "c"))
    held = load_state("c", max_messages=1, state_class=HostState)
    assert type(held) is HostState
    held.data["conversation_history"].append(message("d"))
    save_state("c", held)
    assert texts(load_state("c")) == ["a", "b", "c", "d"]
    assert load_state("missing", state_class=HostState).data == AgentState().to_dict()
    settings.CONVERSATIONS = {
        **settings.CONVERSATIONS,
        "STATE_CLASS": "tests.reading.test_loading.HostState",
    }
    assert type(load_state("c", state_class=AgentState)) is AgentState
    assert type(load_state("c", state_class=None)) is HostState


# As of one revision


@pytest.mark.parametrize("nth", range(6))
def test_a_load_is_as_of_one_revision_whenever_another_writes(new_only: None, nth: int) -> None:
    """Another writer edits, drops, adds and changes items before the n-th statement of a load."""
    before = state("a", "b", "c", memory_context=["i"], step_count=1)
    after = state("a", "B", "d", "e", memory_context=["j", "k"], step_count=2)
    save_state("c", before)
    count = 0

    def interrupting(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal count
        if sql.startswith("SELECT"):
            count += 1
            if count == nth + 1:
                save_state("c", after)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(interrupting):
        found = load_state("c")
    assert found.to_dict() in (before.to_dict(), after.to_dict())
    assert found.load_info.revision == (1 if found.step_count == 1 else 2)


def test_a_load_that_loses_every_race_still_answers(new_only: None) -> None:
    save_state("c", state("a", memory_context=["0"]))
    turns = iter(range(1, 4))
    busy = False

    def interrupting(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal busy
        if "memory_context_items" in sql and not busy:
            busy = True
            for turn in turns:
                save_state("c", state("a", memory_context=[str(turn)], step_count=turn))
                break
            busy = False
        return execute(sql, params, many, context)

    with connection.execute_wrapper(interrupting):
        found = load_state("c")
    assert found.memory_context == [str(found.step_count)] == ["3"]


# What a load takes in memory, and in which order it reads


def test_a_load_of_2000_messages_takes_two_and_a_half_times_their_json() -> None:
    """Of messages of some 500 bytes; a mapping alone weighs 184, so short ones weigh more."""
    said = messages(*[f"{number} " + "word " * 95 for number in range(2000)])
    size = len(json.dumps(said))
    with forced_phase(Phase.NEW_ONLY):
        save_state("c", AgentState(conversation_history=said))
        load_state("c")
        tracemalloc.start()
        try:
            loaded = load_state("c")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert len(loaded.conversation_history) == 2000
    assert peak <= 2.5 * size


def test_rows_in_any_order_are_put_into_theirs() -> None:
    """SQL promises no order of what is only appended, so none is relied on."""
    mixed = Given(array("q", [3, 1, 2]), b"c" * 16 + b"a" * 16 + b"b" * 16, ["c", "a", "b"])
    found = _ascending(mixed)
    assert (list(found.identities), found.values) == ([1, 2, 3], ["a", "b", "c"])
    assert found.digests == b"a" * 16 + b"b" * 16 + b"c" * 16
    assert _ascending(found) is found


def read_at_once(conversation_id: str, *, last: int | None = None) -> list[Any]:
    """Return the texts that the one statement gives: a load that misses some asks in steps."""
    found = load_at_once(connections["default"], conversation_id, last=last)
    assert found is not None
    head, given = found
    assert head.columns["user_input"] == f"said in {conversation_id}"
    return contents(given.values)


@pytest.mark.parametrize(
    "count", [0, 1, *(at * BATCH + by for at in (1, 2) for by in (-2, -1, 0, 1))]
)
def test_no_message_is_lost_between_two_batches(count: int, new_only: None) -> None:
    """The row of the conversation stands before the first message, and counts in its batch."""
    save_state("other", state("x"))
    save_state("c", state(*range(count), user_input="said in c"))
    assert read_at_once("c") == list(range(count))
    for last in (1, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH):
        assert read_at_once("c", last=last) == list(range(count))[-last:]


PLANNER = ("parallel_setup_cost", "parallel_tuple_cost", "min_parallel_table_scan_size")


@pytest.mark.parametrize("off", ["indexscan", "bitmapscan", "seqscan", "nestloop"])
def test_the_row_stands_first_under_every_plan(off: str, new_only: None) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite appends, and plans nothing in parallel")
    for name in "abcd":
        save_state(name, state(*range(BATCH), user_input=f"said in {name}"))
    with connection.cursor() as cursor:
        cursor.execute(f"SET enable_{off} = off")
        for setting in PLANNER:
            cursor.execute(f"SET {setting} = 0")
        cursor.execute("ANALYZE conversation_states, conversation_messages")
    try:
        assert read_at_once("c") == list(range(BATCH))
        assert read_at_once("c", last=5) == list(range(BATCH))[-5:]
    finally:
        connection.close()
