"""ChunkStore writes and reads the format of docs/design.md, section 5, exactly."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from hypothesis import given, settings

from conversations.content.document import Document
from conversations.state import AgentState
from conversations.storage import load_state, save_state
from conversations.stores.chunks.store import ChunkStore
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryMetadata
from tests.support.factories import UserFactory, messages, state, texts
from tests.support.legacy_schema import old_load, old_save
from tests.support.scale import examples
from tests.support.strategies import states

pytestmark = pytest.mark.django_db

DUAL = [phase for phase in Phase if phase != Phase.NEW_ONLY]


def rows_of(chunk: MemoryChunk) -> list[tuple[str, str | None]]:
    return list(chunk.metadata.order_by("pk").values_list("key", "value"))


@pytest.mark.parametrize("phase", DUAL)
def test_a_save_is_one_chunk_and_eight_rows_as_old_code_writes_them(phase: Phase) -> None:
    user = UserFactory()
    saved = state("a", "b", "é", memory_context=["i"], last_tool_result={"z": 1.0, "a": None})
    with forced_phase(phase):
        save_state("c", saved, user)
    chunk = MemoryChunk.objects.get()
    assert chunk.content == json.dumps(saved.to_dict())
    assert chunk.content.isascii()
    assert (chunk.user, chunk.embedding) == (user, None)
    rows = rows_of(chunk)
    assert rows[:2] == [("conversation_id", "c"), ("type", "state")]
    assert rows[2][0] == "last_updated"
    assert datetime.fromisoformat(rows[2][1] or "") == chunk.created_at
    assert rows[3:8] == [
        ("optimization_applied", "true"),
        ("original_conversation_length", "3"),
        ("optimized_conversation_length", "3"),
        ("original_context_length", "1"),
        ("optimized_context_length", "1"),
    ]
    ours = rows[8:]
    assert all(key.startswith("store.") for key, _ in ours)
    assert ours == ([] if phase == Phase.LEGACY else [("store.revision", "1")])


def test_every_save_inserts_and_changes_no_earlier_blob() -> None:
    with forced_phase(Phase.LEGACY):
        for number in range(3):
            save_state("c", state(*map(str, range(number))))
    contents = MemoryChunk.objects.order_by("pk").values_list("content", flat=True)
    assert [len(json.loads(content)["conversation_history"]) for content in contents] == [0, 1, 2]


@pytest.mark.parametrize("phase", DUAL)
def test_old_code_reads_our_latest_write(phase: Phase) -> None:
    with forced_phase(phase):
        for number in range(3):
            held = load_state("c")
            held.conversation_history.extend(messages(str(number)))
            save_state("c", held)
            assert old_load(connection, "c") == held.to_dict()


@given(state=states())
@settings(max_examples=examples(200))
def test_old_code_reads_any_state_that_we_wrote(state: AgentState) -> None:
    document = Document.from_dict(json.loads(json.dumps(state.to_dict())))
    ChunkStore().save("c", document)
    assert json.dumps(old_load(connection, "c")) == document.to_json()


@pytest.mark.parametrize("phase", DUAL)
def test_old_code_reads_ours_although_its_own_clock_is_ahead(phase: Phase) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    old_save(connection, "c", None, state("theirs").to_dict(), tomorrow)
    with forced_phase(phase):
        held = load_state("c")
        held.conversation_history.extend(messages("ours"))
        save_state("c", held)
    found = old_load(connection, "c")
    assert found is not None
    assert texts(AgentState.from_dict(found)) == ["theirs", "ours"]


@pytest.mark.parametrize("phase", DUAL[1:])
def test_old_code_reads_ours_and_no_blob_that_was_set_aside(phase: Phase) -> None:
    with forced_phase(phase):
        save_state("c", state("a"))
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        old_save(connection, "c", None, AgentState().to_dict(), tomorrow)
        held = load_state("c")
        assert texts(held) == ["a"]
        held.conversation_history.extend(messages("b"))
        save_state("c", held)
    found = old_load(connection, "c")
    assert found is not None
    assert texts(AgentState.from_dict(found)) == ["a", "b"]


def test_we_read_what_old_code_reads(phase: Phase) -> None:
    now = datetime.now(UTC)
    old_save(connection, "c", None, state("late").to_dict(), now)
    old_save(connection, "c", None, state("early").to_dict(), now - timedelta(hours=1))
    assert texts(load_state("c")) == ["late"]
    assert old_load(connection, "c") == load_state("c").to_dict()


def test_old_blobs_may_lack_fields_and_have_more(phase: Phase) -> None:
    data = {"timestamp": "2024-01-01", "user_input": "hi", "config": {"a": 1}}
    old_save(connection, "c", None, data)
    assert json.dumps(load_state("c").to_dict()) == json.dumps(
        AgentState(user_input="hi", extra={"timestamp": "2024-01-01", "config": {"a": 1}}).to_dict()
    )


def test_other_kinds_of_chunks_are_none_of_our_business(phase: Phase) -> None:
    chunk = MemoryChunk.objects.create(content="a summary", created_at=datetime.now(UTC))
    for key, value in (("conversation_id", "c"), ("type", "summary")):
        MemoryMetadata.objects.create(chunk=chunk, key=key, value=value)
    assert load_state("c").load_info is None
    save_state("c", state("a"))
    assert texts(load_state("c")) == ["a"]
    chunk.refresh_from_db()
    assert chunk.content == "a summary"
    assert rows_of(chunk) == [("conversation_id", "c"), ("type", "summary")]


def test_a_blob_whose_rows_are_not_all_written_yet_is_not_there_yet(phase: Phase) -> None:
    with forced_phase(Phase.LEGACY):
        save_state("c", state("a"))
    chunk = MemoryChunk.objects.create(
        content=json.dumps(state("half").to_dict()), created_at=datetime.now(UTC)
    )
    MemoryMetadata.objects.create(chunk=chunk, key="conversation_id", value="c")
    assert texts(load_state("c")) == ["a"]
    MemoryMetadata.objects.create(chunk=chunk, key="type", value="state")
    assert "half" in texts(load_state("c"))


@pytest.mark.parametrize("phase", DUAL)
def test_a_blob_from_the_end_of_time_stops_no_save(phase: Phase) -> None:
    with forced_phase(phase):
        save_state("c", state("a"))
        MemoryChunk.objects.update(created_at=datetime.max.replace(tzinfo=UTC))
        save_state("c", state("a", "b"))
        assert texts(load_state("c")) == ["a", "b"]
