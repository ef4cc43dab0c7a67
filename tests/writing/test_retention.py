"""Retention: what was superseded goes by age and by number, and what is still needed stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import OperationalError, connection
from django.test import override_settings
from django.utils import timezone

from conversations.formats import Result, export_lines, import_lines
from conversations.models import ConversationMessage, ConversationState
from conversations.rollout.sync import Action, sync
from conversations.rollout.verification import Kind, verify
from conversations.state import AgentState
from conversations.storage import (
    append_messages,
    list_messages,
    load_state,
    remove_messages,
    replace_message,
    restore_message,
    save_state,
)
from conversations.writing import retention
from conversations.writing.retention import Pruned, prune
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryMetadata
from tests.support.legacy_schema import old_save

pytestmark = pytest.mark.django_db(transaction=True)

LATER = timedelta(days=31)


@pytest.fixture(autouse=True)
def _new_only():
    with forced_phase(Phase.NEW_ONLY):
        yield


def said(text: str, **more: str) -> dict[str, str]:
    return {"role": "assistant", "content": text, **more}


def versions(conversation_id: str = "c") -> list[tuple[int, str]]:
    """Return sequence and content of every version there is, oldest first."""
    rows = ConversationMessage.rows.filter(conversation__conversation_id=conversation_id)
    return list(rows.order_by("sequence", "added_in").values_list("sequence", "content"))


def streamed(*texts: str, conversation_id: str = "c") -> None:
    """Create a conversation whose one message was replaced again and again."""
    append_messages(conversation_id, [said(texts[0])], keys=["reply"], create=True)
    for text in texts[1:]:
        replace_message(conversation_id, "reply", said(text))


def settings(**values: object) -> override_settings:
    return override_settings(CONVERSATIONS={"LEGACY": "memory_chunks", **values})


def test_old_superseded_versions_go_and_the_current_one_stays() -> None:
    streamed("a", "ab", "abc")
    assert list(prune(now=timezone.now() + LATER)) == [Pruned("c", 2)]
    assert versions() == [(1, "abc")]
    assert load_state("c").conversation_history == [said("abc")]
    assert [one.kinds for one in verify()] == [(Kind.TABLES_ONLY,)]
    assert list(prune(now=timezone.now() + LATER)) == []


def test_a_lately_superseded_version_stays() -> None:
    streamed("a", "ab", "abc")
    assert list(prune()) == []
    assert versions() == [(1, "a"), (1, "ab"), (1, "abc")]


def test_a_streamed_reply_does_not_pile_up_however_young_it_is() -> None:
    streamed("a", "ab", "abc", "abcd", "abcde")
    with settings(KEEP_VERSIONS=2):
        assert list(prune()) == [Pruned("c", 2)]
    assert versions() == [(1, "abc"), (1, "abcd"), (1, "abcde")]


def test_each_message_keeps_its_own_number_of_versions() -> None:
    append_messages("c", [said("x"), said("y")], keys=["x", "y"], create=True)
    for key in ("x", "y"):
        for step in (1, 2, 3):
            replace_message("c", key, said(f"{key}{step}"))
    with settings(KEEP_VERSIONS=1):
        assert list(prune()) == [Pruned("c", 4)]
    assert versions() == [(1, "x2"), (1, "x3"), (2, "y2"), (2, "y3")]


def test_a_message_that_says_it_is_old_is_not_taken_for_superseded_long_ago() -> None:
    """Its own timestamp says when it was said, not when it was replaced: a moment ago."""
    old = said("old", timestamp="2009-03-03T10:00:00Z")
    append_messages("c", [old], keys=["k"], create=True)
    replace_message("c", "k", said("new", timestamp="2009-03-03T10:00:01Z"))
    assert list(prune()) == []


def test_a_message_added_again_behind_an_insertion_proves_no_age() -> None:
    """It keeps the time of its first row; what was superseded with it was superseded now."""
    long_ago = timezone.now() - LATER
    append_messages("c", [said("a"), said("b")], create=True)
    ConversationMessage.rows.update(timestamp=long_ago)
    state = load_state("c")
    state.conversation_history.insert(1, said("between"))
    save_state("c", state)
    assert [text for _, text in versions()] == ["a", "b", "between", "b"]
    assert list(prune()) == []


def test_versions_that_an_import_replaced_stay_although_its_file_is_old() -> None:
    append_messages("c", [said("a"), said("b"), said("c")], create=True)
    line = json.loads(next(export_lines()))
    long_ago = "2024-05-01T12:00:00+00:00"
    line = json.dumps({**line, "created_at": long_ago, "updated_at": long_ago})
    replace_message("c", 2, said("precious"))
    remove_messages("c", [3])
    assert [one.result for one in import_lines([line], replace=True)] == [Result.REPLACED]
    assert ConversationState.rows.get().updated_at.isoformat() == long_ago
    assert list(prune()) == []
    assert versions() == [(1, "a"), (2, "b"), (2, "precious"), (2, "b"), (3, "c"), (3, "c")]
    assert list(prune(now=timezone.now() + LATER)) == [Pruned("c", 3)]
    assert versions() == [(1, "a"), (2, "b"), (3, "c")]


def test_age_is_known_in_a_conversation_that_goes_on() -> None:
    streamed("a", "ab")
    append_messages("c", [said("later")])
    ConversationMessage.rows.filter(content="a").update(superseded_at=timezone.now() - LATER)
    append_messages("c", [said("now")])
    assert list(prune()) == [Pruned("c", 1)]
    assert versions() == [(1, "ab"), (2, "later"), (3, "now")]


def test_a_removed_message_can_be_restored_until_it_is_pruned() -> None:
    append_messages("c", [said("a"), said("b")], create=True)
    remove_messages("c", [1])
    assert list(prune()) == []
    restore_message("c", 1)
    remove_messages("c", [1])
    assert list(prune(now=timezone.now() + LATER)) == [Pruned("c", 2)]
    assert [one.message for one in list_messages("c", include_superseded=True).messages] == [
        said("b")
    ]


def test_the_last_versions_of_legacy_stay_so_that_old_codes_next_blob_merges() -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", AgentState(conversation_history=[said("a"), said("b")]))
    remove_messages("c", [1])
    replace_message("c", 2, said("b2"))
    replace_message("c", 2, said("b3"))
    assert list(prune(now=timezone.now() + LATER)) == [Pruned("c", 1)]
    assert versions() == [(1, "a"), (2, "b"), (2, "b3")]
    late = AgentState(conversation_history=[said("a"), said("b"), said("late")])
    old_save(connection, "c", None, late.to_dict())
    assert load_state("c").conversation_history == [said("b3"), said("late")]


def test_once_legacy_is_current_its_base_goes_as_well() -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", AgentState(conversation_history=[said("a"), said("b")]))
    remove_messages("c", [1])
    assert list(prune(now=timezone.now() + LATER)) == []
    assert [one.action for one in sync("legacy")] == [Action.WRITTEN_TO_LEGACY]
    assert list(prune(now=timezone.now() + LATER)) == [Pruned("c", 1)]
    assert versions() == [(2, "b")]


def edited(name: int) -> None:
    replace_message("c", name, said("by another"))


def moved(name: int) -> None:
    other = load_state("c")
    other.conversation_history.insert(0, said("inserted"))
    save_state("c", other)


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ([edited], ["a", "mine", "c"]),
        ([moved], ["inserted", "a", "mine", "c"]),
        ([edited, edited, edited], ["a", "mine", "c"]),
    ],
)
def test_an_edit_finds_its_message_although_the_version_it_was_given_is_pruned(
    changes: list[Callable[[int], None]], left: list[str]
) -> None:
    append_messages("c", [said("a"), said("b"), said("c")], create=True)
    held = load_state("c")
    for change in changes:
        change(2)
    with settings(KEEP_VERSIONS=0):
        assert list(prune())
    held.conversation_history[1] = said("mine")
    save_state("c", held)
    assert [entry["content"] for entry in load_state("c").conversation_history] == left


def test_a_dry_run_counts_and_removes_nothing() -> None:
    streamed("a", "ab", "abc")
    assert list(prune(now=timezone.now() + LATER, dry_run=True)) == [Pruned("c", 2)]
    assert versions() == [(1, "a"), (1, "ab"), (1, "abc")]


def test_only_named_conversations_are_pruned() -> None:
    streamed("a", "b", conversation_id="c")
    streamed("a", "b", conversation_id="d")
    assert list(prune(["d", "nowhere"], now=timezone.now() + LATER)) == [Pruned("d", 1)]
    assert versions("c") == [(1, "a"), (1, "b")]


def test_metadata_of_a_pruned_version_goes_with_it() -> None:
    streamed("a", "b")
    for row in ConversationMessage.rows.all():
        MemoryMetadata.objects.create(message=row, key="note", value=str(row.content))
    assert list(prune(now=timezone.now() + LATER)) == [Pruned("c", 1)]
    assert list(MemoryMetadata.objects.values_list("value", flat=True)) == ["b"]


def test_one_that_fails_is_reported_and_the_next_one_is_pruned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streamed("a", "b", conversation_id="c")
    streamed("a", "b", conversation_id="d")
    whole = retention._to_remove

    def failing(row: ConversationState, now: object) -> object:
        if row.conversation_id == "c":
            raise OperationalError
        return whole(row, now)  # type: ignore[arg-type]

    monkeypatch.setattr(retention, "_to_remove", failing)
    first, second = prune(now=timezone.now() + LATER)
    assert (first.conversation_id, first.versions) == ("c", 0)
    assert "did not answer" in first.reason
    assert second == Pruned("d", 1)
