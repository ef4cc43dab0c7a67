"""What a save answers, and what it changes of the fields."""

from __future__ import annotations

import asyncio
import copy
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction

from conversations import aio, storage
from conversations.exceptions import ConversationNotFound, InvalidState
from conversations.storage import states
from conversations.writing import write
from flags.phases import Phase
from tests.support.factories import UserFactory, messages, state, texts

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_save_says_where_it_went(phase: Phase) -> None:
    result = storage.save_state("c", state("a"))
    expected = {
        Phase.LEGACY: ["legacy"],
        Phase.NEW_ONLY: ["tables"],
    }.get(phase, ["tables", "legacy"])
    assert result == {
        "success": True,
        "conversation_id": "c",
        "revision": 0 if phase == Phase.LEGACY else 1,
        "stores": expected,
        "fallback": False,
        "committed": True,
    }


def test_foreign_changes_of_fields_stay(phase: Phase) -> None:
    storage.save_state("c", state(user_input="a", extra={"gone": 1, "kept": 1}))
    first, second = storage.load_state("c"), storage.load_state("c")
    first.user_input = "b"
    first.extra["new"] = 1
    second.step_count = 2
    del second.extra["gone"]
    storage.save_state("c", first)
    storage.save_state("c", second)
    found = storage.load_state("c")
    assert (found.user_input, found.step_count) == ("b", 2)
    assert found.extra == {"kept": 1, "new": 1}


def test_a_partial_update_changes_only_named_fields(phase: Phase) -> None:
    storage.save_state("c", state("a", user_input="x", focus=["old"], memory_context=["i"]))
    storage.update_state_partial(
        "c",
        {
            "focus_areas": ["new"],
            "step_count": 3,
            "last_tool_result": {"ok": True},
            "new_messages": messages("b"),
            "new_context_items": ["j"],
        },
    )
    assert storage.load_state("c") == state(
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
    with pytest.raises(InvalidState, match="the name of entry 1 is none of user_input"):
        storage.update_state_partial("c", {"steps": 1})


def test_a_users_conversations_are_listed_by_latest_activity(phase: Phase) -> None:
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
    assert storage.get_conversation_timestamp(user, "c") is None


def test_a_step_log_keeps_what_two_writers_add_however_often_they_save(phase: Phase) -> None:
    storage.save_state("c", state("a", history=["h"]))
    one, other = storage.load_state("c"), storage.load_state("c")
    expected = ["h"]
    for turn in range(3):
        for held, name in ((one, "a"), (other, "b")):
            held.history.append(f"{name}{turn}")
            expected.append(f"{name}{turn}")
            again = pickle.dumps(held)
            storage.save_state("c", held)
            storage.save_state("c", pickle.loads(again))
            assert storage.load_state("c").history == expected


def test_two_writers_that_found_nothing_keep_each_others_fields(phase: Phase) -> None:
    one, other = storage.load_state("c"), storage.load_state("c")
    one.user_input, one.step_count, one.focus, one.history = "hello", 7, ["f"], ["h"]
    storage.save_state("c", one)
    other.conversation_history.extend(messages("b"))
    storage.save_state("c", other)
    found = storage.load_state("c")
    assert (found.user_input, found.step_count, found.focus, found.history) == (
        "hello",
        7,
        ["f"],
        ["h"],
    )
    assert texts(found) == ["b"]


@dataclass(frozen=True)
class Frozen:
    said: tuple[Any, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"conversation_history": list(self.said)}


class Slotted:
    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        return {"conversation_history": messages("a")}


@pytest.mark.parametrize("held", [Frozen(tuple(messages("a"))), Slotted()])
def test_a_state_that_takes_no_attributes_is_saved_by_its_to_dict(phase: Phase, held: Any) -> None:
    for _ in range(2):
        assert storage.save_state("c", held)["success"]
        assert texts(storage.load_state("c")) == ["a"]


def test_a_state_class_without_a_baseline_hands_it_over_in_its_mapping(phase: Phase) -> None:
    class Bare:
        __slots__ = ("data", "load_info")

        def to_dict(self) -> Any:
            return self.data

        def __setattr__(self, name: str, value: Any) -> None:
            if name in self.__slots__:
                object.__setattr__(self, name, value)

    storage.save_state("c", state("a", "b"))
    bare = Bare()
    bare.data = storage.load_state("c", max_messages=1).to_dict()
    bare.data["conversation_history"] = messages("b", "c")
    storage.save_state("c", bare)
    assert texts(storage.load_state("c")) == ["a", "b", "c"]


def test_the_coroutines_do_what_the_functions_do(phase: Phase) -> None:
    async def talk() -> Any:
        await aio.save_state("c", state("a"))
        loaded = await storage.aload_state("c")
        loaded.conversation_history += messages("b")
        await aio.save_state("c", loaded)
        await asyncio.gather(*(aio.append_messages("c", messages(n)) for n in range(5)))
        found = await aio.load_state("c")
        await sync_to_async(connections.close_all)()
        return found

    found = texts(asyncio.run(talk()))
    assert found[:2] == ["a", "b"]
    assert sorted(found[2:]) == [0, 1, 2, 3, 4]


def test_a_state_saved_under_another_id_is_whole_there(phase: Phase) -> None:
    """A template that is saved again and again, and a copy of a conversation."""
    template = state("system", memory_context=["i"], step_count=3, history=["h"])
    for name in ("one", "two", "three"):
        storage.save_state(name, template)
        assert storage.load_state(name) == template
    held = storage.load_state("one")
    held.conversation_history += messages("b")
    storage.save_state("copy", held)
    assert storage.load_state("copy") == held
    assert texts(storage.load_state("one")) == ["system"]
    storage.append_messages("two", messages("2"))
    storage.save_state("two", held)
    assert storage.load_state("two") == held
    with transaction.atomic():
        storage.save_state("four", held)
        storage.save_state("five", held)
    assert storage.load_state("four") == held == storage.load_state("five")


# Several saves inside the caller's transaction


def add(to: Any, text: str) -> None:
    to.conversation_history += messages(text)
    to.history.append(text)


def test_saves_inside_one_transaction_go_on_from_each_other(phase: Phase) -> None:
    storage.save_state("c", state("a"))
    held = storage.load_state("c")
    with transaction.atomic():
        add(held, "b")
        held.memory_context = [{"content": "i", "relevance_score": 0.5}]
        storage.save_state("c", held)
        held = copy.copy(held)
        add(held, "c")
        held.memory_context = [{"content": "i", "relevance_score": 0.6}]
        storage.save_state("c", held)
        del held.conversation_history[1]
        storage.save_state("c", held)
        assert storage.load_state("c") == held
    assert texts(held) == ["a", "c"]
    assert held.history == ["b", "c"]
    storage.save_state("c", held)
    assert storage.load_state("c") == held


def test_a_save_that_was_rolled_back_is_made_again_after_any_earlier_save(phase: Phase) -> None:
    storage.save_state("c", state("a"))
    held = storage.load_state("c")
    with transaction.atomic():
        add(held, "b")
        storage.save_state("c", held)
        with pytest.raises(InvalidState), transaction.atomic():
            add(held, "c")
            storage.save_state("c", held)
            storage.save_state("c", "no state")
        storage.save_state("c", held)
        assert storage.load_state("c") == held
    assert (texts(held), held.history) == (["a", "b", "c"], ["b", "c"])
    with pytest.raises(InvalidState), transaction.atomic():
        add(held, "d")
        storage.save_state("c", held)
        storage.save_state("c", "no state")
    assert texts(storage.load_state("c")) == ["a", "b", "c"]
    storage.save_state("c", held)
    assert storage.load_state("c") == held
    assert held.history == ["b", "c", "d"]


def test_a_copy_goes_on_from_the_revision_committed_meanwhile(phase: Phase) -> None:
    storage.save_state("c", state("a"))
    held = storage.load_state("c")
    with transaction.atomic():
        add(held, "b")
        storage.save_state("c", held)
        copied, sent = copy.deepcopy(held), pickle.loads(pickle.dumps(held))
    for later in (copied, sent):
        storage.save_state("c", later)
        assert texts(storage.load_state("c")) == ["a", "b"]
    add(copied, "c")
    storage.save_state("c", copied)
    assert storage.load_state("c") == copied


@pytest.mark.parametrize("edit", ["appended", "edited"])
def test_a_change_of_another_task_during_a_save_is_in_the_next_save(
    phase: Phase, edit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coroutine goes on streaming into its messages while a thread saves them."""
    saved = state("a", "b")
    whole = write.write

    def meanwhile(*args: Any, **kwargs: Any) -> Any:
        outcome = whole(*args, **kwargs)
        if edit == "appended":
            saved.conversation_history += messages("late")
        else:
            saved.conversation_history[-1]["content"] = "late"
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(write, "write", meanwhile)
        storage.save_state("c", saved)
    storage.save_state("c", saved)
    assert texts(storage.load_state("c")) == (
        ["a", "b", "late"] if edit == "appended" else ["a", "late"]
    )


def test_a_flag_that_was_another_for_a_moment_of_a_save_is_as_it_is_after_the_next(
    phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sealed before the save looks unbroken again, and is not what was saved."""
    saved = state("a")
    first = saved.conversation_history[0]
    first["waiting"] = True
    check = states.check_document

    def meanwhile(*args: Any, **kwargs: Any) -> Any:
        first["waiting"] = False
        return check(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(states, "check_document", meanwhile)
        storage.save_state("c", saved)
    first["waiting"] = True
    storage.save_state("c", saved)
    assert storage.load_state("c").conversation_history[0]["waiting"] is True


def test_a_list_that_grew_long_behind_its_seal_is_sealed_anew(phase: Phase) -> None:
    """And what is edited in place behind the old seal is saved all the same."""
    storage.save_state("c", state("a"))
    loaded = storage.load_state("c")
    for _ in range(2):
        loaded.conversation_history += messages(*range(70))
        storage.save_state("c", loaded)
    loaded.conversation_history[100]["content"] = "edited"
    storage.save_state("c", loaded)
    found = texts(storage.load_state("c"))
    assert (len(found), found[100], found[101]) == (141, "edited", 30)
