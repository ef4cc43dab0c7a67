"""Sync brings one store of each conversation to the truth, and writes nothing it need not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import OperationalError, connection, transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from conversations.exceptions import ConversationNotFound, StorageUnavailable
from conversations.models import ConversationConflict, ConversationMessage, ConversationState
from conversations.rollout.sync import Action, Synced, Target, sync
from conversations.rollout.verification import Kind, verify
from conversations.routing import ids
from conversations.state import AgentState
from conversations.storage import (
    append_messages,
    delete_conversation,
    get_conversation_timestamp,
    list_conversations,
    load_state,
    redact_message,
    remove_messages,
    save_state,
)
from conversations.stores.chunks.store import ChunkStore
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryMetadata
from tests.faults.injection import failing, touches_messages
from tests.machine.interleaving import interleaved
from tests.machine.oldcode import OldSession
from tests.support.blobs.models import TextSession
from tests.support.factories import UserFactory
from tests.support.legacy_schema import old_load, old_save

pytestmark = pytest.mark.django_db(transaction=True)

LONG_AGO = datetime(2024, 5, 1, 12, tzinfo=UTC)


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text} for text in texts]


def texts(conversation_id: str) -> list[str]:
    return [message["content"] for message in load_state(conversation_id).conversation_history]


def written_by_old_code(conversation_id: str, *lines: str, at: datetime | None = None) -> None:
    state = AgentState(conversation_history=said(*lines)).to_dict()
    old_save(connection, conversation_id, None, state, at)


def done(*args: Any, **options: Any) -> dict[str, Action]:
    return {found.conversation_id: found.action for found in sync(*args, **options)}


def everything() -> list[Any]:
    """Return every row of both stores."""
    models = (
        ConversationState,
        ConversationMessage,
        ConversationConflict,
        MemoryChunk,
        MemoryMetadata,
    )
    return [list(model._base_manager.order_by("pk").values()) for model in models]


def test_a_conversation_of_legacy_alone_is_taken_in_with_its_age() -> None:
    written_by_old_code("c", "a", "b", at=LONG_AGO)
    assert done("tables") == {"c": Action.TAKEN_IN}
    row = ConversationState.rows.get(conversation_id="c")
    assert (row.revision, row.legacy_revision, row.message_count) == (1, 1, 2)
    assert (row.created_at, row.updated_at) == (LONG_AGO, LONG_AGO)
    assert get_conversation_timestamp(None, "c") == LONG_AGO


def test_a_sync_does_not_change_the_order_of_a_users_conversations() -> None:
    user = get_user_model().objects.create(username="u")
    for day, name in enumerate("abc"):
        moment = LONG_AGO + timedelta(days=day)
        old_save(connection, name, user.pk, AgentState(user_input=name).to_dict(), moment)
    before = [one.conversation_id for one in list_conversations(user).conversations]
    list(sync("tables", ["c", "a", "b"]))
    after = [one.conversation_id for one in list_conversations(user).conversations]
    assert before == after == ["c", "b", "a"]


def test_taking_in_and_redacting_are_no_activity() -> None:
    written_by_old_code("taken in", "a", at=LONG_AGO)
    with forced_phase(Phase.NEW_ONLY):
        save_state("merged", AgentState(conversation_history=said("a")))
        ConversationState.rows.update(updated_at=LONG_AGO)
        written_by_old_code("merged", "a", "b", at=LONG_AGO + timedelta(days=1))
        assert texts("merged") == ["a", "b"]
        redact_message("merged", 1)
        redact_message("taken in", 1)
    assert get_conversation_timestamp(None, "merged") == LONG_AGO + timedelta(days=1)
    assert get_conversation_timestamp(None, "taken in") == LONG_AGO


@pytest.mark.parametrize("age", [timedelta(0), timedelta(hours=2)])
def test_a_conversation_taken_in_falls_back_to_its_blob(age: timedelta) -> None:
    written_by_old_code("c", "a", at=datetime.now(UTC) - age)
    assert done("tables") == {"c": Action.TAKEN_IN}
    with forced_phase(Phase.DUAL_WRITE), failing(touches_messages) as failed:
        assert texts("c") == ["a"]
        append_messages("c", said("b"))
    assert failed
    assert texts("c") == ["a", "b"]


def test_one_that_fails_inside_a_transaction_takes_nothing_of_the_callers_with_it() -> None:
    written_by_old_code("broken", "a")
    MemoryChunk.objects.update(content="{")
    with transaction.atomic():
        with forced_phase(Phase.NEW_ONLY):
            save_state("c", AgentState(conversation_history=said("mine")))
        assert done("tables", ["broken"]) == {"broken": Action.FAILED}
    assert texts("c") == ["mine"]


def test_old_codes_late_write_is_merged() -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", AgentState(conversation_history=said("a", "b")))
    written_by_old_code("c", "b", "late")
    assert done("tables") == {"c": Action.MERGED}
    assert texts("c") == ["a", "b", "late"]


def test_content_ahead_in_legacy_replaces_that_of_the_tables() -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", AgentState(conversation_history=said("a", "b")))
    with forced_phase(Phase.LEGACY):
        state = load_state("c")
        state.conversation_history = said("a", "c")
        save_state("c", state)
    assert done("tables") == {"c": Action.CAUGHT_UP}
    with forced_phase(Phase.NEW_ONLY):
        assert load_state("c").load_info.store == "tables"
        assert texts("c") == ["a", "c"]


def test_content_ahead_in_the_tables_reaches_legacy_whole() -> None:
    with forced_phase(Phase.NEW_ONLY):
        save_state("c", AgentState(conversation_history=said("a"), extra={"mood": 1.0}))
        append_messages("c", said("b"))
        expected = load_state("c").to_dict()
    assert old_load(connection, "c") is None
    assert done("legacy") == {"c": Action.WRITTEN_TO_LEGACY}
    assert old_load(connection, "c") == expected
    row = ConversationState.rows.get(conversation_id="c")
    assert (row.revision, row.legacy_revision) == (3, 3)


def test_a_second_sync_writes_nothing() -> None:
    written_by_old_code("taken", "a")
    with forced_phase(Phase.DUAL_WRITE):
        save_state("merged", AgentState(conversation_history=said("a")))
    written_by_old_code("merged", "a", "b")
    with forced_phase(Phase.NEW_ONLY):
        save_state("ahead", AgentState(conversation_history=said("a")))
    for target in (*Target, *Target):
        list(sync(target))
    before = everything()
    actions = [done(target) for target in Target]
    assert actions == [dict.fromkeys(("merged", "ahead", "taken"), Action.UNCHANGED)] * 2
    assert everything() == before


def test_a_dry_run_says_what_would_be_done_and_writes_nothing() -> None:
    written_by_old_code("c", "a")
    with forced_phase(Phase.NEW_ONLY):
        save_state("d", AgentState(conversation_history=said("a")))
    before = everything()
    assert done("tables", dry_run=True) == {"d": Action.UNCHANGED, "c": Action.TAKEN_IN}
    assert done("legacy", dry_run=True) == {
        "d": Action.WRITTEN_TO_LEGACY,
        "c": Action.UNCHANGED,
    }
    assert everything() == before


def ahead_in_legacy(name: str) -> None:
    """Leave our own last write to legacy alone, which the tables know of."""
    with forced_phase(Phase.DUAL_WRITE):
        save_state(name, AgentState(conversation_history=said("a")), UserFactory())
    with forced_phase(Phase.LEGACY):
        append_messages(name, said("b"))


def too_long() -> None:
    written_by_old_code("l" * 256, "a")


def unreadable_and_ahead() -> None:
    ahead_in_legacy("c")
    MemoryChunk.objects.update(content="{")


def anothers_and_ahead() -> None:
    ahead_in_legacy("c")
    MemoryChunk.objects.update(user=UserFactory())


def unreadable_and_merged() -> None:
    """Set aside, and so no failure."""
    ahead_in_legacy("c")
    written_by_old_code("c", "a", "late")
    MemoryChunk.objects.filter(pk=MemoryChunk.objects.latest("pk").pk).update(content="{")


def unreadable_and_ahead_and_merged() -> None:
    ahead_in_legacy("c")
    MemoryChunk.objects.update(content="{")
    written_by_old_code("c", "a", "late")


def deleted_and_late() -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", AgentState())
        delete_conversation("c")
    written_by_old_code("c", "late")


@pytest.mark.parametrize("target", Target)
@pytest.mark.parametrize(
    "spoil",
    [
        too_long,
        unreadable_and_ahead,
        anothers_and_ahead,
        unreadable_and_merged,
        unreadable_and_ahead_and_merged,
        deleted_and_late,
    ],
)
def test_a_dry_run_says_what_the_sync_then_does(spoil: Callable[[], None], target: Target) -> None:
    """It says "taken in" or "caught up" of nothing that fails then, and why it would fail."""
    spoil()
    before = everything()
    tried = list(sync(target, dry_run=True))
    assert everything() == before
    assert list(sync(target)) == tried


def test_a_deleted_conversation_stays_deleted_and_its_late_write_goes() -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", AgentState(conversation_history=said("a")))
        delete_conversation("c")
    written_by_old_code("c", "a", "late")
    assert done("tables") == {"c": Action.ERASED}
    assert done("tables") == done("legacy") == {}
    assert not MemoryChunk.objects.exists()
    assert not ConversationState.objects.exists()


def test_one_that_fails_is_reported_and_the_next_one_is_synced() -> None:
    written_by_old_code("a", "first")
    written_by_old_code("b", "second")
    written_by_old_code("c", "third")
    MemoryChunk.objects.filter(metadata__value="b").update(content="{broken")
    found = {one.conversation_id: one for one in sync("tables")}
    assert {name: one.action for name, one in found.items()} == {
        "a": Action.TAKEN_IN,
        "b": Action.FAILED,
        "c": Action.TAKEN_IN,
    }
    assert "holds no state" in found["b"].reason
    assert set(ConversationState.objects.values_list("conversation_id", flat=True)) == {"a", "c"}


def test_named_conversations_alone_are_synced_and_unknown_ones_fail() -> None:
    written_by_old_code("a", "x")
    written_by_old_code("b", "x")
    found = list(sync("tables", ["b", "nowhere", "b"]))
    assert found == [
        Synced("b", Action.TAKEN_IN),
        Synced(
            "nowhere",
            Action.FAILED,
            str(ConversationNotFound()),
            reason_class="not_found",
        ),
    ]


def test_a_message_removed_in_the_tables_stays_removed_in_legacy() -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", AgentState(conversation_history=said("a", "b", "c")))
    with forced_phase(Phase.NEW_ONLY):
        remove_messages("c", [2])
    assert done("legacy") == {"c": Action.WRITTEN_TO_LEGACY}
    state = old_load(connection, "c")
    assert state is not None
    assert state["conversation_history"] == said("a", "c")


def test_a_blob_that_vanished_is_written_again() -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", AgentState(conversation_history=said("a")))
    ChunkStore().delete("c")
    assert [one.kinds for one in verify()] == [(Kind.MISSING_IN_LEGACY,)]
    assert done("tables") == {"c": Action.UNCHANGED}
    assert done("legacy") == {"c": Action.WRITTEN_TO_LEGACY}
    assert [one.kinds for one in verify()] == [(Kind.EQUAL,)]


def test_without_a_legacy_store_there_is_nothing_to_sync() -> None:
    with override_settings(CONVERSATIONS={}), pytest.raises(ConversationNotFound, match="LEGACY"):
        list(sync("tables"))


@pytest.mark.parametrize("model", ["blobs.TextSession", "blobs.AssistantSession"])
def test_a_hosts_own_table_is_synced_both_ways(model: str) -> None:
    names = {"blobs.TextSession": "payload", "blobs.AssistantSession": "data"}
    legacy = {
        "model": model,
        "conversation_id": "session_key",
        "owner": "owner",
        "state": names[model],
    }
    with override_settings(CONVERSATIONS={"LEGACY": legacy}):
        with forced_phase(Phase.LEGACY):
            save_state("c", AgentState(conversation_history=said("a"), extra={"b": 1.0, "a": 2}))
        assert done("tables") == {"c": Action.TAKEN_IN}
        with forced_phase(Phase.NEW_ONLY):
            append_messages("c", said("b"))
        assert done("legacy") == {"c": Action.WRITTEN_TO_LEGACY}
        assert [one.kinds for one in verify()] == [(Kind.EQUAL,)]
        with forced_phase(Phase.LEGACY):
            assert texts("c") == ["a", "b"]


def test_an_overwritten_row_of_a_host_is_merged_by_a_sync() -> None:
    old = OldSession()
    with override_settings(CONVERSATIONS={"LEGACY": old.settings}):
        with forced_phase(Phase.DUAL_WRITE):
            save_state("c", AgentState(conversation_history=said("a", "b")))
        old.write("c", AgentState(conversation_history=said("b", "late")).to_dict())
        assert [one.kinds for one in verify()] == [(Kind.PENDING,)]
        assert done("tables") == {"c": Action.MERGED}
        assert texts("c") == ["a", "b", "late"]


def test_a_second_sync_of_a_hosts_own_table_only_reads() -> None:
    old = OldSession()
    with override_settings(CONVERSATIONS={"LEGACY": old.settings}):
        old.write("taken", AgentState(conversation_history=said("a")).to_dict())
        with forced_phase(Phase.DUAL_WRITE):
            save_state("merged", AgentState(conversation_history=said("a")))
        old.write("merged", AgentState(conversation_history=said("a", "b")).to_dict())
        with forced_phase(Phase.NEW_ONLY):
            save_state("ahead", AgentState(conversation_history=said("a")))
        for target in (*Target, *Target):
            list(sync(target))
        before = everything(), list(TextSession.objects.order_by("pk").values())
        with CaptureQueriesContext(connection) as captured:
            actions = [done(target) for target in Target]
        assert actions == [dict.fromkeys(("merged", "ahead", "taken"), Action.UNCHANGED)] * 2
        assert written(captured) == []
        assert (everything(), list(TextSession.objects.order_by("pk").values())) == before


def test_every_conversation_of_both_stores_is_reached_across_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ids, "BATCH", 2)
    with forced_phase(Phase.NEW_ONLY):
        for name in "eca":
            save_state(name, AgentState(conversation_history=said(name)))
    for name in "fdbEé":
        written_by_old_code(name, name)
    with forced_phase(Phase.DUAL_WRITE):
        save_state("g", AgentState(conversation_history=said("g")))
    for dry_run in (True, False):
        found = [one.conversation_id for one in sync("tables", dry_run=dry_run)]
        assert found[:4] == ["e", "c", "a", "g"]
        assert sorted(found[4:]) == sorted("fdbEé")
    assert ConversationState.objects.count() == 9


def test_a_sync_that_fails_half_way_leaves_that_conversation_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("a", AgentState(conversation_history=said("a")))
        save_state("b", AgentState(conversation_history=said("b")))
    written_by_old_code("a", "a", "late")
    with forced_phase(Phase.NEW_ONLY):
        append_messages("b", said("more"))
    before = everything()
    whole = ChunkStore.save

    def failing(self: ChunkStore, conversation_id: str, *args: Any, **options: Any) -> Any:
        whole(self, conversation_id, *args, **options)
        raise ValueError("a text that nobody may read in a report")

    with monkeypatch.context() as patched:
        patched.setattr(ChunkStore, "save", failing)
        assert done("legacy", ["b"]) == {"b": Action.FAILED}
        assert everything() == before
        assert list(sync("legacy")) == [
            Synced("a", Action.MERGED),
            Synced("b", Action.FAILED, "ValueError", reason_class="error"),
        ]
    assert done("legacy") == {"a": Action.UNCHANGED, "b": Action.WRITTEN_TO_LEGACY}


def test_a_write_waits_for_the_sync_of_its_conversation() -> None:
    """Without the lock, the sync would write legacy from what it had read before the append."""
    with forced_phase(Phase.NEW_ONLY):
        save_state("c", AgentState(conversation_history=said("a")))

    def append() -> None:
        with forced_phase(Phase.DUAL_WRITE):
            append_messages("c", said("meanwhile"))

    def syncing() -> dict[str, Action]:
        return done("legacy", ["c"])

    assert interleaved(syncing, append)[0] == {"c": Action.WRITTEN_TO_LEGACY}
    state = old_load(connection, "c")
    assert state is not None
    assert state["conversation_history"] == said("a", "meanwhile")
    assert [one.kinds for one in verify()] == [(Kind.EQUAL,)]
    assert texts("c") == ["a", "meanwhile"]


def test_a_hosts_transaction_that_cannot_commit_ends_the_sync() -> None:
    """What was synced before is lost with it: to go on would be to report what is not kept."""
    written_by_old_code("a", "x")
    written_by_old_code("b", "x")
    lost: type[Exception] = StorageUnavailable
    if connection.vendor == "postgresql":
        # What the database says stays what it is: see conversations.routing.transactions.
        lost = OperationalError
    with pytest.raises(lost), transaction.atomic():
        steps = sync("tables")
        assert next(steps) == Synced("a", Action.TAKEN_IN)
        if connection.vendor == "postgresql":
            connection.connection.close()
        else:
            transaction.set_rollback(True)
        next(steps)
    connection.close()
    assert not ConversationState.objects.exists()


def test_after_a_lost_connection_the_next_conversation_has_a_new_one() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no server that a connection could be lost to")
    for name in "abc":
        written_by_old_code(name, "x")
    steps = sync("tables")
    assert next(steps) == Synced("a", Action.TAKEN_IN)
    connection.connection.close()
    assert [one.action for one in steps] == [Action.FAILED, Action.TAKEN_IN]
    assert done("tables") == dict.fromkeys("ac", Action.UNCHANGED) | {"b": Action.TAKEN_IN}


def written(captured: CaptureQueriesContext) -> list[str]:
    """Return the statements that change rows."""
    changing = ("INSERT", "UPDATE", "DELETE")
    return [found["sql"] for found in captured if found["sql"].startswith(changing)]
