"""Deleting removes from both stores, and nothing that comes late brings anything back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection

from conversations.exceptions import (
    ConversationDeleted,
    ConversationNotFound,
    StorageUnavailable,
)
from conversations.models import ConversationMessage, ConversationState, ConversationTombstone
from conversations.storage import (
    ANY_OWNER,
    append_messages,
    claim_conversation,
    clear_conversation,
    create_new_conversation,
    delete_conversation,
    fork_conversation,
    get_conversation_id,
    get_conversation_timestamp,
    list_conversations,
    load_state,
    redact_message,
    remove_messages,
    replace_message,
    save_state,
    update_state_partial,
)
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryContextItem, MemoryMetadata
from tests.faults.injection import failing, touches_legacy, touches_tables
from tests.support.factories import UserFactory, message, messages, state, texts
from tests.support.legacy_schema import old_save

pytestmark = pytest.mark.django_db


def rows_of(conversation_id: str) -> int:
    """Count what either store holds of a conversation, or of what belonged to none."""
    return (
        ConversationState.objects.filter(conversation_id=conversation_id).count()
        + MemoryMetadata.objects.filter(key="conversation_id", value=conversation_id).count()
    )


def everything() -> dict[str, int]:
    models = (
        ConversationState,
        ConversationMessage,
        MemoryContextItem,
        MemoryMetadata,
        MemoryChunk,
    )
    return {model.__name__: model.objects.count() for model in models}


NOTHING = {
    "ConversationState": 0,
    "ConversationMessage": 0,
    "MemoryContextItem": 0,
    "MemoryMetadata": 0,
    "MemoryChunk": 0,
}


def lived(conversation_id: str = "c", user: Any = None) -> None:
    """Make a conversation with rows of every kind in the stores of every phase."""
    for phase in (Phase.LEGACY, Phase.DUAL_WRITE, Phase.NEW_ONLY):
        with forced_phase(phase):
            held = load_state(conversation_id)
            held.conversation_history.extend(messages(phase.label))
            held.memory_context = [{"content": phase.label, "relevance_score": 0.5}]
            save_state(conversation_id, held, user)
    with forced_phase(Phase.NEW_ONLY):
        append_messages(conversation_id, messages("x"), keys=["k"], user_id=user)
        replace_message(conversation_id, "k", message("y"), user_id=user)


def test_a_deleted_conversation_leaves_nothing_but_its_tombstone(phase: Phase) -> None:
    lived()
    assert delete_conversation("c") is True
    assert everything() == NOTHING
    tombstone = ConversationTombstone.objects.get()
    assert (tombstone.conversation_id, tombstone.reason) == ("c", "deleted")


def test_a_deleted_conversation_reads_as_missing(phase: Phase) -> None:
    user = UserFactory()
    lived(user=user)
    delete_conversation("c", user)
    assert load_state("c") == load_state("missing")
    assert load_state("c").load_info is None
    assert get_conversation_timestamp(user, "c") is None
    assert get_conversation_id(user) is None
    assert list(list_conversations(user)) == []
    assert list(list_conversations(None)) == []


def test_other_conversations_and_other_kinds_of_memory_stay(phase: Phase) -> None:
    user = UserFactory()
    lived("c", user)
    lived("d", user)
    summary = MemoryChunk.objects.create(user=user, content="a summary")
    MemoryMetadata.objects.create(chunk=summary, key="conversation_id", value="c")
    MemoryMetadata.objects.create(chunk=summary, key="type", value="summary")
    delete_conversation("c", user)
    assert texts(load_state("d", user_id=user)) == ["legacy", "dual_write", "new_only", "y"]
    assert list(summary.metadata.values_list("key", "value").order_by("key")) == [
        ("conversation_id", "c"),
        ("type", "summary"),
    ]


WRITES: dict[str, Callable[[], Any]] = {
    "save": lambda: save_state("c", state("late")),
    "append": lambda: append_messages("c", messages("late")),
    "append and create": lambda: append_messages("c", messages("late"), create=True),
    "update": lambda: update_state_partial("c", {"step_count": 1}),
    "replace": lambda: replace_message("c", 1, message("late")),
    "remove": lambda: remove_messages("c", last=1),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_deleted_id_is_never_used_again(phase: Phase, write: Callable[[], Any]) -> None:
    lived()
    delete_conversation("c")
    with pytest.raises(ConversationDeleted):
        write()
    assert everything() == NOTHING


@pytest.mark.parametrize("named", ["owner", "stranger"])
def test_a_caller_that_may_not_create_learns_of_no_deletion(phase: Phase, named: str) -> None:
    user, stranger = UserFactory(), UserFactory()
    lived(user=user)
    delete_conversation("c", user)
    caller = user if named == "owner" else stranger
    for write in (
        lambda: append_messages("c", messages("late"), user_id=caller),
        lambda: update_state_partial("c", {"step_count": 1}, caller),
        lambda: replace_message("c", 1, message("late"), user_id=caller),
        lambda: remove_messages("c", last=1, user_id=caller),
        lambda: clear_conversation("c", caller),
        lambda: redact_message("c", 1, user_id=caller),
    ):
        with pytest.raises(ConversationNotFound) as refused:
            write()
        assert refused.type is ConversationNotFound
    with pytest.raises(ConversationDeleted):
        save_state("c", state("late"), caller)
    with pytest.raises(ConversationDeleted):
        append_messages("c", messages("late"), user_id=ANY_OWNER)


def test_a_state_that_was_loaded_before_does_not_bring_it_back(phase: Phase) -> None:
    lived()
    held = load_state("c")
    delete_conversation("c")
    held.conversation_history.extend(messages("late"))
    with pytest.raises(ConversationDeleted):
        save_state("c", held)
    assert load_state("c").load_info is None


def test_old_codes_late_write_does_not_bring_it_back(phase: Phase) -> None:
    user = UserFactory()
    lived(user=user)
    delete_conversation("c", user)
    old_save(connection, "c", user.pk, state("late").to_dict())
    assert load_state("c").load_info is None
    assert list(list_conversations(user)) == []
    assert get_conversation_id(user) is None
    assert get_conversation_timestamp(user, "c") is None
    with pytest.raises(ConversationNotFound):
        append_messages("c", messages("x"))
    with pytest.raises(ConversationNotFound):
        fork_conversation("c")
    assert delete_conversation("c", user) is False
    assert not ConversationState.objects.exists()


def test_deleting_needs_every_store_that_may_hold_it(phase: Phase) -> None:
    lived()
    before = everything()
    for down in (touches_legacy, touches_tables):
        with failing(down), pytest.raises(StorageUnavailable):
            delete_conversation("c")
        assert everything() == before
        assert not ConversationTombstone.objects.exists()


# Users


@pytest.mark.parametrize("how", ["instance", "queryset"])
def test_deleting_a_user_leaves_tombstones_alone(phase: Phase, how: str) -> None:
    user, other = UserFactory(), UserFactory()
    lived("c", user)
    lived("d", user)
    lived("others", other)
    old_save(connection, "only in legacy", user.pk, state("a").to_dict())
    with forced_phase(Phase.NEW_ONLY):
        lived_here = create_new_conversation(user)
    before = texts(load_state("others", user_id=other))
    if how == "instance":
        user.delete()
    else:
        get_user_model().objects.filter(pk=user.pk).delete()
    gone = ("c", "d", "only in legacy", lived_here)
    buried = ConversationTombstone.objects.values_list("conversation_id", "reason")
    assert dict(buried) == dict.fromkeys(gone, "owner deleted")
    for conversation_id in gone:
        assert rows_of(conversation_id) == 0
    assert texts(load_state("others", user_id=other)) == before
    assert not MemoryChunk.objects.exclude(user=other).exists()


def test_deleting_a_user_leaves_conversations_of_others_alone(phase: Phase) -> None:
    """A blob in their name on another's conversation makes them no owner."""
    owner, other = UserFactory(), UserFactory()
    lived("c", owner)
    old_save(connection, "c", other.pk, state("not mine").to_dict())
    other.delete()
    assert texts(load_state("c", user_id=owner)) == ["legacy", "dual_write", "new_only", "y"]
    assert not ConversationTombstone.objects.exists()


def test_a_late_write_for_a_deleted_user_does_not_bring_anything_back(phase: Phase) -> None:
    user = UserFactory()
    lived(user=user)
    user.delete()
    old_save(connection, "c", None, state("late").to_dict())
    assert load_state("c").load_info is None
    with pytest.raises(ConversationDeleted):
        save_state("c", state("late"))


def test_a_conversation_deleted_through_the_orm_leaves_a_tombstone(new_only: None) -> None:
    lived()
    ConversationState.objects.get().delete()
    assert everything() == NOTHING
    assert ConversationTombstone.objects.get().conversation_id == "c"


# Forks


def test_a_fork_is_a_copy_up_to_a_sequence(phase: Phase) -> None:
    user = UserFactory()
    save_state("c", state("a", "b", "c", user_input="hi", memory_context=["i"]), user)
    made = fork_conversation("c", 2, user_id=user)
    assert made != "c"
    copied, source = load_state(made, user_id=user), load_state("c", user_id=user)
    assert texts(copied) == ["a", "b"]
    assert (copied.user_input, copied.memory_context) == ("hi", ["i"])
    assert texts(source) == ["a", "b", "c"]
    row = ConversationState.objects.get(conversation_id=made)
    assert row.forked_from is not None
    assert row.forked_from.conversation_id == "c"


def test_a_fork_and_its_origin_go_separate_ways(phase: Phase) -> None:
    save_state("c", state("a"))
    made = fork_conversation("c")
    append_messages("c", messages("origin"))
    append_messages(made, messages("fork"))
    assert texts(load_state("c")) == ["a", "origin"]
    assert texts(load_state(made)) == ["a", "fork"]


def test_a_fork_outlives_its_origin(phase: Phase) -> None:
    lived()
    made = fork_conversation("c")
    delete_conversation("c")
    assert texts(load_state(made)) == ["legacy", "dual_write", "new_only", "y"]
    assert ConversationState.objects.get(conversation_id=made).forked_from is None


@pytest.mark.parametrize("through", ["storage", "orm", "user"])
def test_the_forks_of_a_fork_that_is_gone_come_from_its_origin(
    new_only: None, through: str
) -> None:
    user = UserFactory()
    save_state("c", state("a"))
    middle = fork_conversation("c")
    last = fork_conversation(middle)
    row = ConversationState.objects.get(conversation_id=middle)
    if through == "storage":
        delete_conversation(middle)
    elif through == "orm":
        row.delete()
    else:
        claim_conversation(middle, user)
        user.delete()
    origin = ConversationState.objects.get(conversation_id=last).forked_from
    assert origin is not None
    assert origin.conversation_id == "c"


def test_a_fork_beyond_the_end_is_whole_and_at_nothing_empty(phase: Phase) -> None:
    save_state("c", state("a", "b"))
    assert texts(load_state(fork_conversation("c", 99))) == ["a", "b"]
    assert texts(load_state(fork_conversation("c", 0))) == []


def test_the_fork_of_an_owner_who_exists_in_legacy_only_is_theirs(new_only: None) -> None:
    save_state("c", state("a"))
    ConversationState.rows.update(legacy_user_id="424242")
    made = fork_conversation("c", user_id=424242)
    assert texts(load_state(made, user_id=424242)) == ["a"]
    assert texts(load_state(made, user_id=UserFactory())) == []
