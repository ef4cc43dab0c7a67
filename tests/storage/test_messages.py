"""Single messages: listed by pages, replaced, removed and restored, none of them ever lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from conversations.exceptions import InvalidState, MessageNotFound
from conversations.models import ConversationMessage, ConversationState
from conversations.storage import (
    StoredMessage,
    append_messages,
    clear_conversation,
    list_conversations,
    list_messages,
    load_state,
    remove_messages,
    replace_message,
    restore_message,
    save_state,
    should_resume_conversation,
)
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk
from tests.support.factories import UserFactory, message, messages, state, texts
from tests.support.legacy_schema import old_save

pytestmark = pytest.mark.django_db


def said() -> list[Any]:
    return texts(load_state("c"))


def listed(**options: Any) -> list[Any]:
    return [entry.message["content"] for entry in list_messages("c", **options)]


def versions() -> list[tuple[int, str, bool]]:
    """Return sequence, text and whether it is current, of everything that is kept."""
    return [
        (entry.sequence, entry.message["content"], entry.superseded_in is None)
        for entry in list_messages("c", include_superseded=True, limit=1000)
    ]


# Pages


def test_without_cursors_the_newest_page_comes_in_ascending_order(phase: Phase) -> None:
    save_state("c", state(*map(str, range(7))))
    page = list_messages("c", limit=3)
    assert [entry.message["content"] for entry in page] == ["4", "5", "6"]
    assert (page.has_earlier, page.has_later) == (True, False)
    assert (page.first, page.last, len(page)) == (5, 7, 3)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_pages_join_without_gap_or_overlap_both_ways(phase: Phase, size: int) -> None:
    save_state("c", state(*map(str, range(7))))
    page = list_messages("c", limit=size)
    backwards = [page]
    while page.has_earlier:
        page = list_messages("c", limit=size, before=page.first)
        backwards.insert(0, page)
    assert [e.message["content"] for each in backwards for e in each] == list("0123456")
    page = list_messages("c", limit=size, after=0)
    forwards = [page]
    while page.has_later:
        page = list_messages("c", limit=size, after=page.last)
        forwards.append(page)
    assert [e.message["content"] for each in forwards for e in each] == list("0123456")


def test_a_page_holds_the_message_as_it_was_saved(phase: Phase) -> None:
    spoken: Any = {"z": 1.0, "role": "user", "content": [{"type": "text", "text": "\x00"}]}
    save_state("c", state())
    append_messages("c", [spoken, "no mapping"], keys=["k", "l"])
    found = list(list_messages("c"))
    assert found == [
        StoredMessage(1, "k", spoken, found[0].added_in),
        StoredMessage(2, "l", "no mapping", found[0].added_in),
    ]
    assert list(found[0].message) == ["z", "role", "content"]


def test_keys_that_we_gave_are_not_shown(phase: Phase) -> None:
    held = load_state("c")
    held.conversation_history = messages("a")
    save_state("c", held)
    append_messages("c", messages("b"))
    assert [entry.key for entry in list_messages("c")] == [None, None]


def test_messages_are_found_by_role_and_tool(phase: Phase) -> None:
    spoken = [
        message("a"),
        message("b", role="assistant"),
        {"role": "tool", "content": "c", "tool_name": "weather"},
        {"role": "tool", "content": "d", "name": "weather"},
        {"content": "e"},
        "f",
    ]
    held = state()
    held.conversation_history = spoken
    save_state("c", held)

    def found(**options: Any) -> list[Any]:
        return [entry.sequence for entry in list_messages("c", **options)]

    assert found(roles=["user", "assistant"]) == [1, 2]
    assert found(roles="tool") == [3, 4]
    assert found(roles=("tool",), tool_name="weather", limit=1) == [4]
    assert found(tool_name="other") == []
    assert found(roles=[]) == []
    assert found(roles=["\x00", "\ud800"]) == []
    assert found(tool_name="\ud800") == []


def test_reading_messages_that_only_legacy_holds_changes_nothing(phase: Phase) -> None:
    old_save(connection, "c", None, state("a", "b").to_dict())
    assert listed() == ["a", "b"]
    assert listed(before=2) == ["a"]
    assert not ConversationMessage.objects.exists()


def test_the_sequences_of_a_page_are_those_that_a_later_edit_takes(phase: Phase) -> None:
    old_save(connection, "c", None, state("a", "b", "c").to_dict())
    (middle,) = [e for e in list_messages("c") if e.message["content"] == "b"]
    replace_message("c", middle.sequence, message("edited"))
    assert said() == ["a", "edited", "c"]


def test_a_page_of_versions_ends_between_two_messages(new_only: None) -> None:
    save_state("c", state("a", "b", "c"))
    for turn in range(4):
        replace_message("c", 2, message(f"edit {turn}"))
    found: list[Any] = []
    page = list_messages("c", include_superseded=True, limit=2)
    pages = [page]
    while page.has_earlier:
        page = list_messages("c", include_superseded=True, limit=2, before=page.first)
        pages.insert(0, page)
    found = [entry.message["content"] for each in pages for entry in each]
    assert found == ["a", "b", "edit 0", "edit 1", "edit 2", "edit 3", "c"]


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"limit": -1}, "limit"),
        ({"limit": 0}, "limit"),
        ({"limit": "5"}, "limit"),
        ({"limit": True}, "limit"),
        ({"before": -1}, "before"),
        ({"before": "x"}, "before"),
        ({"after": 1.0}, "after"),
        ({"before": 1, "after": 1}, "before"),
        ({"roles": 5}, "roles"),
        ({"roles": [None]}, "roles[0]"),
        ({"tool_name": 5}, "tool_name"),
    ],
)
def test_a_page_that_cannot_be_is_refused_with_its_place(
    options: dict[str, Any], path: str
) -> None:
    save_state("c", state("a"))
    with pytest.raises(InvalidState) as refused:
        list_messages("c", **options)
    assert refused.value.path == path


def test_cursors_and_limits_of_any_size_are_answered(phase: Phase) -> None:
    save_state("c", state("a", "b"))
    assert listed(before=2**70) == ["a", "b"]
    assert listed(after=2**70) == []
    assert listed(limit=2**70) == ["a", "b"]
    assert texts(load_state("c", max_messages=2**70, max_context_items=2**70)) == ["a", "b"]


# Replacing


def test_a_replaced_message_keeps_place_and_key_and_its_earlier_version(phase: Phase) -> None:
    append_messages("c", messages("a", "b", "c"), keys=["1", "2", "3"], create=True)
    replace_message("c", "2", message("edited"))
    assert said() == ["a", "edited", "c"]
    assert [(e.sequence, e.key) for e in list_messages("c")] == [(1, "1"), (2, "2"), (3, "3")]
    assert versions() == [
        (1, "a", True),
        (2, "b", False),
        (2, "edited", True),
        (3, "c", True),
    ]


def test_a_streamed_reply_is_replaced_on_and_on(phase: Phase) -> None:
    append_messages("c", messages(""), keys=["reply"], create=True)
    for text in ("H", "He", "Hel"):
        replace_message("c", "reply", message(text))
    assert said() == ["Hel"]


def test_replacing_a_message_by_itself_writes_nothing(new_only: None) -> None:
    save_state("c", state("a"))
    revision = load_state("c").load_info.revision
    replace_message("c", 1, message("a"))
    assert load_state("c").load_info.revision == revision
    assert versions() == [(1, "a", True)]


@pytest.mark.parametrize("reference", [0, 3, -1, 2**70, "k", "", "\x00"])
def test_a_message_that_is_not_there_is_not_found(phase: Phase, reference: Any) -> None:
    save_state("c", state("a", "b"))
    for call in (
        lambda: replace_message("c", reference, message("x")),
        lambda: remove_messages("c", [1, reference]),
        lambda: restore_message("c", reference),
    ):
        with pytest.raises(MessageNotFound, match="there is no"):
            call()
    assert said() == ["a", "b"]


# Removing


def test_removed_messages_are_returned_in_order_and_kept(phase: Phase) -> None:
    save_state("c", state("a", "b", "c", "d"))
    assert remove_messages("c", [3, 1]) == messages("a", "c")
    assert said() == ["b", "d"]
    assert versions() == [(1, "a", False), (2, "b", True), (3, "c", False), (4, "d", True)]


@pytest.mark.parametrize(("last", "left"), [(0, "abc"), (1, "ab"), (3, ""), (99, "")])
def test_the_last_so_many_are_removed(phase: Phase, last: int, left: str) -> None:
    save_state("c", state("a", "b", "c"))
    removed = remove_messages("c", last=last)
    assert said() == list(left)
    assert removed == messages(*"abc"[len(left) :])


def test_one_reference_may_stand_alone(phase: Phase) -> None:
    append_messages("c", messages("a", "b"), keys=["k", "l"], create=True)
    assert remove_messages("c", "k") == messages("a")
    assert remove_messages("c", 2) == messages("b")


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({}, "keys_or_sequences"),
        ({"keys_or_sequences": [1], "last": 1}, "keys_or_sequences"),
        ({"keys_or_sequences": [1, True]}, "keys_or_sequences[1]"),
        ({"keys_or_sequences": {1}}, "keys_or_sequences"),
        ({"keys_or_sequences": [None]}, "keys_or_sequences[0]"),
        ({"last": -1}, "last"),
        ({"last": "1"}, "last"),
    ],
)
def test_a_removal_that_cannot_be_is_refused_with_its_place(
    arguments: dict[str, Any], path: str
) -> None:
    save_state("c", state("a"))
    with pytest.raises(InvalidState) as refused:
        remove_messages("c", **arguments)
    assert refused.value.path == path
    assert said() == ["a"]


# Restoring


def test_a_removed_message_comes_back_at_its_place_with_its_key(phase: Phase) -> None:
    append_messages("c", messages("a", "b", "c"), keys=["1", "2", "3"], create=True)
    remove_messages("c", ["2"])
    append_messages("c", messages("d"))
    restore_message("c", "2")
    assert said() == ["a", "b", "c", "d"]
    assert [entry.key for entry in list_messages("c")] == ["1", "2", "3", None]


def test_a_message_that_a_save_dropped_comes_back(phase: Phase) -> None:
    save_state("c", state("a", "b", "c"))
    sequence = list(list_messages("c"))[1].sequence
    if phase == Phase.LEGACY:
        # Only the tables remember what was dropped.
        replace_message("c", sequence, message("b!"))
        restore_message("c", sequence)
    held = load_state("c")
    with forced_phase(Phase.NEW_ONLY):
        del held.conversation_history[1]
        save_state("c", held)
        assert said() == ["a", "c"]
    restore_message("c", sequence)
    assert said() == ["a", "b", "c"]


def test_the_version_before_an_edit_comes_back(phase: Phase) -> None:
    append_messages("c", messages("first"), keys=["k"], create=True)
    replace_message("c", "k", message("second"))
    restore_message("c", "k")
    assert said() == ["first"]
    restore_message("c", "k")
    assert said() == ["second"]


def test_a_revision_chooses_the_version_that_was_current_then(new_only: None) -> None:
    save_state("c", state("first"))
    revisions = [
        replace_message("c", 1, message(text))["revision"] for text in ("second", "third", "last")
    ]
    restore_message("c", 1, revision=revisions[0])
    assert said() == ["second"]
    restore_message("c", 1, revision=1)
    assert said() == ["first"]
    with pytest.raises(MessageNotFound):
        restore_message("c", 1, revision=0)


def test_an_unchanged_message_has_no_version_to_restore(phase: Phase) -> None:
    save_state("c", state("a"))
    with pytest.raises(MessageNotFound, match="no superseded message 1"):
        restore_message("c", 1)


def test_restoring_twice_is_restoring_once(new_only: None) -> None:
    save_state("c", state("a", "b"))
    remove_messages("c", [1])
    restore_message("c", 1)
    restore_message("c", 1)
    assert said() == ["a", "b"]


def test_a_cleared_conversation_is_empty_and_its_messages_can_be_restored(phase: Phase) -> None:
    save_state("c", state("a", "b", user_input="hi", memory_context=["i"], extra={"x": 1}))
    clear_conversation("c")
    found = load_state("c")
    assert found.to_dict() == load_state("missing").to_dict()
    assert found.load_info is not None
    restore_message("c", 2)
    assert said() == ["b"]


@pytest.mark.parametrize("keyed", [True, False])
def test_a_message_that_an_insertion_moved_is_not_doubled_by_a_restore(
    new_only: None, keyed: bool
) -> None:
    keys = ["1", "2", "3"] if keyed else None
    append_messages("c", messages("a", "b", "c"), keys=keys, create=True)
    held = load_state("c")
    held.conversation_history.insert(1, message("inserted"))
    save_state("c", held)
    moved = [entry.sequence for entry in list_messages("c")]
    assert moved == [1, 4, 5, 6]
    restore_message("c", 2)
    assert said() == ["a", "inserted", "b", "c"]
    replace_message("c", 5, message("edited"))
    restore_message("c", 2)
    assert said() == ["a", "inserted", "b", "c"]
    assert [entry.sequence for entry in list_messages("c")] == moved


# Conversations of a user, by pages


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_pages_of_conversations_hold_every_one_once(phase: Phase, size: int) -> None:
    user = UserFactory()
    names = []
    for number in range(5):
        with forced_phase(list(Phase)[number]):
            save_state(f"c{number}", state("a"), user)
            names.insert(0, f"c{number}")
    save_state("others", state("a"), UserFactory())
    page = list_conversations(user, limit=size)
    found = [summary.conversation_id for summary in page]
    while page.next is not None:
        page = list_conversations(user, limit=size, before=page.next)
        found += [summary.conversation_id for summary in page]
    assert found == names


@pytest.mark.parametrize("size", [1, 2, 10])
@pytest.mark.parametrize("timed", [True, False])
def test_pages_reach_a_hosts_rows_without_times(settings: Any, size: int, timed: bool) -> None:
    mapping = {
        "model": "blobs.TextSession",
        "conversation_id": "session_key",
        "owner": "owner",
        "state": "payload",
    }
    if timed:
        settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    else:
        settings.CONVERSATIONS = {"LEGACY": mapping}
    user = UserFactory()
    with forced_phase(Phase.LEGACY):
        for name in ("a", "m", "z"):
            save_state(name, state("x"), user)
    with forced_phase(Phase.NEW_ONLY):
        for name in ("b", "y"):
            save_state(name, state("x"), user)
    page = list_conversations(user, limit=size)
    found = [summary.conversation_id for summary in page]
    while page.next is not None:
        page = list_conversations(user, limit=size, before=page.next)
        found += [summary.conversation_id for summary in page]
    assert found == ["y", "b", "z", "m", "a"]


def test_pages_reach_blobs_without_a_time(phase: Phase) -> None:
    user = UserFactory()
    for name in ("a", "b", "c"):
        old_save(connection, name, user.pk, state("x").to_dict())
    with connection.cursor() as cursor:
        cursor.execute("UPDATE memory_chunks SET created_at = NULL")
    page = list_conversations(user, limit=1)
    found = [summary.conversation_id for summary in page]
    while page.next is not None:
        page = list_conversations(user, limit=1, before=page.next)
        found += [summary.conversation_id for summary in page]
    assert found == ["c", "b", "a"]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pages_hold_conversations_of_equal_times_in_both_stores(size: int) -> None:
    user = UserFactory()
    for name in ("a0", "z0", "a1", "z1"):
        with forced_phase(Phase.LEGACY if name.startswith("z") else Phase.NEW_ONLY):
            save_state(name, state("x"), user)
    moment = timezone.now()
    MemoryChunk.objects.update(created_at=moment)
    ConversationState.rows.update(updated_at=moment)
    page = list_conversations(user, limit=size)
    found = [summary.conversation_id for summary in page]
    while page.next is not None:
        page = list_conversations(user, limit=size, before=page.next)
        found += [summary.conversation_id for summary in page]
    assert found == ["a1", "a0", "z1", "z0"]


def test_a_blob_of_an_earlier_owner_lists_nothing_for_them(phase: Phase) -> None:
    earlier, owner = UserFactory(), UserFactory()
    old_save(connection, "c", earlier.pk, state("x").to_dict())
    old_save(connection, "c", owner.pk, state("y").to_dict())
    assert list(list_conversations(earlier)) == []
    assert [found.conversation_id for found in list_conversations(owner)] == ["c"]


LATEST = "9999-12-31T23:59:59.999999+00:00|tables|c"


def test_a_cursor_at_the_end_of_time_gives_everything() -> None:
    save_state("c", state("a"))
    assert len(list_conversations(None, before=LATEST)) == 1


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "|",
        "||",
        5,
        "2026-01-01|tables|c",
        "2026-01-01T00:00:00+00:00",
        "2026-01-01T00:00:00+00:00|c",
        "2026-01-01T00:00:00+00:00|elsewhere|c",
    ],
)
def test_a_cursor_that_no_page_gave_is_refused(cursor: Any) -> None:
    with pytest.raises(InvalidState, match="before: is not the cursor of a page"):
        list_conversations(None, before=cursor)


@pytest.mark.parametrize("limit", [0, -1, "5", True])
def test_a_page_of_conversations_has_a_size(limit: Any) -> None:
    with pytest.raises(InvalidState, match="limit: must be"):
        list_conversations(None, limit=limit)


def test_a_team_without_legacy_lists_what_the_tables_hold(settings: Any) -> None:
    settings.CONVERSATIONS = {}
    user = UserFactory()
    save_state("c", state("a"), user)
    assert [found.conversation_id for found in list_conversations(user)] == ["c"]


def test_a_conversation_is_resumed_within_its_time() -> None:
    now = datetime.now(UTC)
    within, long_ago = now - timedelta(minutes=1), now - timedelta(days=400)
    assert should_resume_conversation(within)
    assert should_resume_conversation(within.replace(tzinfo=None))
    assert not should_resume_conversation(long_ago)
    assert not should_resume_conversation(None)
