"""An import writes messages, keys, times and forks as its lines have them."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import pytest
from django.contrib.auth.models import User
from django.test import override_settings

from conversations import storage
from conversations.formats import ImportOutcome, Result, export_lines, snapshots
from conversations.models import ConversationMessage, ConversationState
from conversations.rollout.verification import Kind, verify
from conversations.state import AgentState
from conversations.stores.chunks.store import ChunkStore
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk
from tests.support.exports import (
    MESSAGES,
    chats,
    contents,
    emptied,
    imported,
    line_of,
    results,
    save,
)

pytestmark = pytest.mark.django_db


def test_an_import_keeps_sequences_keys_and_times(owner: User) -> None:
    assert imported([line_of(user=str(owner.pk))]) == [ImportOutcome(1, "c", Result.CREATED, "")]
    row = ConversationState.objects.get()
    assert (row.user, row.revision, row.legacy_revision) == (owner, 1, 0)
    assert row.created_at == datetime(2026, 1, 1, tzinfo=UTC)
    assert row.updated_at == datetime(2026, 1, 2, 0, 0, 0, 1, tzinfo=UTC)
    assert [(m.sequence, m.key) for m in row.messages.order_by("sequence")] == [
        (1, None),
        (4, "key"),
    ]


def test_messages_added_after_an_import_come_behind_the_last_sequence() -> None:
    imported([line_of()])
    storage.append_messages("c", ["c"])
    (line,) = export_lines()
    places = [place[:2] for place in json.loads(line)["messages"]]
    assert places == [[1, None], [4, "key"], [5, mock.ANY]]


def test_sequences_that_were_taken_behind_the_last_are_not_given_again() -> None:
    save("a", "one", "two", "three")
    storage.remove_messages("a", last=2)
    (line,) = lines = list(export_lines())
    assert json.loads(line)["next_sequence"] == 4
    emptied()
    imported(lines)
    storage.append_messages("a", ["four"])
    assert ConversationMessage.objects.current().order_by("-sequence")[0].sequence == 4


def test_the_first_content_of_a_key_is_still_known_after_an_import() -> None:
    storage.save_state("a", AgentState())
    storage.append_messages("a", ["first"], keys=["k"])
    storage.replace_message("a", "k", "edited")
    lines = list(export_lines())
    assert list(json.loads(lines[0])["messages"][0][2]) == ["first_digest"]
    emptied()
    imported(lines)
    storage.append_messages("a", ["first"], keys=["k"])
    assert contents("a") == ["edited"]
    assert list(export_lines()) == lines


def test_when_a_message_was_added_is_still_known_after_an_import() -> None:
    save("a", "one")
    storage.append_messages("a", [{"timestamp": "2020-01-01"}, "three"])
    storage.append_messages("a", ["four"])
    before = list(ConversationMessage.objects.order_by("pk").values_list("timestamp", flat=True))
    lines = list(export_lines())
    emptied()
    imported(lines)
    after = ConversationMessage.objects.order_by("pk").values_list("timestamp", flat=True)
    assert list(after) == before
    assert len(set(before)) == 4


def test_an_append_repeated_after_an_import_adds_nothing() -> None:
    imported([line_of()])
    storage.append_messages("c", ["b"], keys=["key"])
    assert contents("c") == ["a", "b"]


def test_own_keys_are_imported_so_that_a_repeated_save_adds_nothing() -> None:
    save("a", "one")
    state = storage.load_state("a")
    repeated = copy.deepcopy(state)
    state.conversation_history.append("two")
    storage.save_state("a", state)
    assert repeated.conversation_history == [{"role": "user", "content": "one"}]
    lines = list(export_lines())
    emptied()
    imported(lines)
    repeated.conversation_history.append("two")
    storage.save_state("a", repeated)
    assert contents("a") == ["one", "two"]


def test_replacing_supersedes_what_differs_and_keeps_the_rest() -> None:
    imported([line_of()])
    kept = ConversationMessage.rows.get(sequence=1)
    state = AgentState(conversation_history=["a", "new", "more"]).to_dict()
    imported([line_of(state=state, messages=[[1, None], [3, None], [9, "key"]])], replace=True)
    found = ConversationMessage.rows.order_by("sequence", "added_in")
    assert [(m.sequence, m.content, m.added_in, m.superseded_in) for m in found] == [
        (1, "a", 1, None),
        (3, "new", 2, None),
        (4, "b", 1, 2),
        (9, "more", 2, None),
    ]
    assert found[0].pk == kept.pk
    storage.append_messages("c", ["last"])
    assert ConversationMessage.objects.current().order_by("-sequence")[0].sequence == 10


@pytest.mark.parametrize("phase", list(Phase))
def test_after_a_replacement_the_tables_are_the_truth_in_every_phase(phase: Phase) -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save("c", "one", "two")
    with forced_phase(phase):
        storage.append_messages("c", ["three"])
        assert results([line_of()], replace=True) == [("replaced", "")]
        assert contents("c") == ["a", "b"]
        assert list(export_lines()) == [line_of()]
        storage.append_messages("c", ["c"])
        assert contents("c") == ["a", "b", "c"]


@pytest.mark.parametrize("phase", list(Phase))
def test_an_imported_conversation_loads_in_every_phase_and_writes_no_legacy(
    phase: Phase,
) -> None:
    with forced_phase(phase):
        imported([line_of()])
        assert not MemoryChunk.objects.exists()
        assert contents("c") == ["a", "b"]
        storage.append_messages("c", ["c"])
        assert contents("c") == ["a", "b", "c"]


def test_a_blob_of_old_code_after_an_import_is_merged() -> None:
    imported([line_of()])
    ChunkStore().save("c", snapshots.Document.from_dict({"conversation_history": ["a", "b", "c"]}))
    assert contents("c") == ["a", "b", "c"]


SESSIONS = {
    "model": "blobs.AssistantSession",
    "conversation_id": "session_key",
    "owner": "owner",
    "state": "data",
}


@override_settings(CONVERSATIONS={"LEGACY": SESSIONS})
def test_a_json_column_that_holds_nothing_does_not_look_like_a_foreign_write() -> None:
    with forced_phase(Phase.DUAL_WRITE):
        imported([line_of()])
        assert [found.kinds for found in verify()] == [(Kind.TABLES_ONLY,)]
        assert list(export_lines()) == [line_of()]


def test_a_chat_that_replaces_keeps_the_sequences_of_what_is_equal(tmp_path: Path) -> None:
    chats(tmp_path, {"id": "a", "messages": MESSAGES})
    more = {"id": "a", "messages": [MESSAGES[1], {"role": "user", "content": "more"}]}
    assert chats(tmp_path, more) == [("a", "refused", "it is here with other content")]
    assert chats(tmp_path, more, replace=True) == [("a", "replaced", "")]
    found = ConversationMessage.objects.current().order_by("sequence")
    assert [(m.sequence, m.content) for m in found] == [(2, None), (3, "more")]
    assert chats(tmp_path, more) == [("a", "unchanged", "")]


def test_the_time_that_a_message_states_goes_before_that_of_its_place() -> None:
    stated = {"role": "user", "content": "dated", "timestamp": "2020-01-01T00:00:00+00:00"}
    added = {"timestamp": "2026-01-01T12:00:00+00:00"}
    for history in (["a", "b"], [stated, "b"], ["c", stated]):
        held = AgentState(conversation_history=history).to_dict()
        line = line_of(state=held, messages=[[1, None, added], [4, "key", added]])
        for fresh in (True, False):
            if fresh:
                emptied()
            else:
                imported([line_of()], replace=True)
            imported([line], replace=True)
            found = ConversationMessage.objects.current().order_by("sequence")
            years = [2020 if each is stated else 2026 for each in history]
            assert [each.timestamp.year for each in found] == years
            assert [each.timestamp.month for each in found] == [1, 1]
            (one,) = verify(["c"])
            assert one.kinds == (Kind.TABLES_ONLY,)


# Forks


def test_a_fork_before_its_origin_is_joined_when_the_origin_comes() -> None:
    fork = line_of(conversation_id="fork", forked_from="c")
    missing = "the conversation it was forked from is not here yet"
    assert results([fork, line_of()]) == [("created", missing), ("created", "")]
    assert ConversationState.objects.get(forked_from__conversation_id="c").conversation_id == "fork"


def test_a_fork_is_joined_by_a_later_run() -> None:
    fork = line_of(conversation_id="fork", forked_from="c")
    imported([fork])
    assert results([line_of(), fork]) == [("created", ""), ("unchanged", "")]
    assert ConversationState.objects.get(forked_from__conversation_id="c").conversation_id == "fork"


def test_forks_in_a_circle_are_not_closed() -> None:
    lines = [
        line_of(conversation_id="a", forked_from="b"),
        line_of(conversation_id="b", forked_from="c"),
        line_of(conversation_id="c", forked_from="a"),
    ]
    imported(lines)
    imported(lines)
    origins = dict(
        ConversationState.objects.values_list("conversation_id", "forked_from__conversation_id")
    )
    assert sum(origin is None for origin in origins.values()) == 1
