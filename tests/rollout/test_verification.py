"""Verification finds what the stores hold wrongly, and says nothing of its content."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from django.db import OperationalError, connection, connections
from django.test import override_settings

from conversations.content.document import Document
from conversations.models import ConversationMessage, ConversationState
from conversations.rollout.sync import Action, sync
from conversations.rollout.verification import Kind, Verified, verify
from conversations.state import AgentState
from conversations.storage import (
    append_messages,
    delete_conversation,
    remove_messages,
    save_state,
)
from conversations.stores.chunks.store import ChunkStore
from conversations.stores.normalized import NormalizedStore
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryContextItem
from tests.support.blobs.models import AssistantSession, TextSession
from tests.support.legacy_schema import old_save

pytestmark = pytest.mark.django_db(transaction=True)

SECRET = "a sentence nobody may read in a report"


def stored(phase: Phase = Phase.DUAL_WRITE, conversation_id: str = "c") -> None:
    with forced_phase(phase):
        save_state(
            conversation_id,
            AgentState(
                conversation_history=[
                    {"role": "user", "content": SECRET},
                    {"role": "assistant", "content": "yes"},
                ],
                memory_context=[{"content": SECRET, "source": "profile"}],
                extra={"note": SECRET},
            ),
        )


def found() -> Verified:
    (one,) = verify()
    assert SECRET not in repr(one)
    return one


def change_blob(old: str, new: str) -> None:
    chunk = MemoryChunk.objects.get()
    MemoryChunk.objects.update(content=str(chunk.content).replace(old, new))


def test_a_dual_write_verifies_as_equal() -> None:
    stored()
    assert found() == Verified("c", (Kind.EQUAL,))
    assert not found().mismatched


@pytest.mark.parametrize(
    ("phase", "kind"),
    [(Phase.LEGACY, Kind.MISSING_IN_TABLES), (Phase.NEW_ONLY, Kind.TABLES_ONLY)],
)
def test_a_conversation_in_one_store_is_named_as_such(phase: Phase, kind: Kind) -> None:
    stored(phase)
    assert found() == Verified("c", (kind,))
    assert found().mismatched is (phase == Phase.LEGACY)


def test_legacy_behind_is_no_mismatch() -> None:
    stored()
    with forced_phase(Phase.NEW_ONLY):
        append_messages("c", [{"role": "user", "content": "more"}])
    assert found() == Verified("c", (Kind.LEGACY_BEHIND,))


def test_legacy_ahead_is_pending() -> None:
    stored()
    with forced_phase(Phase.LEGACY):
        append_messages("c", [{"role": "user", "content": "more"}])
    assert found() == Verified("c", (Kind.PENDING,))


def test_old_codes_write_is_pending_and_verifying_does_not_merge_it() -> None:
    stored()
    old_save(connection, "c", None, AgentState(user_input="late").to_dict())
    assert found() == found() == Verified("c", (Kind.PENDING,))


def test_a_late_write_of_a_deleted_conversation_is_named() -> None:
    stored()
    with forced_phase(Phase.DUAL_WRITE):
        delete_conversation("c")
    old_save(connection, "c", None, AgentState(user_input="late").to_dict())
    assert found() == Verified("c", (Kind.DELETED,))


def test_a_blob_that_is_gone_although_the_numbers_are_equal_is_a_mismatch() -> None:
    stored()
    ChunkStore().delete("c")
    assert found() == Verified("c", (Kind.MISSING_IN_LEGACY,))
    assert found().mismatched


@pytest.mark.parametrize(
    ("old", "new", "places"),
    [
        ('"yes"', '"no"', ("conversation_history[1]",)),
        ('"profile"', '"rumour"', ("memory_context[0]",)),
        ('"step_count": 0', '"step_count": 1', ("step_count",)),
        (
            f'"note": "{SECRET}"',
            f'"{SECRET}": "{SECRET}"',
            ("unknown fields: 2", "order of the fields"),
        ),
        (
            ', {"role": "assistant", "content": "yes"}',
            "",
            ("conversation_history: 2 in the tables, 1 in legacy",),
        ),
    ],
)
def test_different_content_is_named_by_its_place(
    old: str, new: str, places: tuple[str, ...]
) -> None:
    stored()
    change_blob(old, new)
    assert found() == Verified("c", (Kind.DIFFERENT,), places)
    assert found().mismatched


def test_an_unreadable_blob_is_a_mismatch() -> None:
    stored()
    change_blob("{", "[")
    assert found() == Verified("c", (Kind.UNREADABLE,), ("legacy",))
    assert found().mismatched


def test_a_row_that_was_changed_behind_its_digest_is_found() -> None:
    stored()
    ConversationMessage.rows.filter(sequence=2).update(content="tampered")
    assert found() == Verified(
        "c",
        (Kind.DIFFERENT, Kind.DIGEST_LIES),
        ("conversation_history[1]", "messages: sequence 2, version of revision 1"),
    )


def test_a_superseded_row_is_verified_as_well() -> None:
    stored(Phase.NEW_ONLY)
    with forced_phase(Phase.NEW_ONLY):
        save_state("c", AgentState(conversation_history=[{"role": "user", "content": "other"}]))
    ConversationMessage.rows.filter(superseded_in__isnull=False, sequence=2).update(role="system")
    assert found().kinds == (Kind.TABLES_ONLY, Kind.DIGEST_LIES)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"messages_digest": bytes(16)}, "messages_digest"),
        ({"state_digest": bytes(32)}, "state_digest of the fields"),
        ({"message_count": 7}, "message_count 7 for 2 messages"),
        ({"context_item_count": 7}, "context_item_count 7 for 1 items"),
        ({"next_sequence": 2}, "next_sequence 2"),
        ({"user_input": "tampered"}, "state_digest of the fields"),
    ],
)
def test_a_digest_or_count_that_lies_is_found(change: dict[str, Any], place: str) -> None:
    stored(Phase.NEW_ONLY)
    ConversationState.rows.update(**change)
    assert found().kinds == (Kind.TABLES_ONLY, Kind.DIGEST_LIES)
    assert place in found().places
    assert found().mismatched


def test_a_context_item_that_was_changed_is_found() -> None:
    stored(Phase.NEW_ONLY)
    MemoryContextItem.objects.update(content="tampered")
    assert found().places == ("memory_context[0]",)


def test_context_items_that_no_load_would_show_are_found() -> None:
    stored(Phase.NEW_ONLY)
    empty = Document.from_dict({})
    fields = bytes(ConversationState.rows.get().state_digest)[:16]
    ConversationState.rows.update(
        context_item_count=0, state_digest=fields + empty.state_digest[16:]
    )
    assert found() == Verified(
        "c",
        (Kind.TABLES_ONLY, Kind.DIGEST_LIES),
        ("state_digest of the context items", "context_item_count 0 for 1 items"),
    )


@pytest.mark.parametrize(("sequence", "change"), [(1, "added_in"), (2, "superseded_in")])
def test_a_version_of_a_later_revision_than_its_conversation_is_found(
    sequence: int, change: str
) -> None:
    """Loads are as of the conversation's revision: they miss the one, and show the other."""
    stored(Phase.NEW_ONLY)
    with forced_phase(Phase.NEW_ONLY):
        remove_messages("c", [2])
    ConversationMessage.rows.filter(sequence=sequence).update(**{change: 9})
    assert found() == Verified(
        "c",
        (Kind.TABLES_ONLY, Kind.DIGEST_LIES),
        (f"messages: sequence {sequence}, later than revision 2",),
    )


def test_a_blob_that_was_set_aside_is_reported_and_is_no_mismatch() -> None:
    stored()
    old_save(connection, "c", None, {"conversation_history": "no list"})
    with forced_phase(Phase.DUAL_WRITE):
        append_messages("c", [{"role": "user", "content": "more"}])
    assert found() == Verified("c", (Kind.EQUAL, Kind.QUARANTINED))
    assert not found().mismatched


def test_a_named_conversation_that_is_nowhere_could_not_be_verified() -> None:
    (one,) = verify(["nowhere"])
    assert one == Verified("nowhere", (Kind.UNKNOWN,))
    assert one.failed


def let_reading_fail(
    conversation_id: str, error: Exception | type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let every statement fail by which legacy gives that conversation, alone or among others."""

    def failing(whole: Any) -> Any:
        def read(self: ChunkStore, named: Any) -> Any:
            if conversation_id in ([named] if isinstance(named, str) else named):
                raise error
            return whole(self, named)

        return read

    for name in ("load", "read_many"):
        monkeypatch.setattr(ChunkStore, name, failing(getattr(ChunkStore, name)))


def test_a_store_that_does_not_answer_is_no_mismatch_and_the_next_one_is_verified(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored(conversation_id="a")
    stored(conversation_id="b")
    let_reading_fail("a", OperationalError, monkeypatch)
    first, second = verify()
    assert first == Verified("a", (Kind.FAILED,), ("StorageUnavailable",))
    assert (first.failed, first.mismatched) == (True, False)
    assert second == Verified("b", (Kind.EQUAL,))


@pytest.mark.parametrize("depth", [390, 900])
@pytest.mark.parametrize("model", ["blobs.TextSession", "blobs.AssistantSession"])
def test_a_blob_as_deep_as_can_be_read_is_verified(model: str, depth: int) -> None:
    deep: Any = "x"
    for _ in range(depth):
        deep = [deep]
    legacy = {
        "model": model,
        "conversation_id": "session_key",
        "owner": "owner",
        "state": "payload" if model == "blobs.TextSession" else "data",
    }
    with override_settings(CONVERSATIONS={"LEGACY": legacy}):
        blob = AgentState(extra={"deep": deep}).to_dict()
        if model == "blobs.TextSession":
            TextSession.objects.create(session_key="c", payload=json.dumps(blob))
        else:
            AssistantSession.objects.create(session_key="c", data=blob)
        assert [one.action for one in sync("tables")] == [Action.TAKEN_IN]
        assert found() == Verified("c", (Kind.EQUAL,))


def test_an_error_that_is_not_ours_is_reported_by_its_type_and_the_next_one_is_verified(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored(conversation_id="a")
    stored(conversation_id="b")
    let_reading_fail("a", KeyError(SECRET), monkeypatch)
    assert list(verify()) == [
        Verified("a", (Kind.FAILED,), ("KeyError",)),
        Verified("b", (Kind.EQUAL,)),
    ]


def test_a_write_in_progress_is_not_reported_as_a_mismatch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first look reads the row, then a write, then the messages: too many of them."""
    stored()
    whole = NormalizedStore.versions
    writes = [{"role": "user", "content": "meanwhile"}]

    def versions(self: NormalizedStore, row: Any, **options: Any) -> Any:
        if writes:
            with forced_phase(Phase.DUAL_WRITE):
                append_messages("c", [writes.pop()])
        return whole(self, row, **options)

    monkeypatch.setattr(NormalizedStore, "versions", versions)
    assert found() == Verified("c", (Kind.EQUAL,))


def test_the_second_look_keeps_writes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that never rests makes every look without the lock see halves of two states."""
    stored()
    whole = NormalizedStore.versions
    threads: list[threading.Thread] = []

    def write() -> None:
        try:
            with forced_phase(Phase.DUAL_WRITE):
                append_messages("c", [{"role": "user", "content": "meanwhile"}])
        finally:
            connections.close_all()

    def versions(self: NormalizedStore, row: Any, **options: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            threads.append(threading.Thread(target=write))
            threads[-1].start()
            # The second one waits for the lock, and we do not wait for it.
            threads[-1].join(timeout=0.3 if len(threads) == 2 else None)
        return whole(self, row, **options)

    monkeypatch.setattr(NormalizedStore, "versions", versions)
    looked = found()
    for thread in threads:
        thread.join()
    assert (looked, len(threads)) == (Verified("c", (Kind.EQUAL,)), 2)
    assert ConversationState.rows.get().message_count == 4


def test_values_that_a_json_column_cannot_keep_are_no_mismatch() -> None:
    legacy = {
        "model": "blobs.AssistantSession",
        "conversation_id": "session_key",
        "owner": "owner",
        "state": "data",
        "version": "version",
    }
    with override_settings(CONVERSATIONS={"LEGACY": legacy}):
        with forced_phase(Phase.DUAL_WRITE):
            message = {"z": 1.0, "a": -0.0, "c": [1e23, {"y": 5e-324, "x": 1.5}], "role": "user"}
            state = AgentState(conversation_history=[message])
            save_state("c", state)
        assert found() == Verified("c", (Kind.EQUAL,))
        session = AssistantSession.objects.get()
        session.data["conversation_history"][0]["role"] = "system"
        session.save()
        assert found() == Verified("c", (Kind.DIFFERENT,), ("conversation_history[0]",))
