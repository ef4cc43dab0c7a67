"""Every real conversation comes back as it was put in, from both stores, and through a file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from django.db import connection

from conversations.formats import Read, Record, read_records
from conversations.models import ConversationMessage
from conversations.rollout.sync import Action, sync
from conversations.rollout.verification import Kind, verify
from conversations.state import AgentState
from conversations.storage import append_messages, load_state, save_state
from flags.phases import Phase
from flags.switches import forced_phase
from tests.support.scale import SCALES, profile

pytestmark = [pytest.mark.django_db, pytest.mark.long]

CONVERSATIONS, MESSAGES = 574, 10_958


@pytest.fixture(scope="module")
def records(shared_data: Path) -> list[Record]:
    with (shared_data / "conversations.jsonl.gz").open("rb") as file:
        found = list(read_records(file))
    assert [entry for entry in found if not isinstance(entry, Read)] == []
    return [entry.record for entry in found if isinstance(entry, Read)]


@pytest.fixture
def played(records: list[Record]) -> list[Record]:
    """All of them in a full run, every tenth in a small one."""
    return records[:: max(1, round(1 / SCALES[profile()]))]


def expected(record: Record) -> str:
    return json.dumps(record.document.to_dict())


def saved(records: list[Record], phase: Phase) -> None:
    with forced_phase(phase):
        for number, record in enumerate(records):
            save_state(record.conversation_id, AgentState.from_dict(record.document.to_dict()))
            if number in (50, len(records) - 1):
                analyzed()


def analyzed() -> None:
    """Let PostgreSQL know its tables, as elsewhere autovacuum does.

    It never sees what a test has not committed; planned for empty tables, a load took 0.3 s.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")


def different(records: list[Record], phase: Phase, store: str) -> list[str]:
    """Return the ids of what does not load from that store as the same JSON text."""
    ids = []
    with forced_phase(phase):
        for record in records:
            state = load_state(record.conversation_id)
            if state.load_info.store != store or json.dumps(state.to_dict()) != expected(record):
                ids.append(record.conversation_id)
    return ids


def test_every_conversation_of_the_file_is_read(records: list[Record]) -> None:
    assert len({record.conversation_id for record in records}) == CONVERSATIONS
    assert sum(len(record.document.messages) for record in records) == MESSAGES
    assert all({"source", "license"} <= set(record.document.fields) for record in records)


def test_every_real_conversation_saved_to_the_tables_is_equal_as_json_text(
    played: list[Record],
) -> None:
    saved(played, Phase.NEW_ONLY)
    assert different(played, Phase.NEW_ONLY, "tables") == []
    messages = sum(len(record.document.messages) for record in played)
    assert ConversationMessage.objects.count() == messages


def test_every_real_conversation_saved_to_both_stores_is_equal_as_json_text_in_each(
    played: list[Record],
) -> None:
    saved(played, Phase.DUAL_WRITE)
    assert different(played, Phase.DUAL_WRITE, "legacy") == []
    assert different(played, Phase.NEW_READS, "tables") == []
    assert Counter(found.kinds for found in verify()) == {(Kind.EQUAL,): len(played)}


def test_every_real_conversation_is_carried_from_legacy_to_the_tables_and_back(
    played: list[Record],
) -> None:
    saved(played, Phase.LEGACY)
    assert different(played, Phase.LEGACY, "legacy") == []
    assert Counter(found.action for found in sync("tables")) == {Action.TAKEN_IN: len(played)}
    assert Counter(found.kinds for found in verify()) == {(Kind.EQUAL,): len(played)}
    assert different(played, Phase.NEW_ONLY, "tables") == []
    changed = played[::10]
    with forced_phase(Phase.NEW_ONLY):
        for record in changed:
            record.document.messages.append({"role": "user", "content": "one more"})
            append_messages(record.conversation_id, record.document.messages[-1:])
    try:
        assert Counter(found.action for found in sync("legacy")) == {
            Action.WRITTEN_TO_LEGACY: len(changed),
            Action.UNCHANGED: len(played) - len(changed),
        }
        assert different(changed, Phase.LEGACY, "legacy") == []
    finally:
        for record in changed:
            record.document.messages.pop()
