"""The sentences of the contract, each in every phase: what callers may rely on."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from conversations import storage
from conversations.exceptions import (
    ConversationDeleted,
    ConversationNotFound,
    InvalidOwner,
    InvalidState,
    KeyReused,
    MessageNotFound,
)
from conversations.models import (
    ConversationConflict,
    ConversationMessage,
    ConversationState,
    ConversationTombstone,
)
from conversations.state import AgentState
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryContextItem, MemoryMetadata
from tests.factories import UserFactory, message, messages, state, texts

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(params=Phase, ids=lambda phase: phase.label, autouse=True)
def phase(request: pytest.FixtureRequest) -> Iterator[Phase]:
    with forced_phase(request.param):
        yield request.param


@pytest.fixture
def cid() -> str:
    return str(uuid.uuid4())


def shown(conversation_id: str) -> list[Any]:
    return texts(storage.load_state(conversation_id))


# Saving and loading


def test_a_save_says_where_it_went(cid: str, phase: Phase) -> None:
    result = storage.save_state(cid, state("a"))
    expected = {
        Phase.LEGACY: ["legacy"],
        Phase.NEW_ONLY: ["normalized"],
    }.get(phase, ["normalized", "legacy"])
    assert result == {
        "success": True,
        "conversation_id": cid,
        "revision": 0 if phase == Phase.LEGACY else 1,
        "stores": expected,
        "fallback": False,
        "committed": True,
    }


def test_a_missing_conversation_loads_as_an_empty_state(cid: str) -> None:
    found = storage.load_state(cid)
    assert found == AgentState(user_input="")
    assert found.load_info is None


def test_two_callers_who_found_nothing_both_keep_what_they_say(cid: str) -> None:
    first, second = storage.load_state(cid), storage.load_state(cid)
    first.conversation_history += messages("a")
    second.conversation_history += messages("b")
    storage.save_state(cid, first)
    storage.save_state(cid, second)
    assert shown(cid) == ["a", "b"]


@pytest.mark.parametrize(
    "carry",
    [
        lambda loaded: loaded,
        copy.copy,
        copy.deepcopy,
        lambda loaded: pickle.loads(pickle.dumps(loaded)),
        lambda loaded: dataclasses.replace(loaded, step_count=7),
        lambda loaded: AgentState.from_dict(json.loads(json.dumps(loaded.to_dict()))),
    ],
    ids=["itself", "copy", "deepcopy", "pickle", "replace", "to_dict"],
)
def test_a_filtered_load_changed_and_saved_removes_nothing(cid: str, carry: Any) -> None:
    items = [{"content": n, "relevance_score": n / 10} for n in range(10)]
    storage.save_state(cid, state(*range(10), memory_context=items))
    loaded = storage.load_state(cid, 0.75, max_messages=3, max_context_items=1)
    assert texts(loaded) == [7, 8, 9]
    assert loaded.memory_context == [items[9]]
    assert (loaded.load_info.hidden_messages, loaded.load_info.hidden_items) == (7, 9)
    carried = carry(loaded)
    carried.conversation_history[1] = message("edited")
    carried.conversation_history.append(message("new"))
    carried.memory_context.append({"content": "new item"})
    storage.save_state(cid, carried)
    assert shown(cid) == [0, 1, 2, 3, 4, 5, 6, 7, "edited", 9, "new"]
    assert storage.load_state(cid).memory_context == [*items, {"content": "new item"}]


def test_unknown_quality_passes_every_threshold(cid: str) -> None:
    items = [{"content": 1}, {"relevance_score": True}, {"relevance_score": 0.2}, "text"]
    storage.save_state(cid, state(memory_context=items))
    assert storage.load_state(cid, 0.5).memory_context == [items[0], items[1], items[3]]


def test_a_baseline_is_no_part_of_equality_nor_of_a_whole_load(cid: str) -> None:
    storage.save_state(cid, state("a"))
    loaded = storage.load_state(cid)
    assert loaded == state("a")
    assert "_baseline" not in loaded.to_dict()
    assert "_baseline" in loaded.to_dict(with_baseline=True)
    assert "_baseline" not in json.dumps(list(MemoryChunk.objects.values_list("content")))


def test_a_constructed_state_says_what_the_lists_are(cid: str) -> None:
    storage.save_state(cid, state("a", "b", "c", memory_context=["x", "y"]))
    storage.save_state(cid, state("a", "c", "d", memory_context=["y"]))
    assert shown(cid) == ["a", "c", "d"]
    assert storage.load_state(cid).memory_context == ["y"]


def test_an_insertion_before_the_end_keeps_the_order(cid: str) -> None:
    storage.save_state(cid, state("a", "b", "c"))
    loaded = storage.load_state(cid)
    loaded.conversation_history.insert(1, message("between"))
    storage.save_state(cid, loaded)
    assert shown(cid) == ["a", "between", "b", "c"]


# Writers


def test_two_writers_from_one_revision_lose_nothing(cid: str) -> None:
    storage.save_state(cid, state("a"))
    first, second = storage.load_state(cid), storage.load_state(cid)
    first.conversation_history += messages("b", "c")
    second.conversation_history += messages("d", "e")
    storage.save_state(cid, first)
    storage.save_state(cid, second)
    assert shown(cid) == ["a", "b", "c", "d", "e"]


def test_repeating_a_save_adds_nothing(cid: str) -> None:
    storage.save_state(cid, state("a"))
    loaded = storage.load_state(cid)
    loaded.conversation_history += messages("b")
    loaded.memory_context.append({"content": "item"})
    again = pickle.loads(pickle.dumps(loaded))
    storage.save_state(cid, loaded)
    storage.save_state(cid, again)
    assert shown(cid) == ["a", "b"]
    assert storage.load_state(cid).memory_context == [{"content": "item"}]


def test_an_edit_wins_over_a_removal(cid: str) -> None:
    storage.save_state(cid, state("a", "b", "c"))
    editor, remover = storage.load_state(cid), storage.load_state(cid)
    del remover.conversation_history[1]
    editor.conversation_history[1] = message("edited")
    storage.save_state(cid, remover)
    storage.save_state(cid, editor)
    assert shown(cid) == ["a", "edited", "c"]


def test_a_removal_leaves_an_edit_standing(cid: str) -> None:
    storage.save_state(cid, state("a", "b", "c"))
    editor, remover = storage.load_state(cid), storage.load_state(cid)
    del remover.conversation_history[1]
    editor.conversation_history[1] = message("edited")
    storage.save_state(cid, editor)
    storage.save_state(cid, remover)
    assert shown(cid) == ["a", "edited", "c"]


def test_of_two_edits_the_later_stands_and_the_earlier_is_reported(cid: str, phase: Phase) -> None:
    storage.save_state(cid, state("a", "b"))
    if phase == Phase.LEGACY:
        # Only what has a row of its own can be told apart from what was added.
        storage.append_messages(cid, messages("c"), keys=["c"])
    first, second = storage.load_state(cid), storage.load_state(cid)
    first.conversation_history[0] = message("first")
    second.conversation_history[0] = message("second")
    storage.save_state(cid, first)
    storage.save_state(cid, second)
    if phase == Phase.LEGACY:
        assert set(shown(cid)) >= {"second", "b", "c"}
        return
    assert shown(cid) == ["second", "b"]
    assert ConversationConflict.objects.get().kind == "overwritten"
    versions = storage.list_messages(cid, include_superseded=True)
    assert [found.message["content"] for found in versions] == ["a", "first", "second", "b"]


def test_both_step_logs_are_kept(cid: str) -> None:
    storage.save_state(cid, state(history=[1]))
    first, second = storage.load_state(cid), storage.load_state(cid)
    first.history.append(2)
    second.history.append(3)
    second.step_count = 5
    storage.save_state(cid, first)
    storage.save_state(cid, second)
    found = storage.load_state(cid)
    assert (found.history, found.step_count) == ([1, 2, 3], 5)


def test_what_others_changed_in_the_fields_stays(cid: str) -> None:
    storage.save_state(cid, state(user_input="a", extra={"gone": 1, "kept": 1}))
    first, second = storage.load_state(cid), storage.load_state(cid)
    first.user_input = "b"
    first.extra["new"] = 1
    second.step_count = 2
    del second.extra["gone"]
    storage.save_state(cid, first)
    storage.save_state(cid, second)
    found = storage.load_state(cid)
    assert (found.user_input, found.step_count) == ("b", 2)
    assert found.extra == {"kept": 1, "new": 1}


# Appending and keys


def test_appending_with_the_same_keys_adds_nothing(cid: str) -> None:
    storage.append_messages(cid, messages("a"), keys=["k"], create=True)
    storage.append_messages(cid, messages("a", "b"), keys=["k", "l"])
    assert shown(cid) == ["a", "b"]


@pytest.mark.parametrize("change", ["none", "replace", "remove"])
def test_a_key_with_other_content_is_refused(cid: str, change: str) -> None:
    storage.append_messages(cid, messages("a"), keys=["k"], create=True)
    if change == "replace":
        storage.replace_message(cid, "k", message("other"))
    if change == "remove":
        storage.remove_messages(cid, ["k"])
    before = shown(cid)
    with pytest.raises(KeyReused):
        storage.append_messages(cid, messages("other"), keys=["k"])
    storage.append_messages(cid, messages("a"), keys=["k"])
    assert shown(cid) == before


def test_appending_creates_only_when_asked(cid: str) -> None:
    with pytest.raises(ConversationNotFound):
        storage.append_messages(cid, messages("a"))
    assert storage.append_messages(cid, messages("a"), create=True)["success"]
    assert shown(cid) == ["a"]


def test_a_partial_update_changes_what_it_names(cid: str) -> None:
    storage.save_state(cid, state("a", user_input="x", focus=["old"], memory_context=["i"]))
    storage.update_state_partial(
        cid,
        {
            "focus_areas": ["new"],
            "step_count": 3,
            "last_tool_result": {"ok": True},
            "new_messages": messages("b"),
            "new_context_items": ["j"],
        },
    )
    assert storage.load_state(cid) == state(
        "a",
        "b",
        user_input="x",
        focus=["new"],
        step_count=3,
        last_tool_result={"ok": True},
        memory_context=["i", "j"],
    )
    with pytest.raises(ConversationNotFound):
        storage.update_state_partial("missing", {"step_count": 1})
    with pytest.raises(InvalidState, match=r"updates\.steps"):
        storage.update_state_partial(cid, {"steps": 1})


# Single messages


def test_a_replaced_message_keeps_its_place_and_key_and_can_be_restored(cid: str) -> None:
    storage.append_messages(cid, messages("a", "b"), keys=["k", "l"], create=True)
    storage.replace_message(cid, "k", message("changed"))
    assert shown(cid) == ["changed", "b"]
    assert [found.key for found in storage.list_messages(cid)] == ["k", "l"]
    storage.restore_message(cid, "k")
    assert shown(cid) == ["a", "b"]
    storage.restore_message(cid, 1, revision=2)
    assert shown(cid) == ["changed", "b"]


def test_removed_messages_are_returned_listed_and_restorable(cid: str) -> None:
    storage.append_messages(cid, messages("a", "b", "c"), keys=["a", "b", "c"], create=True)
    assert storage.remove_messages(cid, last=1) == messages("c")
    assert storage.remove_messages(cid, ["a", 2]) == messages("a", "b")
    assert shown(cid) == []
    everything = storage.list_messages(cid, include_superseded=True)
    assert [found.message for found in everything] == messages("a", "b", "c")
    storage.restore_message(cid, 2)
    assert shown(cid) == ["b"]
    with pytest.raises(MessageNotFound):
        storage.remove_messages(cid, ["b", "nonsense"])
    with pytest.raises(MessageNotFound):
        storage.restore_message(cid, 99)
    with pytest.raises(MessageNotFound):
        storage.replace_message(cid, 99, message("x"))
    assert shown(cid) == ["b"]


def test_pages_of_messages_meet_without_gap_or_overlap(cid: str) -> None:
    storage.save_state(cid, state(*range(25)))
    page = storage.list_messages(cid, limit=10)
    found = [list(page)]
    while page.has_earlier:
        page = storage.list_messages(cid, before=page.first, limit=10)
        found.insert(0, list(page))
    assert [len(part) for part in found] == [5, 10, 10]
    backwards = [entry.message["content"] for part in found for entry in part]
    assert backwards == list(range(25))
    page = storage.list_messages(cid, after=0, limit=10)
    assert (page.has_earlier, page.has_later, page.first, page.last) == (True, True, 1, 10)
    page = storage.list_messages(cid, after=20, limit=10)
    assert (len(page), page.has_later) == (5, False)
    assert len(storage.list_messages(cid, after=25)) == 0


def test_messages_are_found_by_role_and_tool(cid: str) -> None:
    said = [
        message("a"),
        {"role": "tool", "name": "search", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    storage.append_messages(cid, said, create=True)
    by_role = storage.list_messages(cid, roles=["user", "assistant"])
    assert [found.message for found in by_role] == [said[0], said[2]]
    by_tool = storage.list_messages(cid, tool_name="search", roles="tool")
    assert [found.message for found in by_tool] == [said[1]]
    with pytest.raises(InvalidState):
        storage.list_messages(cid, before=3, after=1)
    with pytest.raises(ConversationNotFound):
        storage.list_messages("missing")


def test_a_page_of_versions_never_ends_inside_one_message(cid: str) -> None:
    storage.append_messages(cid, messages("a", "b"), create=True, keys=["a", "b"])
    for number in range(4):
        storage.replace_message(cid, "b", message(number))
    page = storage.list_messages(cid, include_superseded=True, limit=3)
    assert [found.message["content"] for found in page] == ["b", 0, 1, 2, 3]
    page = storage.list_messages(cid, include_superseded=True, limit=3, before=page.first)
    assert [found.message["content"] for found in page] == ["a"]
    page = storage.list_messages(cid, include_superseded=True, limit=3, after=0)
    assert [found.message["content"] for found in page] == ["a"]
    assert page.has_later


def test_clearing_keeps_the_conversation_and_what_can_be_restored(cid: str) -> None:
    user = UserFactory()
    storage.save_state(cid, state("a", user_input="x", memory_context=["i"]), user)
    storage.clear_conversation(cid, user)
    assert storage.load_state(cid, user_id=user) == AgentState()
    storage.restore_message(cid, 1, user_id=user)
    assert shown(cid) == ["a"]


# Redaction


def everything_stored() -> str:
    rows: list[Any] = []
    for model in (ConversationMessage, ConversationState, ConversationConflict):
        rows += model.rows.values_list()
    for model in (MemoryChunk, MemoryContextItem, MemoryMetadata):
        rows += model._base_manager.values_list()
    return repr(rows)


def test_a_redacted_text_is_nowhere_and_never_comes_back(cid: str) -> None:
    said = {"role": "user", "content": "my secret", "extra": "my secret"}
    storage.append_messages(cid, [said, message("b")], keys=["k", "l"], create=True)
    held = storage.load_state(cid)
    storage.replace_message(cid, "k", {**said, "more": 1})
    fork = storage.fork_conversation(cid)
    assert storage.redact_message(cid, "k") >= 3
    assert "my secret" not in everything_stored()
    redacted = {"role": "user", "content": "[redacted]"}
    for conversation_id in (cid, fork):
        assert storage.load_state(conversation_id).conversation_history[0] == redacted
    assert next(iter(storage.list_messages(cid))).key == "k"
    held.conversation_history.append(message("c"))
    storage.save_state(cid, held)
    storage.append_messages(cid, [said])
    assert "my secret" not in everything_stored()
    storage.append_messages(cid, [{"role": "user", "content": "my secret"}], keys=["k"])


def test_redaction_keeps_what_ties_tool_calls_together(cid: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"s": "x"}'}}
    said = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "secret"},
        "raw secret",
    ]
    storage.append_messages(cid, said, create=True)
    for sequence in (1, 2, 3):
        storage.redact_message(cid, sequence, replacement="-")
    hidden = {**call, "function": {"name": "f", "arguments": "{}"}}
    assert storage.load_state(cid).conversation_history == [
        {"role": "assistant", "content": "-", "tool_calls": [hidden]},
        {"role": "tool", "tool_call_id": "1", "content": "-"},
        "-",
    ]
    with pytest.raises(MessageNotFound):
        storage.redact_message(cid, 9)
    with pytest.raises(InvalidState):
        storage.redact_message(cid, 1, replacement=None)


# Owners


def test_a_foreign_conversation_reads_as_missing_and_refuses_writes(cid: str) -> None:
    owner, other = UserFactory(), UserFactory()
    storage.save_state(cid, state("a"), owner)
    assert storage.load_state(cid, user_id=other) == AgentState(user_input="")
    for write in (
        lambda: storage.append_messages(cid, messages("x"), user_id=other),
        lambda: storage.update_state_partial(cid, {"step_count": 1}, other),
        lambda: storage.save_state(cid, state("x"), other),
        lambda: storage.replace_message(cid, 1, message("x"), user_id=other),
        lambda: storage.remove_messages(cid, last=1, user_id=other),
        lambda: storage.list_messages(cid, user_id=other),
        lambda: storage.fork_conversation(cid, user_id=other),
        lambda: storage.claim_conversation(cid, other),
        lambda: storage.redact_message(cid, 1, user_id=other),
    ):
        with pytest.raises(ConversationNotFound):
            write()
    assert storage.delete_conversation(cid, other) is False
    assert storage.get_conversation_timestamp(other, cid) is None
    assert texts(storage.load_state(cid, user_id=str(owner.pk))) == ["a"]


def test_a_conversation_without_owner_is_claimed_once(cid: str) -> None:
    user, other = UserFactory(), UserFactory()
    storage.save_state(cid, state("a"))
    assert storage.load_state(cid, user_id=user).conversation_history == []
    storage.claim_conversation(cid, user)
    storage.claim_conversation(cid, user)
    assert texts(storage.load_state(cid, user_id=user)) == ["a"]
    with pytest.raises(ConversationNotFound):
        storage.claim_conversation(cid, other)
    with pytest.raises(ConversationNotFound):
        storage.claim_conversation("missing", user)
    with pytest.raises(InvalidOwner):
        storage.claim_conversation(cid, 10**9)


def test_nobody_can_own_what_names_no_user(cid: str) -> None:
    for nobody in (10**9, "nonsense", True, object()):
        with pytest.raises(InvalidOwner):
            storage.save_state(cid, state("a"), nobody)
    assert storage.load_state(cid).load_info is None


# Whole conversations


def test_a_users_conversations_are_listed_by_latest_activity(cid: str) -> None:
    user = UserFactory()
    made = [storage.create_new_conversation(user) for _ in range(5)]
    storage.append_messages(made[1], messages("a"), user_id=user)
    newest_first = [made[1], made[4], made[3], made[2], made[0]]
    page = storage.list_conversations(user, limit=2)
    found = [summary.conversation_id for summary in page]
    while page.next:
        page = storage.list_conversations(user, before=page.next, limit=2)
        assert len(page) in (1, 2)
        found += [summary.conversation_id for summary in page]
    assert found == newest_first
    assert storage.get_conversation_id(user) == made[1]
    moment = storage.get_conversation_timestamp(user, made[1])
    assert storage.should_resume_conversation(moment)
    assert storage.get_conversation_id(UserFactory()) is None
    assert storage.get_conversation_timestamp(user, cid) is None


def test_a_fork_has_the_beginning_and_its_own_future(cid: str) -> None:
    user = UserFactory()
    storage.save_state(cid, state("a", "b", "c", user_input="x", memory_context=["i"]), user)
    fork = storage.fork_conversation(cid, at=2, user_id=user)
    assert storage.load_state(fork, user_id=user) == state(
        "a", "b", user_input="x", memory_context=["i"]
    )
    row = ConversationState.objects.get(conversation_id=fork)
    assert row.forked_from.conversation_id == cid
    storage.append_messages(fork, messages("d"), user_id=user)
    assert shown(cid) == ["a", "b", "c"]
    with pytest.raises(ConversationNotFound):
        storage.fork_conversation("missing")


def test_a_deleted_conversation_is_gone_for_ever(cid: str) -> None:
    user = UserFactory()
    storage.save_state(cid, state("a", memory_context=["i"]), user)
    assert storage.delete_conversation(cid, user) is True
    assert storage.delete_conversation(cid, user) is False
    assert storage.load_state(cid, user_id=user) == AgentState(user_input="")
    for write in (
        lambda: storage.save_state(cid, state("b"), user),
        lambda: storage.append_messages(cid, messages("b"), create=True),
        lambda: storage.clear_conversation(cid),
    ):
        with pytest.raises(ConversationDeleted):
            write()
    with pytest.raises(ConversationNotFound):
        storage.list_messages(cid)
    with pytest.raises(ConversationNotFound):
        storage.claim_conversation(cid, user)
    assert len(storage.list_conversations(user)) == 0
    assert nothing_left()


def nothing_left() -> bool:
    left = [
        model._base_manager.exists()
        for model in (
            ConversationState,
            ConversationMessage,
            MemoryContextItem,
            MemoryMetadata,
            MemoryChunk,
        )
    ]
    return not any(left) and ConversationTombstone.objects.exists()


@pytest.mark.parametrize("one_by_one", [True, False])
def test_deleting_a_user_leaves_tombstones_only(cid: str, one_by_one: bool) -> None:
    user = UserFactory()
    storage.save_state(cid, state("a", memory_context=["i"]), user)
    if one_by_one:
        user.delete()
    else:
        type(user).objects.filter(pk=user.pk).delete()
    assert nothing_left()
    with pytest.raises(ConversationDeleted):
        storage.save_state(cid, state("b"))


def test_a_conversation_deleted_through_its_model_is_deleted_everywhere(cid: str) -> None:
    storage.append_messages(cid, messages("a"), keys=["k"], create=True)
    ConversationState.objects.get(conversation_id=cid).delete()
    assert nothing_left()
