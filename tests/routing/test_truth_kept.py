"""What the stores do when one of them cannot say where the truth is, or has lost it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import override_settings
from django.utils import timezone

from conversations.exceptions import InvalidState, StorageUnavailable, UnreadableState
from conversations.models import ConversationState
from conversations.rollout.sync import Action, sync
from conversations.state import AgentState
from conversations.storage import (
    append_messages,
    load_state,
    save_state,
    update_state_partial,
)
from conversations.stores.normalized import NormalizedStore
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryMetadata
from tests.faults.injection import failing, touches_legacy
from tests.support.factories import UserFactory, messages, state, texts
from tests.support.legacy_schema import old_save
from tests.writing.test_ingest import JSON_COLUMN

pytestmark = pytest.mark.django_db(transaction=True)


def ahead_in_legacy(**owner: Any) -> None:
    """Create a conversation whose last write, "b", is in legacy alone."""
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("a"), **owner)
    with forced_phase(Phase.LEGACY):
        append_messages("c", messages("b"))


def writes(table: str, verb: str) -> Callable[[str], bool]:
    return lambda sql: sql.startswith(verb) and table in sql


def vanish() -> None:
    """Delete every blob behind our back."""
    MemoryMetadata.objects.all()._raw_delete("default")
    MemoryChunk.objects.all()._raw_delete("default")


# A legacy that does not answer


def test_in_new_only_a_legacy_that_is_down_stops_nothing_that_the_tables_know() -> None:
    with forced_phase(Phase.NEW_ONLY):
        save_state("c", state("a"))
        with failing(touches_legacy) as failed:
            append_messages("c", messages("b"))
            found = load_state("c")
        assert failed
        assert (texts(found), found.load_info.stale) == (["a", "b"], True)
        assert texts(load_state("c")) == ["a", "b"]


def test_an_append_to_content_of_legacy_alone_waits_for_legacy() -> None:
    ahead_in_legacy()
    with forced_phase(Phase.NEW_ONLY):
        with failing(touches_legacy):
            with pytest.raises(StorageUnavailable):
                append_messages("c", messages("c"))
            with pytest.raises(StorageUnavailable):
                load_state("c")
        append_messages("c", messages("c"))
        assert texts(load_state("c")) == ["a", "b", "c"]


def test_in_phase_legacy_a_save_that_legacy_refuses_is_no_success() -> None:
    """Also when the tables, which keep the keys, would have taken it."""
    with forced_phase(Phase.LEGACY):
        append_messages("c", messages("a"), keys=["1"], create=True)
        with failing(writes("memory_chunks", "INSERT")), pytest.raises(StorageUnavailable):
            append_messages("c", messages("b"), keys=["2"])
        assert texts(load_state("c")) == ["a"]


def test_a_row_that_cannot_be_told_learns_of_the_blob_later() -> None:
    ahead_in_legacy()
    with forced_phase(Phase.LEGACY):
        with failing(writes("conversation_states", "UPDATE")) as failed:
            result = append_messages("c", messages("c"))
        assert failed
        assert (result["success"], result["stores"]) == (True, ["legacy"])
    for phase in Phase:
        with forced_phase(phase):
            assert texts(load_state("c")) == ["a", "b", "c"]


@pytest.mark.parametrize("phase", [Phase.LEGACY, Phase.DUAL_WRITE])
@pytest.mark.parametrize("verb", ["SELECT", "INSERT"])
def test_a_write_that_legacy_refuses_is_not_written_blindly(phase: Phase, verb: str) -> None:
    """A blob without a number is merged as old code's: what this save removes would come back."""
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("a", "secret"))
    with forced_phase(Phase.LEGACY):
        held = load_state("c")
    del held.conversation_history[1]
    for table in ("memory_chunks", "memory_metadata"):
        with forced_phase(Phase.LEGACY), failing(writes(table, verb), times=1) as failed:
            with suppress(StorageUnavailable):
                save_state("c", held)
            if not failed:
                continue
        with forced_phase(phase):
            save_state("c", held)
            assert texts(load_state("c")) == ["a"]
    for later in Phase:
        with forced_phase(later):
            assert texts(load_state("c")) == ["a"]


def test_where_the_tables_are_ahead_a_row_that_cannot_be_told_stops_the_write() -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("a"))
    with forced_phase(Phase.NEW_ONLY):
        append_messages("c", messages("b"))
    with forced_phase(Phase.LEGACY):
        with failing(writes("conversation_states", "UPDATE")), pytest.raises(StorageUnavailable):
            update_state_partial("c", {"user_input": "new"})
        update_state_partial("c", {"user_input": "new"})
        assert load_state("c").user_input == "new"


@override_settings(CONVERSATIONS={"LEGACY": JSON_COLUMN})
def test_a_value_beyond_legacys_json_is_refused_while_legacy_decides_and_left_out_later() -> None:
    odd = AgentState(last_tool_result=float("nan"))
    with forced_phase(Phase.DUAL_WRITE), pytest.raises(InvalidState, match="NaN"):
        save_state("c", odd)
    with forced_phase(Phase.NEW_READS):
        assert save_state("c", odd)["stores"] == ["tables"]
        assert str(load_state("c").last_tool_result) == "nan"


# Blobs that vanish, or change hands


@pytest.mark.parametrize("phase", Phase)
def test_vanished_blobs_never_empty_the_tables(
    phase: Phase, caplog: pytest.LogCaptureFixture
) -> None:
    ahead_in_legacy()
    vanish()
    with forced_phase(phase):
        found = load_state("c")
        assert (texts(found), found.load_info.stale) == (["a"], True)
        with caplog.at_level(logging.ERROR, "conversations"):
            append_messages("c", messages("c"))
        assert "vanished" in caplog.text
        assert texts(load_state("c")) == ["a", "c"]


@pytest.mark.parametrize("phase", [Phase.LEGACY, Phase.DUAL_WRITE])
def test_a_blob_that_vanished_while_both_were_equal_is_written_anew(phase: Phase) -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("a"))
    vanish()
    with forced_phase(phase):
        append_messages("c", messages("b"))
        found = load_state("c")
    assert (texts(found), found.load_info.store) == (["a", "b"], "legacy")


def test_a_blob_that_changed_hands_is_not_taken_in() -> None:
    owner, other = UserFactory(), UserFactory()
    ahead_in_legacy(user_id=owner)
    MemoryChunk.objects.update(user=other)
    with forced_phase(Phase.NEW_ONLY), pytest.raises(UnreadableState, match="another owner"):
        append_messages("c", messages("c"))
    assert [row.message_count for row in ConversationState.objects.all()] == [1]


def test_nor_is_one_taken_in_because_old_code_wrote_beside_it() -> None:
    owner, other = UserFactory(), UserFactory()
    ahead_in_legacy(user_id=owner)
    MemoryChunk.objects.update(user=other)
    old_save(connection, "c", owner.pk, state("a", "old").to_dict())
    for phase in Phase:
        with forced_phase(phase):
            with pytest.raises(UnreadableState, match="another owner"):
                load_state("c", user_id=owner)
            with pytest.raises(UnreadableState, match="another owner"):
                append_messages("c", messages("c"))
    for dry_run in (True, False):
        (found,) = sync("tables", dry_run=dry_run)
        assert (found.action, found.reason_class) == (Action.FAILED, "other_owner")
    assert [row.message_count for row in ConversationState.objects.all()] == [1]
    assert not ConversationState.objects.get().conflicts.exists()
    MemoryChunk.objects.update(user=owner)
    assert sorted(texts(load_state("c", user_id=owner))) == ["a", "b", "old"]


@pytest.mark.parametrize("beside", [False, True])
def test_an_owner_that_legacy_gained_is_taken_in(beside: bool) -> None:
    user = UserFactory()
    ahead_in_legacy()
    MemoryChunk.objects.update(user=user)
    if beside:
        old_save(connection, "c", None, state("a", "old").to_dict())
    (found,) = sync("tables")
    assert found.action == (Action.MERGED if beside else Action.CAUGHT_UP)
    with forced_phase(Phase.NEW_ONLY):
        expected = ["a", "b", "old"] if beside else ["a", "b"]
        assert sorted(texts(load_state("c", user_id=user))) == expected
        assert texts(load_state("c", user_id=UserFactory())) == []


def test_a_blob_that_cannot_be_read_leaves_its_conversation_to_the_tables() -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("a"))
        MemoryChunk.objects.update(content="{")
        assert texts(load_state("c")) == ["a"]


def test_a_blob_that_alone_holds_the_truth_and_cannot_be_read_is_an_error() -> None:
    ahead_in_legacy()
    MemoryChunk.objects.update(content="{")
    for phase in Phase:
        with forced_phase(phase), pytest.raises(UnreadableState):
            load_state("c")


# Old code beside a write of ours that legacy alone holds


def test_our_write_to_legacy_alone_stays_beside_a_later_one_of_old_code() -> None:
    ahead_in_legacy()
    old_save(connection, "c", None, state("a", "old").to_dict())
    with forced_phase(Phase.NEW_ONLY):
        assert sorted(texts(load_state("c"))) == ["a", "b", "old"]


def test_fields_and_items_of_old_code_stay_on_record_where_the_tables_were_ahead() -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("a", user_input="ours", memory_context=["i"]))
    with forced_phase(Phase.NEW_ONLY):
        append_messages("c", messages("b"))
        theirs = state("a", "old", user_input="theirs", memory_context=["j"])
        old_save(connection, "c", None, theirs.to_dict())
        found = load_state("c")
    assert (texts(found), found.user_input) == (["a", "b", "old"], "ours")
    assert found.memory_context == ["i"]
    (record,) = ConversationState.objects.get().conflicts.all()
    assert "theirs" in record.detail
    assert '"j"' in record.detail


def test_blobs_whose_ids_and_times_disagree_are_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = timezone.now()
    with forced_phase(Phase.NEW_ONLY):
        save_state("c", state("a"))
        old_save(connection, "c", None, state("a", "late").to_dict(), now)
        old_save(connection, "c", None, state("a", "early").to_dict(), now - timedelta(minutes=1))
        with caplog.at_level(logging.WARNING, "conversations"):
            found = texts(load_state("c"))
    assert sorted(found) == ["a", "early", "late"]
    assert "disagree" in caplog.text


# Reading while others write


def test_a_conversation_that_never_holds_still_is_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its context items are always another revision's: they take a statement of their own."""
    with forced_phase(Phase.NEW_ONLY):
        save_state("c", state("a", memory_context=["x"]))
        items = NormalizedStore.items
        monkeypatch.setattr(
            NormalizedStore, "items", lambda self, row, **options: (items(self, row)[0], 0)
        )
        with pytest.raises(StorageUnavailable, match="changes faster"):
            load_state("c")
