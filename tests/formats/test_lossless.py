"""An import restores the bytes of an export, and loses nothing of what is here."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import override_settings
from hypothesis import given, settings, strategies as st

from conversations import storage
from conversations.exceptions import StorageUnavailable
from conversations.formats import (
    ImportOutcome,
    Result,
    export_lines,
    import_lines,
    read_conversations,
)
from conversations.models import ConversationRedaction, ConversationState, ConversationTombstone
from conversations.rollout.verification import Kind, verify
from conversations.state import AgentState
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk
from tests.faults.injection import failing, inserts_messages
from tests.support.exports import (
    awkward_state,
    contents,
    emptied,
    imported,
    line_of,
    results,
    save,
    written,
)
from tests.support.scale import examples

pytestmark = pytest.mark.django_db


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


def test_the_import_command_restores_an_export(tmp_path: Path, owner: User) -> None:
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


# Import


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


def test_the_lines_after_an_invalid_one_are_imported() -> None:
    found = imported(["{", line_of()])
    assert [(outcome.line, outcome.result.value) for outcome in found] == [
        (1, "invalid"),
        (2, "created"),
    ]


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


def test_a_line_against_other_content_in_legacy_alone_needs_replace() -> None:
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


def test_a_line_with_equal_content_in_legacy_alone_is_unchanged() -> None:
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


def test_a_deleted_conversation_stays_deleted() -> None:
    imported([line_of()])
    storage.delete_conversation("c")
    assert imported([line_of()], replace=True) == [
        ImportOutcome(1, "c", Result.DELETED, "it was deleted here")
    ]
    assert not ConversationState.objects.exists()


def test_a_redaction_outlasts_an_import_in_the_conversation_and_its_forks() -> None:
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


# Dry runs, failures and imports at the same time


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
