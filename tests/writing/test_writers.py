"""Two writers lose nothing of each other, and a repeated write adds nothing."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest

from conversations.exceptions import ConversationNotFound, InvalidState, KeyReused
from conversations.models import ConversationConflict, ConversationMessage
from conversations.state import AgentState
from conversations.storage import (
    append_messages,
    clear_conversation,
    list_messages,
    load_state,
    remove_messages,
    replace_message,
    restore_message,
    save_state,
    update_state_partial,
)
from flags.phases import Phase
from flags.switches import forced_phase
from tests.support.factories import message, messages, state, texts

pytestmark = pytest.mark.django_db(transaction=True)


def begun(*lines: str, **fields: Any) -> None:
    save_state("c", state(*lines, **fields))


def said() -> list[Any]:
    return texts(load_state("c"))


def add(to: AgentState, *lines: str) -> AgentState:
    to.conversation_history.extend(messages(*lines))
    return to


# Two writers from one revision


def test_two_writers_lose_nothing_and_each_tail_keeps_its_order(phase: Phase) -> None:
    begun("a", "b")
    one, other = load_state("c"), load_state("c")
    save_state("c", add(one, "1", "2"))
    save_state("c", add(other, "3", "4"))
    assert said() == ["a", "b", "1", "2", "3", "4"]


def test_two_writers_that_found_nothing_lose_nothing(phase: Phase) -> None:
    one, other = load_state("c"), load_state("c")
    save_state("c", add(one, "1"))
    save_state("c", add(other, "2"))
    assert said() == ["1", "2"]


def test_a_window_of_one_and_an_append_of_another_lose_nothing(phase: Phase) -> None:
    begun("a", "b", "c")
    windowed, other = load_state("c", max_messages=1), load_state("c")
    save_state("c", add(other, "1"))
    save_state("c", add(windowed, "2"))
    assert said() == ["a", "b", "c", "1", "2"]


@pytest.mark.parametrize("window", [0, 1])
def test_a_message_equal_to_a_hidden_one_is_no_repetition(phase: Phase, window: int) -> None:
    """The hidden one has no key, since it comes from legacy."""
    with forced_phase(Phase.LEGACY):
        begun("yes", "go on")
    windowed, other = load_state("c", max_messages=window), load_state("c")
    save_state("c", add(other, "1"))
    save_state("c", add(windowed, "yes"))
    assert said() == ["yes", "go on", "1", "yes"]


def test_two_alternating_writers_lose_nothing(phase: Phase) -> None:
    begun("a")
    one, other = load_state("c"), load_state("c")
    for turn in range(3):
        save_state("c", add(one, f"one {turn}"))
        save_state("c", add(other, f"other {turn}"))
    found = said()
    assert found[0] == "a"
    assert [text for text in found if text.startswith("one")] == ["one 0", "one 1", "one 2"]
    assert [text for text in found if text.startswith("other")] == ["other 0", "other 1", "other 2"]
    assert len(found) == 7


def test_an_append_between_load_and_save_stays(phase: Phase) -> None:
    begun("a")
    held = load_state("c")
    append_messages("c", messages("x"))
    save_state("c", add(held, "1"))
    assert said() == ["a", "x", "1"]


def test_an_edit_against_an_edit_the_later_wins_and_the_earlier_is_superseded() -> None:
    with forced_phase(Phase.NEW_ONLY):
        begun("a", "b")
        one, other = load_state("c"), load_state("c")
        one.conversation_history[1] = message("one's")
        other.conversation_history[1] = message("other's")
        save_state("c", one)
        save_state("c", other)
        assert said() == ["a", "other's"]
        versions = list_messages("c", include_superseded=True)
        assert [(v.sequence, v.message["content"], v.superseded_in) for v in versions] == [
            (1, "a", None),
            (2, "b", 2),
            (2, "one's", 3),
            (2, "other's", None),
        ]


def test_an_edit_that_a_later_edit_superseded_is_reported() -> None:
    with forced_phase(Phase.NEW_ONLY):
        begun("a", "b")
        one, other = load_state("c"), load_state("c")
        one.conversation_history[1] = message("one's")
        other.conversation_history[1] = message("other's")
        save_state("c", one)
        assert not ConversationConflict.objects.exists()
        save_state("c", other)
    record = ConversationConflict.objects.get()
    earlier = ConversationMessage.objects.get(content="one's")
    assert record.kind == ConversationConflict.Kind.OVERWRITTEN
    assert json.loads(record.detail) == {"sequence": 2, "message": earlier.pk}


@pytest.mark.parametrize("editor_first", [True, False])
def test_an_edit_against_a_removal_the_edit_wins(editor_first: bool) -> None:
    with forced_phase(Phase.NEW_ONLY):
        begun("a", "b", "c")
        editor, remover = load_state("c"), load_state("c")
        editor.conversation_history[1] = message("edited")
        del remover.conversation_history[1]
        for held in (editor, remover) if editor_first else (remover, editor):
            save_state("c", held)
        assert said() == ["a", "edited", "c"]


def test_a_removal_by_both_is_one(phase: Phase) -> None:
    begun("a", "b", "c")
    one, other = load_state("c"), load_state("c")
    del one.conversation_history[1]
    del other.conversation_history[1]
    save_state("c", one)
    save_state("c", other)
    assert said() == ["a", "c"]


def test_an_insertion_before_the_end_keeps_the_order_and_the_messages_of_others() -> None:
    with forced_phase(Phase.NEW_ONLY):
        begun("a", "b", "c")
        one, other = load_state("c"), load_state("c")
        one.conversation_history.insert(1, message("inserted"))
        save_state("c", one)
        save_state("c", add(other, "1"))
        assert said() == ["a", "inserted", "b", "c", "1"]


def test_an_edit_follows_a_message_that_an_insertion_moved() -> None:
    with forced_phase(Phase.NEW_ONLY):
        begun("a", "b", "c")
        one, other = load_state("c"), load_state("c")
        one.conversation_history.insert(1, message("inserted"))
        other.conversation_history[2] = message("edited")
        save_state("c", one)
        save_state("c", other)
        assert said() == ["a", "inserted", "b", "edited"]


def test_fields_that_different_writers_changed_are_all_kept(phase: Phase) -> None:
    begun("a", history=["start"], extra={"x": 1})
    one, other = load_state("c"), load_state("c")
    one.step_count, one.extra["y"] = 7, 2
    one.history.append("one's step")
    other.focus = ["sales"]
    other.history.append("other's step")
    save_state("c", one)
    save_state("c", other)
    found = load_state("c")
    assert (found.step_count, found.focus, found.extra) == (7, ["sales"], {"x": 1, "y": 2})
    assert found.history == ["start", "one's step", "other's step"]


def test_items_that_different_writers_added_and_removed_are_merged(phase: Phase) -> None:
    begun("a", memory_context=["i", "j"])
    one, other = load_state("c"), load_state("c")
    one.memory_context = ["i", "j", "one's"]
    other.memory_context = ["j", "other's"]
    save_state("c", one)
    save_state("c", other)
    assert load_state("c").memory_context == ["j", "one's", "other's"]


# Repeating a save


def repeated(held: AgentState) -> None:
    """Save a state; then save it again as it was before, since the reply was lost."""
    before = pickle.dumps(held)
    save_state("c", held)
    save_state("c", pickle.loads(before))


def test_a_repeated_save_adds_nothing(phase: Phase) -> None:
    begun("a")
    repeated(add(load_state("c"), "1", "1"))
    assert said() == ["a", "1", "1"]


def test_a_repeated_first_save_adds_nothing(phase: Phase) -> None:
    repeated(add(load_state("c"), "1"))
    assert said() == ["1"]


def test_a_repeated_save_through_a_queue_adds_nothing(phase: Phase) -> None:
    begun("a")
    held = add(load_state("c"), "1")
    queued = json.dumps(held.to_dict(with_baseline=True))
    for _ in range(3):
        save_state("c", AgentState.from_dict(json.loads(queued)))
    assert said() == ["a", "1"]


def test_a_repeated_save_adds_nothing_behind_additions_of_others(phase: Phase) -> None:
    begun("a")
    held = add(load_state("c"), "1")
    before = pickle.dumps(held)
    save_state("c", held)
    save_state("c", add(load_state("c"), "2"))
    save_state("c", pickle.loads(before))
    assert said() == ["a", "1", "2"]


@pytest.mark.parametrize("first", Phase)
@pytest.mark.parametrize("second", Phase)
def test_a_repeated_save_adds_nothing_before_additions_of_others(
    phase: Phase, first: Phase, second: Phase
) -> None:
    begun("a", "b")
    held, other = load_state("c"), load_state("c")
    save_state("c", add(other, "theirs"))
    held.step_count = 1
    save_state("c", held)
    held.conversation_history.insert(0, message("mine"))
    again = pickle.dumps(held)
    with forced_phase(first):
        save_state("c", held)
    with forced_phase(second):
        save_state("c", pickle.loads(again))
    assert sorted(said()) == ["a", "b", "mine", "theirs"]


def test_a_repeated_windowed_save_adds_nothing_after_a_removal(phase: Phase) -> None:
    begun(*"abcdef")
    held = add(load_state("c", max_messages=1), "mine")
    again = pickle.dumps(held)
    save_state("c", held)
    other = load_state("c")
    del other.conversation_history[:3]
    save_state("c", other)
    save_state("c", pickle.loads(again))
    assert said() == ["d", "e", "f", "mine"]


def test_a_repeated_save_undoes_nothing_that_came_since() -> None:
    with forced_phase(Phase.NEW_ONLY):
        begun("a")
        held = add(load_state("c"), "1", "2")
        before = pickle.dumps(held)
        save_state("c", held)
        remove_messages("c", [2])
        replace_message("c", 3, message("edited"))
        save_state("c", pickle.loads(before))
        assert said() == ["a", "edited"]


def test_the_same_baseline_with_other_content_is_an_edit() -> None:
    with forced_phase(Phase.NEW_ONLY):
        begun("a")
        held = load_state("c")
        first, second = copy.deepcopy(held), copy.deepcopy(held)
        save_state("c", add(first, "half"))
        save_state("c", add(second, "half a reply"))
        assert said() == ["a", "half a reply"]
        assert [v.message["content"] for v in list_messages("c", include_superseded=True)] == [
            "a",
            "half",
            "half a reply",
        ]
        assert ConversationConflict.objects.get().kind == ConversationConflict.Kind.OVERWRITTEN


def test_an_edit_finds_its_message_after_it_was_removed_and_restored(new_only: None) -> None:
    """The insertion moved the message, so two versions say that they follow the first."""
    begun("a", "b")
    held, other = load_state("c"), load_state("c")
    other.conversation_history.insert(1, message("inserted"))
    save_state("c", other)
    moved = list_messages("c").last
    assert moved is not None
    remove_messages("c", [moved])
    restore_message("c", 2)
    held.conversation_history[1] = message("edited")
    save_state("c", held)
    assert sorted(said()) == ["a", "edited", "inserted"]


def test_saving_the_same_state_again_and_again_adds_each_message_once(phase: Phase) -> None:
    held = load_state("c")
    for turn in range(4):
        add(held, str(turn))
        save_state("c", held)
        save_state("c", held)
    assert said() == ["0", "1", "2", "3"]


def test_saving_an_unchanged_state_writes_no_revision(new_only: None) -> None:
    begun("a", memory_context=["i"])
    held = load_state("c")
    results = [save_state("c", held) for _ in range(2)]
    assert [result["revision"] for result in results] == [1, 1]
    assert load_state("c").load_info.revision == 1


# Appending with keys


def test_an_append_with_known_keys_adds_nothing(phase: Phase) -> None:
    begun("a")
    for _ in range(2):
        append_messages("c", messages("1", "2"), keys=["k1", "k2"])
    assert said() == ["a", "1", "2"]


def test_an_append_of_several_adds_the_unknown_ones(phase: Phase) -> None:
    begun("a")
    append_messages("c", messages("1"), keys=["k1"])
    append_messages("c", messages("1", "2"), keys=["k1", "k2"])
    assert said() == ["a", "1", "2"]


def test_an_append_without_keys_adds_each_time(phase: Phase) -> None:
    begun("a")
    append_messages("c", messages("1"))
    append_messages("c", messages("1"))
    assert said() == ["a", "1", "1"]


def test_a_key_with_other_content_is_refused_and_nothing_is_added(phase: Phase) -> None:
    begun("a")
    append_messages("c", messages("1"), keys=["k"])
    with pytest.raises(KeyReused, match="'k' belongs to a message with other content"):
        append_messages("c", messages("new", "other"), keys=["new", "k"])
    assert said() == ["a", "1"]


def test_a_key_with_content_of_another_type_is_refused(new_only: None) -> None:
    append_messages("c", [{"n": 1}], keys=["k"], create=True)
    with pytest.raises(KeyReused):
        append_messages("c", [{"n": 1.0}], keys=["k"])


def test_a_key_is_known_after_its_message_was_replaced(phase: Phase) -> None:
    begun("a")
    append_messages("c", messages("1"), keys=["k"])
    replace_message("c", "k", message("edited"))
    append_messages("c", messages("1"), keys=["k"])
    for other in ("other", "edited"):
        with pytest.raises(KeyReused):
            append_messages("c", messages(other), keys=["k"])
    assert said() == ["a", "edited"]


def test_a_key_is_known_after_its_message_was_removed(phase: Phase) -> None:
    begun("a")
    append_messages("c", messages("1"), keys=["k"])
    remove_messages("c", ["k"])
    append_messages("c", messages("1"), keys=["k"])
    with pytest.raises(KeyReused):
        append_messages("c", messages("other"), keys=["k"])
    assert said() == ["a"]


def test_a_key_is_known_after_a_save_edited_or_dropped_its_message(new_only: None) -> None:
    append_messages("c", messages("1", "2"), keys=["k1", "k2"], create=True)
    held = load_state("c")
    held.conversation_history = messages("edited")
    save_state("c", held)
    append_messages("c", messages("1", "2"), keys=["k1", "k2"])
    assert said() == ["edited"]


def test_a_key_is_known_after_its_message_moved(new_only: None) -> None:
    append_messages("c", messages("1", "2"), keys=["k1", "k2"], create=True)
    held = load_state("c")
    held.conversation_history.insert(0, message("before"))
    save_state("c", held)
    append_messages("c", messages("1", "2"), keys=["k1", "k2"])
    assert said() == ["before", "1", "2"]
    assert [entry.key for entry in list_messages("c")] == [None, "k1", "k2"]


def test_a_key_is_known_after_the_conversation_was_cleared(new_only: None) -> None:
    append_messages("c", messages("1"), keys=["k"], create=True)
    clear_conversation("c")
    append_messages("c", messages("1"), keys=["k"])
    assert said() == []


def test_a_key_is_known_after_every_flip(phase: Phase) -> None:
    append_messages("c", messages("1"), keys=["k"], create=True)
    for other in (*Phase, *reversed(Phase)):
        with forced_phase(other):
            append_messages("c", messages("1"), keys=["k"])
            assert said() == ["1"]


def test_the_same_key_in_two_conversations_is_two_keys(new_only: None) -> None:
    for conversation_id in ("c", "d"):
        append_messages(conversation_id, messages(conversation_id), keys=["k"], create=True)
    assert said() == ["c"]
    assert texts(load_state("d")) == ["d"]


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ("k1", "keys"),
        (5, "keys"),
        (["k1"], "keys"),
        (["k1", 2], "keys[1]"),
        (["k1", ""], "keys[1]"),
        (["k1", "~x"], "keys[1]"),
        (["k1", "x" * 256], "keys[1]"),
        (["k1", "\x00"], "keys[1]"),
        (["k1", "\ud800"], "keys[1]"),
        (["k1", "k1"], "keys[1]"),
    ],
)
def test_bad_keys_are_refused_with_their_place(keys: Any, path: str) -> None:
    with pytest.raises(InvalidState) as refused:
        append_messages("c", messages("1", "2"), keys=keys, create=True)
    assert refused.value.path == path


# Who creates


def test_only_save_and_append_with_create_make_a_conversation(phase: Phase) -> None:
    for write in (
        lambda: append_messages("c", messages("1")),
        lambda: append_messages("c", messages("1"), keys=["k"]),
        lambda: update_state_partial("c", {"step_count": 1}),
        lambda: replace_message("c", 1, message("x")),
        lambda: remove_messages("c", [1]),
        lambda: clear_conversation("c"),
    ):
        with pytest.raises(ConversationNotFound):
            write()
    append_messages("c", messages("1"), create=True)
    append_messages("c", messages("2"), create=True)
    assert said() == ["1", "2"]
