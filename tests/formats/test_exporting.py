"""An export writes each conversation, whole, as of one revision."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext

from conversations import storage
from conversations.exceptions import ConversationNotFound, StorageUnavailable
from conversations.formats import export_lines, snapshots
from conversations.models import ConversationMessage, ConversationState
from conversations.state import AgentState
from conversations.stores.chunks.store import ChunkStore
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk
from tests.support.exports import awkward_state, contents, save

pytestmark = pytest.mark.django_db


def test_a_line_says_everything_of_a_conversation_and_nothing_else(owner: User) -> None:
    storage.save_state("a", AgentState("hello", memory_context=[{"content": "x"}]), owner)
    storage.append_messages("a", [{"role": "user", "content": "é"}], keys=["first"])
    storage.append_messages("a", [1, 2], keys=["second", "third"])
    storage.remove_messages("a", ["second"])
    row = ConversationState.objects.get()
    created, updated = row.created_at.isoformat(), row.updated_at.isoformat()
    first, third = (
        message.timestamp.isoformat() for message in row.messages.current().order_by("sequence")
    )
    assert list(export_lines()) == [
        f'{{"format": 1, "conversation_id": "a", "user": "{owner.pk}", "forked_from": null,'
        f' "created_at": "{created}", "updated_at": "{updated}",'
        ' "state": {"user_input": "hello", "memory_context": [{"content": "x"}], "history": [],'
        ' "step_count": 0, "focus": [],'
        ' "conversation_history": [{"role": "user", "content": "\\u00e9"}, 2],'
        f' "last_tool_result": null}}, "messages": [[1, "first", {{"timestamp": "{first}"}}],'
        f' [3, "third", {{"timestamp": "{third}"}}]]}}'
    ]


def test_the_state_of_a_line_is_what_to_dict_gives() -> None:
    storage.save_state("a", awkward_state())
    (line,) = export_lines()
    assert f'"state": {json.dumps(awkward_state().to_dict())}, "messages"' in line


def test_a_conversation_of_legacy_alone_is_exported_with_its_owner_and_time(owner: User) -> None:
    with forced_phase(Phase.LEGACY):
        save("a", "one", "two", user=owner)
        chunk = MemoryChunk.objects.get()
        (line,) = export_lines()
    assert not ConversationState.objects.exists()
    assert json.loads(line) == {
        "format": 1,
        "conversation_id": "a",
        "user": str(owner.pk),
        "forked_from": None,
        "created_at": chunk.created_at.isoformat(),
        "updated_at": chunk.created_at.isoformat(),
        "state": json.loads(chunk.content),
        "messages": [[1, None], [2, None]],
    }


def test_messages_ahead_in_legacy_are_exported_with_the_sequences_they_will_get() -> None:
    save("a", "one", "two")
    with forced_phase(Phase.LEGACY):
        state = storage.load_state("a")
        del state.conversation_history[0]
        state.conversation_history.append("three")
        storage.save_state("a", state)
        (before,) = export_lines()
    assert (
        ConversationState.objects.get().revision < ConversationState.objects.get().legacy_revision
    )
    storage.append_messages("a", [])
    with forced_phase(Phase.NEW_ONLY):
        storage.append_messages("a", ["four"])
    (after,) = export_lines()
    places = json.loads(before)["messages"]
    assert [place[0] for place in places] == [2, 3]
    assert [place[0] for place in json.loads(after)["messages"]] == [2, 3, 4]
    assert json.loads(before)["state"]["conversation_history"] == [
        {"role": "user", "content": "two"},
        "three",
    ]


def test_a_blob_of_old_code_is_merged_before_an_export() -> None:
    save("a", "one")
    old = {"conversation_history": [{"role": "user", "content": "one"}, "late"]}
    ChunkStore().save("a", snapshots.Document.from_dict(old))
    (line,) = export_lines()
    assert json.loads(line)["state"]["conversation_history"] == [
        {"role": "user", "content": "one"},
        "late",
    ]


def test_a_line_is_as_of_one_revision_while_others_write() -> None:
    save("a", "one")
    at_truth = snapshots.at_truth

    def slow(conversation_id: str, decision: Any, *, owner: Any) -> Any:
        found = at_truth(conversation_id, decision, owner=owner)
        storage.append_messages("a", ["later"])
        return found

    with mock.patch.object(snapshots, "at_truth", slow):
        (line,) = export_lines()
    assert json.loads(line)["messages"] == [[1, mock.ANY]]
    assert contents("a") == ["one", "later"]


def test_an_export_of_rows_that_lie_fails_instead_of_leaving_them_out() -> None:
    save("a", "one", "two")
    ConversationMessage.rows.filter(sequence=2).delete()
    with pytest.raises(StorageUnavailable, match="conversations verify"):
        list(export_lines())


def test_a_named_conversation_that_is_not_there_fails_an_export() -> None:
    save("a", "one")
    storage.delete_conversation("a")
    with pytest.raises(ConversationNotFound):
        list(export_lines(["a"]))
    assert list(export_lines()) == []


def test_named_conversations_are_exported_in_the_order_of_the_names() -> None:
    for name in "abc":
        save(name, name)
    lines = [json.loads(line)["conversation_id"] for line in export_lines(iter(["c", "a"]))]
    assert lines == ["c", "a"]


def test_an_export_reads_a_conversation_when_its_line_is_asked_for() -> None:
    for name in "abc":
        save(name, name)
    with CaptureQueriesContext(connection) as queries:
        next(export_lines())
    read = [query["sql"] for query in queries if "conversation_messages" in query["sql"]]
    # Its messages, and when they were added.
    assert len(read) == 2
