"""Conversations in files: what leaves comes back, and nothing here is lost to what arrives."""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from hypothesis import given, settings, strategies as st

from conversations import storage
from conversations.exceptions import ConversationNotFound, InvalidState, StorageUnavailable
from conversations.formats import (
    Conversation,
    ImportOutcome,
    Owners,
    Result,
    export_lines,
    import_lines,
    import_records,
    open_for_writing,
    read_conversations,
    read_records,
    snapshots,
)
from conversations.models import (
    ConversationMessage,
    ConversationRedaction,
    ConversationState,
    ConversationTombstone,
)
from conversations.rollout.verification import Kind, verify
from conversations.state import AgentState
from conversations.stores.chunks.store import ChunkStore
from conversations.writing.delete import claim
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk
from tests.faults.injection import failing, inserts_messages
from tests.support.scale import examples

pytestmark = pytest.mark.django_db

AWKWARD: list[Any] = [
    {"role": "user", "content": "NUL \x00 and \\u0000 and \\ and 😀 and a lone \ud800"},
    {"content": "keys in another order", "role": "assistant", "unknown": {"b": 1, "a": 1.0}},
    {"role": "user", "content": [{"type": "text", "text": "parts"}, {"type": "image", "n": -0.0}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "arguments": '{"a" : 1}'}]},
    {"role": "tool", "tool_call_id": "c", "name": "sum", "content": "", "tool_success": False},
    "not a mapping",
    17,
    None,
    [],
    {"": {}, "1e22": 1e22, "whole": 10**22, "inf": float("inf"), "minus": float("-inf")},
    {"nan": float("nan"), "one": 1, "1.0": 1.0, "true": True, "-0.0": -0.0},
    {"role": "user", "content": "dated", "timestamp": "2020-01-01T00:00:00"},
]


def awkward_state() -> AgentState:
    return AgentState(
        user_input="in\x00put \udc00",
        memory_context=[
            {"content": "an item", "relevance_score": 1.0, "z": 1, "a": 2},
            {"relevance_score": -0.0, "content": "b"},
            "text",
            None,
        ],
        history=[{"step": 1}, [float("nan")]],
        step_count=2**70,
        focus=["b", "a", 1.0],
        conversation_history=list(AWKWARD),
        last_tool_result={"b": 1e22, "a": [1, 1.0, True]},
        extra={"config": {"y": 1, "x": -0.0}, "timestamp": "\ud83d"},
    )


def save(conversation_id: str, *contents: str, user: Any = None) -> None:
    history = [{"role": "user", "content": content} for content in contents]
    storage.save_state(conversation_id, AgentState(conversation_history=history), user)


def emptied() -> None:
    """Make the database as empty as a new one; its users stay."""
    ConversationState.rows.all().delete()
    ConversationTombstone.rows.all().delete()
    MemoryChunk.objects.all().delete()


def imported(lines: Iterable[str], **options: Any) -> list[ImportOutcome]:
    return list(import_lines(lines, **options))


def results(lines: Iterable[str], **options: Any) -> list[tuple[str, str]]:
    return [(outcome.result.value, outcome.reason) for outcome in import_lines(lines, **options)]


def line_of(**changes: Any) -> str:
    data = {
        "format": 1,
        "conversation_id": "c",
        "user": None,
        "forked_from": None,
        "created_at": "2026-01-01T00:00:00+00:00",
        "updated_at": "2026-01-02T00:00:00.000001+00:00",
        "state": AgentState(conversation_history=["a", "b"]).to_dict(),
        "messages": [[1, None], [4, "key"]],
    }
    return json.dumps({name: value for name, value in (data | changes).items() if value != ...})


def contents(conversation_id: str) -> list[Any]:
    return [
        message["content"] if isinstance(message, dict) else message
        for message in storage.load_state(conversation_id).conversation_history
    ]


@pytest.fixture
def owner() -> User:
    return User.objects.create_user("amira")


# Export


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


def test_what_only_legacy_holds_is_exported_with_what_legacy_knows(owner: User) -> None:
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


def test_what_legacy_has_ahead_is_exported_with_the_sequences_it_gets_when_taken_in() -> None:
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


def test_what_old_code_wrote_is_merged_before_an_export() -> None:
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


# There and back


@pytest.mark.parametrize("phase", list(Phase))
def test_export_import_and_export_give_the_same_bytes(phase: Phase, owner: User) -> None:
    storage.save_state("awkward", awkward_state(), owner)
    storage.append_messages("awkward", ["x", "y", "z"], keys=["k1", "k\\2", "ключ"])
    storage.remove_messages("awkward", ["k\\2", 3])
    storage.replace_message("awkward", "k1", {"role": "user", "content": "edited"})
    storage.save_state("empty", AgentState())
    fork = storage.fork_conversation("awkward", at=5)
    storage.append_messages(fork, ["in the fork"])
    save("of nobody", "one")
    ConversationState.rows.filter(conversation_id="of nobody").update(legacy_user_id="99999")
    with forced_phase(Phase.LEGACY):
        storage.save_state("only in legacy", awkward_state(), owner)
    lines = list(export_lines())
    assert [json.loads(line)["forked_from"] for line in lines].count("awkward") == 1
    assert sum(json.loads(line).get("legacy_user") == "99999" for line in lines) == 1
    emptied()
    with forced_phase(phase):
        assert results(lines) == [("created", "")] * 5
        assert list(export_lines()) == lines
        assert results(lines) == [("unchanged", "")] * 5
        assert list(export_lines()) == lines
    assert not MemoryChunk.objects.exists()
    assert {found.kinds for found in verify()} == {(Kind.TABLES_ONLY,)}


@override_settings(CONVERSATIONS={})
def test_a_team_without_legacy_gets_the_same_bytes_back(owner: User) -> None:
    storage.save_state("a", awkward_state(), owner)
    lines = list(export_lines())
    emptied()
    assert results(lines) == [("created", "")]
    assert list(export_lines()) == lines


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.long
@settings(max_examples=examples(300))
@given(messages=st.lists(JSON, max_size=5), items=st.lists(JSON, max_size=3), unknown=JSON)
def test_any_state_gives_the_same_bytes_back(messages: Any, items: Any, unknown: Any) -> None:
    emptied()
    state = AgentState(memory_context=items, conversation_history=messages, extra={"u": unknown})
    storage.save_state("a", state)
    lines = list(export_lines())
    emptied()
    assert results(lines) == [("created", "")]
    assert list(export_lines()) == lines


def test_real_conversations_give_the_same_bytes_back(shared_data: Path) -> None:
    for found in islice(read_conversations(shared_data / "conversations.jsonl.gz"), 0, None, 29):
        storage.save_state(found.conversation_id, found.state)
    lines = list(export_lines())
    assert len(lines) == 20
    emptied()
    assert results(lines) == [("created", "")] * 20
    assert list(export_lines()) == lines


# Import


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


def test_what_is_added_after_an_import_comes_behind_the_last_sequence() -> None:
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


def test_blank_lines_count_and_are_passed_over() -> None:
    assert imported(["\n", line_of() + "\n", ""]) == [ImportOutcome(2, "c", Result.CREATED, "")]


def test_lines_are_imported_as_they_come() -> None:
    def endless() -> Iterator[str]:
        number = 0
        while True:
            number += 1
            yield line_of(conversation_id=f"c{number}")

    found = list(islice(import_lines(endless()), 2))
    assert [outcome.conversation_id for outcome in found] == ["c1", "c2"]
    assert ConversationState.objects.count() == 2


@pytest.mark.parametrize(
    "change",
    [
        {"state": AgentState(conversation_history=["a", "B"]).to_dict()},
        {"state": AgentState("x", conversation_history=["a", "b"]).to_dict()},
        {"state": AgentState(memory_context=[1], conversation_history=["a", "b"]).to_dict()},
        {"messages": [[1, None], [7, "key"]]},
        {"messages": [[1, None], [4, None]]},
    ],
)
def test_other_content_is_refused_unless_it_is_to_replace(change: dict[str, Any]) -> None:
    imported([line_of()])
    before = list(export_lines())
    wanted = line_of(**change, created_at="2025-01-01T00:00:00+00:00")
    assert results([wanted]) == [("refused", "it is here with other content")]
    assert list(export_lines()) == before
    assert results([wanted], replace=True) == [("replaced", "")]
    assert list(export_lines()) == [wanted]
    assert results([wanted], replace=True) == [("unchanged", "")]
    assert [found.kinds for found in verify()] == [(Kind.TABLES_ONLY,)]


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
def test_what_was_imported_is_loaded_in_every_phase_and_legacy_is_not_written(
    phase: Phase,
) -> None:
    with forced_phase(phase):
        imported([line_of()])
        assert not MemoryChunk.objects.exists()
        assert contents("c") == ["a", "b"]
        storage.append_messages("c", ["c"])
        assert contents("c") == ["a", "b", "c"]


def test_what_old_code_writes_after_an_import_is_merged() -> None:
    imported([line_of()])
    ChunkStore().save("c", snapshots.Document.from_dict({"conversation_history": ["a", "b", "c"]}))
    assert contents("c") == ["a", "b", "c"]


def test_what_legacy_alone_holds_is_refused_unless_it_is_to_be_replaced() -> None:
    with forced_phase(Phase.LEGACY):
        save("c", "in legacy")
    assert results([line_of()]) == [("refused", "it is here with other content")]
    assert not ConversationState.objects.exists()
    assert results([line_of()], replace=True) == [("replaced", "")]
    assert list(export_lines()) == [line_of()]
    with forced_phase(Phase.LEGACY):
        assert contents("c") == ["a", "b"]
    assert MemoryChunk.objects.count() == 1
    versions = storage.list_messages("c", include_superseded=True)
    assert {"role": "user", "content": "in legacy"} in [
        found.message for found in versions.messages
    ]


def test_what_legacy_alone_holds_equally_is_unchanged() -> None:
    with forced_phase(Phase.LEGACY):
        save("c", "in legacy")
        lines = list(export_lines())
        assert results(lines) == [("unchanged", "")]
    assert not ConversationState.objects.exists()


def test_an_unreadable_blob_is_not_written_over() -> None:
    with forced_phase(Phase.LEGACY):
        save("c", "in legacy")
    MemoryChunk.objects.update(content="{")
    reason = "legacy holds an unreadable state under this id"
    assert results([line_of()], replace=True) == [("refused", reason)]
    with pytest.raises(StorageUnavailable):
        list(export_lines())


def test_what_was_deleted_stays_deleted() -> None:
    imported([line_of()])
    storage.delete_conversation("c")
    assert imported([line_of()], replace=True) == [
        ImportOutcome(1, "c", Result.DELETED, "it was deleted here")
    ]
    assert not ConversationState.objects.exists()


def test_what_was_redacted_stays_redacted_in_the_conversation_and_its_forks() -> None:
    imported([line_of(), line_of(conversation_id="fork", forked_from="c")])
    lines = list(export_lines())
    ConversationState.rows.get(conversation_id="fork").delete()
    ConversationTombstone.rows.all().delete()
    storage.redact_message("c", 1)
    assert results(lines) == [("unchanged", ""), ("created", "")]
    # The fork knows it as well.
    assert ConversationRedaction.objects.count() == 2
    assert contents("c") == contents("fork") == ["[redacted]", "b"]
    assert results(lines, replace=True) == [("unchanged", ""), ("unchanged", "")]


def test_a_dry_run_says_what_would_be_done_and_writes_nothing() -> None:
    save("there", "one")
    before = list(export_lines())
    lines = [
        line_of(),
        line_of(conversation_id="there"),
        line_of(conversation_id="fork", forked_from="c"),
        "{",
    ]
    assert [result for result, _ in results(lines, replace=True, dry_run=True)] == [
        "created",
        "replaced",
        "created",
        "invalid",
    ]
    assert list(export_lines()) == before


def test_a_dry_run_leaves_legacy_as_it_is() -> None:
    with forced_phase(Phase.LEGACY):
        save("c", "in legacy")
    assert results([line_of()], replace=True, dry_run=True) == [("replaced", "")]
    assert not ConversationState.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_store_that_fails_ends_the_import_and_keeps_the_lines_before() -> None:
    imports = import_lines([line_of(), line_of(conversation_id="d")])
    next(imports)
    with failing(inserts_messages), pytest.raises(StorageUnavailable):
        next(imports)
    assert [row.conversation_id for row in ConversationState.objects.all()] == ["c"]
    assert results([line_of(), line_of(conversation_id="d")]) == [
        ("unchanged", ""),
        ("created", ""),
    ]


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


@pytest.mark.django_db(transaction=True)
def test_imports_of_one_line_at_the_same_time_write_it_once() -> None:
    ready = threading.Barrier(4)

    def run(_: int) -> str:
        try:
            ready.wait(timeout=30)
            return results([line_of()])[0][0]
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, range(4)))
    assert sorted(found) == ["created", "unchanged", "unchanged", "unchanged"]
    assert list(export_lines()) == [line_of()]


# Chats


def chats(tmp_path: Path, *lines: Any, **options: Any) -> list[tuple[str | None, str, str]]:
    with written(tmp_path / "chats", *lines).open("rb") as stream:
        records = read_records(stream)
        return [
            (outcome.conversation_id, outcome.result.value, outcome.reason)
            for outcome in import_records(records, **options)
        ]


def test_chats_are_imported_for_the_user_of_their_name(tmp_path: Path, owner: User) -> None:
    chat = {"id": "a", "user": "amira", "messages": MESSAGES, "metadata": {"task": 1}}
    stranger = {"id": "b", "user": "nobody here", "messages": []}
    nobodys = Owners(ownerless=True)
    assert chats(tmp_path, chat, stranger, "{", line_of(), owners=nobodys) == [
        ("a", "created", ""),
        ("b", "created", ""),
        (None, "invalid", "line 3: is no JSON: the line is broken off"),
        ("c", "created", ""),
    ]
    assert storage.load_state("a", user_id=owner).to_dict() == {
        **AgentState(conversation_history=MESSAGES).to_dict(),
        "metadata": {"task": 1},
    }
    assert ConversationState.objects.get(conversation_id="b").user is None
    claim("b", str(owner.pk))
    again = chats(tmp_path, chat, stranger, owners=nobodys)
    assert {result for _, result, _ in again} == {"unchanged"}


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


def test_a_chat_of_somebody_else_is_refused(tmp_path: Path, owner: User) -> None:
    imported([line_of()])
    chat = {"id": "c", "user": "amira", "messages": []}
    refused = ("c", "refused", "it belongs to another owner here, or to none")
    assert chats(tmp_path, chat, replace=True) == [refused]


def test_the_command_brings_back_what_it_took_out(tmp_path: Path, owner: User) -> None:
    storage.save_state("a", awkward_state(), owner)
    lines = list(export_lines())
    path = tmp_path / "all.jsonl.gz"
    call_command("conversations", "export", str(path), stdout=io.StringIO())
    emptied()
    written_out = io.StringIO()
    call_command("conversations", "import", str(path), "--json", stdout=written_out)
    assert json.loads(written_out.getvalue()) == {"counts": {"created": 1}}
    assert list(export_lines()) == lines
    with pytest.raises(CommandError):
        call_command(
            "conversations", "import", str(written(tmp_path / "x", "{")), stdout=written_out
        )


# Owners


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        ("424242", "user: there is no such user here"),
        ("no key", "user: can be no user's primary key here"),
    ],
)
def test_a_line_of_an_unknown_user_is_refused(user: str, reason: str) -> None:
    assert imported([line_of(user=user)]) == [ImportOutcome(1, "c", Result.REFUSED, reason)]
    assert not ConversationState.objects.exists()


def test_an_owner_that_only_legacy_knew_needs_no_user() -> None:
    line = line_of(user=None, legacy_user="424242")
    assert results([line]) == [("created", "")]
    row = ConversationState.objects.get()
    assert (row.user_id, row.legacy_user_id) == (None, "424242")
    assert results([line]) == [("unchanged", "")]


def test_an_owner_that_only_legacy_knew_and_who_is_here_becomes_the_owner(owner: User) -> None:
    assert results([line_of(legacy_user=str(owner.pk))]) == [("created", "")]
    assert ConversationState.objects.get().user == owner


def test_replacing_never_changes_the_owner(owner: User) -> None:
    other = User.objects.create_user("other")
    imported([line_of(user=str(other.pk)), line_of(conversation_id="of nobody")])
    before = list(export_lines())
    lines = [line_of(user=str(owner.pk)), line_of(), line_of(conversation_id="of nobody", user="1")]
    claim_nobody = line_of(conversation_id="of nobody", user=str(owner.pk))
    refused = ("refused", "it belongs to another owner here, or to none")
    assert results([*lines[:2], claim_nobody], replace=True) == [refused] * 3
    assert list(export_lines()) == before
    claim("of nobody", str(owner.pk))
    assert results([claim_nobody]) == [("unchanged", "")]


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


# What is no line


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a', "line 1: column 2: is no JSON: Unterminated string starting at"),
        ("[" * 100_000, "line 1: is no JSON that can be read (RecursionError)"),
        ("[]", "line 1: is a list, not an object"),
        (line_of(format=True), "line 1: format: is not 1, the one format this version reads"),
        (line_of(format=2), "line 1: format: is not 1, the one format this version reads"),
        (line_of(state=...), "line 1: state: is missing"),
        (line_of(conversation_id=7), "line 1: conversation_id: is a int, not a string"),
        (
            line_of(conversation_id="\x00"),
            "line 1: conversation_id: '\\x00' must have 1 to 255 characters, without NUL and lone"
            " surrogates",
        ),
        (line_of(user=7), "line 1: user: is a int, not a string"),
        (
            line_of(user="1", legacy_user="2"),
            "line 1: legacy_user: stands beside a user: a line has one owner",
        ),
        (line_of(forked_from="c"), "line 1: forked_from: is the conversation itself"),
        (line_of(state=[]), "line 1: state: is a list, not an object"),
        (
            line_of(state={"_baseline": {}}),
            "line 1: state._baseline: belongs to one load, not to a file",
        ),
        (
            line_of(state={"step_count": "secret"}),
            "line 1: state.step_count: is a str, not a int",
        ),
        (line_of(messages={}), "line 1: messages: is a dict, not a list"),
        (line_of(messages=[[1, None]]), "line 1: messages: has 1 places for 2 messages"),
        (
            line_of(messages=[[1, None], 2]),
            "line 1: messages[1]: is no sequence and key in a list",
        ),
        *(
            (
                line_of(messages=[[1, None], [sequence, None]]),
                "line 1: messages[1][0]: must be a whole number above the one before",
            )
            for sequence in (1, 0, -1, 2.0, True, "2", 2**63)
        ),
        (
            line_of(messages=[[1, "k"], [2, "k"]]),
            "line 1: messages[1][1]: is the key of two messages",
        ),
        *(
            (line_of(messages=[[1, "k", extras], [2, None]]), f"line 1: messages[0][2]{reason}")
            for extras, reason in (
                (None, ": is no object of first_digest and timestamp"),
                ({"other": 1}, ": is no object of first_digest and timestamp"),
                ({"first_digest": "00"}, ".first_digest: is no digest of 16 bytes in hex"),
                ({"first_digest": 5}, ".first_digest: is no digest of 16 bytes in hex"),
            )
        ),
        (
            line_of(messages=[[1, None, {"first_digest": "00" * 16}], [2, None]]),
            "line 1: messages[0][2].first_digest: is of a key, and there is none",
        ),
        *(
            (
                line_of(next_sequence=value),
                "line 1: next_sequence: is no whole number above every sequence",
            )
            for value in (None, 4, True, 6.0, 2**63)
        ),
        (line_of(messages=[[1, 5], [2, None]]), "line 1: messages[0][1]: is a int, not a string"),
        *(
            (
                line_of(**{name: value}),
                f"line 1: {name}: impossible date: must be ISO 8601 with a time zone, in the"
                " years 3 to 9997",
            )
            for name in ("created_at", "updated_at")
            for value in (
                "9999-12-31T23:59:59-05:00",
                "0001-01-01T00:00:00+05:00",
                "2026-02-30T00:00:00+00:00",
                "2026-01-01T00:00:00",
                "2026-01-01",
                "yesterday",
                1767225600,
            )
        ),
        (
            line_of(created_at=None),
            "line 1: created_at, updated_at: is null, but the other time is not",
        ),
    ],
)
def test_what_is_no_line_is_invalid_by_its_place_and_writes_nothing(line: str, reason: str) -> None:
    assert imported([line]) == [ImportOutcome(1, None, Result.INVALID, reason)]
    assert not ConversationState.objects.exists()


def test_an_impossible_time_of_a_message_is_invalid() -> None:
    impossible = {"timestamp": "9999-12-31T23:59:59-05:00"}
    ((result, reason),) = results([line_of(messages=[[1, None, impossible], [2, None]])])
    assert (result, reason[:58]) == (
        "invalid",
        "line 1: messages[0][2].timestamp: impossible date: must be",
    )


def test_an_unknown_field_is_invalid_because_it_would_be_lost() -> None:
    ((result, reason),) = results([line_of(extra=1)])
    assert (result, reason[:30]) == ("invalid", "line 1: has 1 fields beside fo")


def test_nesting_deeper_than_the_limit_is_invalid() -> None:
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    state = AgentState(conversation_history=["a", deep]).to_dict()
    ((result, reason),) = results([line_of(state=state)])
    assert result == "invalid"
    assert reason.startswith("line 1: state.conversation_history[1][0]")


def test_the_lines_after_an_invalid_one_are_imported() -> None:
    found = imported(["{", line_of()])
    assert [(outcome.line, outcome.result.value) for outcome in found] == [
        (1, "invalid"),
        (2, "created"),
    ]


# Readers


def written(path: Path, *lines: Any, zipped: bool = False) -> Path:
    text = "".join(
        (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n"
        for line in lines
    )
    data = text.encode("utf-8")
    path.write_bytes(gzip.compress(data) if zipped else data)
    return path


NO_CHAT = 'is neither a line of an export, nor a list of messages, nor an object with "messages"'
MESSAGES = [
    {"role": "system", "content": "é"},
    {"content": None, "role": "assistant", "tool_calls": [{"id": "1"}], "x": 1.0},
]


@pytest.mark.parametrize("zipped", [False, True])
def test_a_line_of_our_data_sets_becomes_a_state(tmp_path: Path, zipped: bool) -> None:
    line = {
        "id": "one",
        "user": "mia",
        "source": "somewhere",
        "license": "MIT",
        "messages": MESSAGES,
        "context": [{"content": "likes tea", "source": "tool"}],
        "metadata": {"domain": "coffee", "task": 3},
    }
    # Told by its first bytes, whatever its name says.
    path = written(tmp_path / "data.bin", "", line, zipped=zipped)
    assert list(read_conversations(path)) == [
        Conversation(
            conversation_id="one",
            user="mia",
            state=AgentState(
                memory_context=[{"content": "likes tea", "source": "tool"}],
                conversation_history=MESSAGES,
                extra={
                    "source": "somewhere",
                    "license": "MIT",
                    "metadata": {"domain": "coffee", "task": 3},
                },
            ),
            source="somewhere",
            license="MIT",
        )
    ]
    (found,) = read_conversations(str(path))
    assert json.dumps(found.state.conversation_history) == json.dumps(MESSAGES)


def test_chat_messages_are_named_by_their_file_and_line(tmp_path: Path) -> None:
    path = written(tmp_path / "chats.jsonl.gz", MESSAGES, "", {"messages": [], "tools": []})
    assert list(read_conversations(path)) == [
        Conversation("chats-1", None, AgentState(conversation_history=MESSAGES)),
        Conversation("chats-3", None, AgentState(extra={"tools": []})),
    ]


def test_the_conversations_of_one_user_are_read_one_by_one(tmp_path: Path) -> None:
    line = {
        "id": "all of mia",
        "user": "mia",
        "license": "MIT",
        "conversations": [{"id": "a", "messages": MESSAGES}, {"messages": [], "user": "bo"}],
        "questions": [{"question": "?"}],
    }
    path = written(tmp_path / "history.jsonl", line)
    extra = {"license": "MIT"}
    assert list(read_conversations(path)) == [
        Conversation(
            "a", "mia", AgentState(conversation_history=MESSAGES, extra=extra), license="MIT"
        ),
        Conversation("history-1-2", "bo", AgentState(extra=extra), license="MIT"),
    ]


def test_the_shared_data_is_read_whole(shared_data: Path) -> None:
    found = {
        name: [
            (conversation.conversation_id, len(conversation.state.conversation_history))
            for conversation in read_conversations(shared_data / name)
        ]
        for name in ("conversations.jsonl.gz", "retrieval_bfcl_memory.jsonl.gz")
    }
    counts = {
        name: (len({conversation_id for conversation_id, _ in rows}), sum(n for _, n in rows))
        for name, rows in found.items()
    }
    assert counts == {
        "conversations.jsonl.gz": (574, 10958),
        "retrieval_bfcl_memory.jsonl.gz": (37, 323),
    }


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2: column 2: is no JSON: Expecting property name enclosed in double quotes"),
        (
            '"x"',
            f"line 2: {NO_CHAT}",
        ),
        (
            {"prompt": ""},
            f"line 2: {NO_CHAT}",
        ),
        ({"messages": {}}, "line 2: messages: is a dict, not a list"),
        (["text"], "line 2: messages[0]: is a str, not an object"),
        (
            [{"role": 1}, {"name": "x"}],
            "line 2: [1]: is no message: it has none of content, kind, parts, role, type. Any list"
            ' is taken as it is under "messages"',
        ),
        ([], "line 2: is an empty list, and no conversation"),
        ({"conversations": []}, "line 2: conversations: is empty: there is no conversation in it"),
        ({"messages": [], "context": {}}, "line 2: context: is a dict, not a list"),
        ({"messages": [], "id": 5}, "line 2: id: is a int, not a string"),
        ({"messages": [], "user": 5.0}, "line 2: user: is a float, not a string"),
        ({"messages": [], "user": True}, "line 2: user: is a bool, not a string"),
        (
            {"messages": [], "history": []},
            "line 2: history: is a field of the state, and none of a chat",
        ),
        ({"conversations": 1}, "line 2: conversations: is a int, not a list"),
        (
            {"conversations": [[1]]},
            "line 2: conversations[0].messages[0]: is a int, not an object",
        ),
        (
            {"conversations": [MESSAGES, 1]},
            f"line 2: conversations[1]: {NO_CHAT}",
        ),
    ],
)
def test_a_bad_line_is_named_by_line_and_place(tmp_path: Path, line: Any, reason: str) -> None:
    reader = read_conversations(written(tmp_path / "chats", MESSAGES, line))
    assert next(reader).conversation_id == "chats-1"
    with pytest.raises(InvalidState) as raised:
        list(reader)
    assert str(raised.value) == reason


def test_what_is_no_utf_8_is_named_by_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "chats"
    path.write_bytes(b'\xef\xbb\xbf[{"role": 1}]\n[\xff]\n')
    with pytest.raises(InvalidState, match=r"^line 2: is no UTF-8 at byte 1$"):
        list(read_conversations(path))


def test_a_file_that_is_broken_off_is_no_shorter_file(tmp_path: Path) -> None:
    path = written(tmp_path / "chats.gz", *[MESSAGES] * 50, zipped=True)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InvalidState, match="cannot be read"):
        list(read_conversations(path))


@override_settings(CONVERSATIONS={"MAX_STATE_BYTES": 100})
def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path) -> None:
    path = written(tmp_path / "chats", [{"role": "user", "content": "x" * 10_000}])
    with pytest.raises(InvalidState, match=r"^line 1: is longer than 600 characters$"):
        list(read_conversations(path))


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_conversations(tmp_path / "none"))


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz"])
def test_what_users_said_is_written_for_the_owner_of_the_file_alone(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.touch(mode=0o644)
    before = os.umask(0o022)
    try:
        with open_for_writing(path) as file:
            file.write(b"{}\n")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == [name]


def test_a_link_in_the_place_of_an_export_is_replaced_and_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"not ours")
    for name in ("all.jsonl", "all.jsonl.unfinished"):
        (tmp_path / name).symlink_to(elsewhere)
    with open_for_writing(tmp_path / "all.jsonl") as file:
        file.write(b"{}\n")
    assert elsewhere.read_bytes() == b"not ours"
    assert not (tmp_path / "all.jsonl").is_symlink()
    assert (tmp_path / "all.jsonl").read_bytes() == b"{}\n"
