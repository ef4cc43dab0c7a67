"""What old code wrote is taken in, and never replaces good data by what is none."""

from __future__ import annotations

import json
from itertools import combinations_with_replacement
from typing import Any

import pytest
from django.db import connection
from django.db.models import JSONField, Value
from django.test import override_settings

from conversations.exceptions import ConversationNotFound, InvalidState, UnreadableState
from conversations.models import ConversationMessage, ConversationState
from conversations.state import AgentState
from conversations.storage import append_messages, load_state, save_state
from conversations.stores.chunks.format import FOREIGN_BLOB
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryMetadata
from tests.machine.oldcode import OldSession
from tests.support.blobs.models import AssistantSession, TextSession
from tests.support.factories import UserFactory, message, messages, state, texts
from tests.support.legacy_schema import old_save

pytestmark = pytest.mark.django_db(transaction=True)


def test_an_unreadable_blob_is_an_error_and_is_never_overwritten() -> None:
    old_save(connection, "c", None, state("a").to_dict())
    MemoryChunk.objects.update(content="{")
    for phase in Phase:
        with forced_phase(phase):
            with pytest.raises(UnreadableState):
                load_state("c")
            with pytest.raises(UnreadableState):
                append_messages("c", messages("b"))
    assert MemoryChunk.objects.get().content == "{"


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"conversation_history": 5}', None, '{"user_input": null}']
)
def test_an_unreadable_blob_of_old_code_never_replaces_good_data(content: Any) -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("a"))
        chunk = old_save(connection, "c", None, state().to_dict())
        MemoryChunk.objects.filter(pk=chunk).update(content=content)
        assert texts(load_state("c")) == ["a"]
        append_messages("c", messages("b"))
        assert texts(load_state("c")) == ["a", "b"]
    row = ConversationState.objects.get()
    assert [conflict.kind for conflict in row.conflicts.all()] == ["quarantined"]
    marks = MemoryMetadata.objects.filter(chunk_id=chunk, key="store.quarantined")
    assert marks.exists()


def test_an_empty_or_foreign_blob_never_replaces_good_data() -> None:
    other = UserFactory()
    with forced_phase(Phase.NEW_READS):
        save_state("c", state("a"), UserFactory())
        old_save(connection, "c", other.pk, state("stolen").to_dict())
        old_save(connection, "c", None, AgentState().to_dict())
        assert texts(load_state("c")) == ["a"]
    reasons = {conflict.reason for conflict in ConversationState.objects.get().conflicts.all()}
    assert reasons == {"written for another owner", "an empty state"}


JSON_COLUMN = {
    "model": "blobs.AssistantSession",
    "conversation_id": "session_key",
    "owner": "owner",
    "state": "data",
    "version": "version",
}


@override_settings(CONVERSATIONS={"LEGACY": JSON_COLUMN})
def test_a_change_by_a_json_column_is_no_edit_of_old_code() -> None:
    """PostgreSQL's jsonb reorders keys, and knows no 1.0 and no -0.0."""
    odd = {"z": 1.0, "content": "a", "b": [1e23, -0.0], "a": None}
    saved = AgentState(
        memory_context=[odd],
        conversation_history=[odd],
        last_tool_result=odd,
        extra={"zz": odd, "a": odd},
    )
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", saved)
        session = AssistantSession.objects.get()
        session.data["conversation_history"].append(message("b"))
        session.version += 1
        session.save()
    saved.conversation_history.append(message("b"))
    with forced_phase(Phase.NEW_READS):
        assert json.dumps(load_state("c").to_dict()) == json.dumps(saved.to_dict())
    assert ConversationMessage.rows.count() == 2


@pytest.mark.parametrize("column", ["text", "json"])
def test_a_hosts_row_that_holds_nothing_yet_is_an_empty_conversation(
    phase: Phase, column: str
) -> None:
    user = UserFactory()
    if column == "text":
        mapping = OldSession.settings
        TextSession.objects.create(session_key="c", owner=user, payload="")
    else:
        mapping = JSON_COLUMN
        AssistantSession.objects.create(session_key="c", owner=user, data=Value(None, JSONField()))
    with override_settings(CONVERSATIONS={"LEGACY": mapping}):
        assert load_state("c", user_id=user).to_dict() == AgentState().to_dict()
        with pytest.raises(ConversationNotFound):
            save_state("c", state("a"), UserFactory())
        append_messages("c", messages("a"), user_id=user)
        assert texts(load_state("c", user_id=user)) == ["a"]


def emptied() -> None:
    TextSession.objects.update(payload=json.dumps(AgentState().to_dict()))


def broken() -> None:
    TextSession.objects.update(payload="{")


def anothers() -> None:
    TextSession.objects.update(owner=UserFactory(), payload=json.dumps(state("x").to_dict()))


@override_settings(CONVERSATIONS={"LEGACY": OldSession.settings})
@pytest.mark.parametrize("spoil", [emptied, broken, anothers])
@pytest.mark.parametrize("first", Phase)
def test_a_row_that_was_set_aside_is_never_the_truth(first: Phase, spoil: Any) -> None:
    """Although our own last write stood there alone: old code has overwritten it."""
    user = UserFactory()
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("a"), user)
    with forced_phase(Phase.LEGACY):
        append_messages("c", messages("lost"), user_id=user)
    spoil()
    for phase in (first, *Phase):
        with forced_phase(phase):
            assert texts(load_state("c", user_id=user))[0] == "a"
            append_messages("c", messages(phase.label), user_id=user)
    expected = ["a", first.label, *(phase.label for phase in Phase)]
    assert texts(load_state("c", user_id=user)) == expected


def test_an_empty_blob_replaces_no_fields_either() -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", AgentState(user_input="hi", history=["s"], last_tool_result=5))
        old_save(connection, "c", None, AgentState().to_dict())
        found = load_state("c")
    assert (found.user_input, found.history, found.last_tool_result) == ("hi", ["s"], 5)
    assert ConversationState.objects.get().conflicts.get().reason == "an empty state"


@override_settings(CONVERSATIONS={"LEGACY": OldSession.settings})
def test_a_hosts_row_that_was_emptied_empties_nothing() -> None:
    with forced_phase(Phase.NEW_READS):
        save_state("c", state("a"))
        TextSession.objects.update(payload="")
        assert texts(load_state("c")) == ["a"]
        append_messages("c", messages("b"))
        assert texts(load_state("c")) == ["a", "b"]


def spoken(text: str) -> dict[str, Any]:
    """A message whose keys jsonb puts in another order."""
    return {"role": "user", "name": "bob", "content": text, "weight": 1.0}


@override_settings(CONVERSATIONS={"LEGACY": JSON_COLUMN})
@pytest.mark.parametrize("saved", Phase)
@pytest.mark.parametrize("loaded", Phase)
def test_messages_and_items_from_a_json_column_can_be_edited_and_removed(
    phase: Phase, saved: Phase, loaded: Phase
) -> None:
    first = AgentState(
        conversation_history=[spoken(text) for text in "abc"],
        memory_context=[{"zz": 1, "a": "i"}, {"zz": 2, "a": "j"}],
    )
    save_state("c", first)
    with forced_phase(loaded):
        held = load_state("c")
    held.conversation_history[1] = spoken("B")
    with forced_phase(saved):
        save_state("c", held)
        assert texts(load_state("c")) == ["a", "B", "c"]
    with forced_phase(loaded):
        held = load_state("c")
    del held.conversation_history[0], held.memory_context[0]
    with forced_phase(saved):
        save_state("c", held)
        found = load_state("c")
    assert texts(found) == ["B", "c"]
    assert [item["a"] for item in found.memory_context] == ["j"]


@override_settings(CONVERSATIONS={"LEGACY": JSON_COLUMN})
def test_a_host_that_counts_up_what_it_read_is_told_from_us() -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("a"))
        read_before = AssistantSession.objects.get()
        append_messages("c", messages("ours"))
        read_before.data["conversation_history"].append(message("old code's"))
        read_before.version += 1
        read_before.save()
        assert sorted(texts(load_state("c"))) == ["a", "old code's", "ours"]


def from_state(data: dict[str, Any]) -> Any:
    return {"first": data["conversation_history"][0]["content"]}


@override_settings(
    CONVERSATIONS={"LEGACY": JSON_COLUMN | {"from_state": "tests.writing.test_ingest.from_state"}}
)
def test_a_hosts_function_that_fails_leaves_legacy_behind_and_fails_no_save() -> None:
    with forced_phase(Phase.NEW_READS):
        save_state("c", state("a"))
        assert save_state("c", AgentState())["stores"] == ["tables"]
    with forced_phase(Phase.LEGACY), pytest.raises(InvalidState, match="from_state"):
        save_state("d", AgentState())


SAID = [
    ("type", "state"),
    ("type", "summary"),
    ("type", None),
    ("store.revision", None),
    ("store.quarantined", "why"),
    ("last_updated", "state"),
]


@pytest.mark.parametrize("floor", ["", "0", "its own"])
def test_a_blob_is_old_codes_if_it_says_state_above_the_floor_without_a_mark(floor: str) -> None:
    """With any other content, and however often."""
    with forced_phase(Phase.NEW_ONLY):
        save_state("c", state("a"))
    blob = MemoryChunk.objects.create(content="{}")
    ConversationState.rows.update(legacy_token=str(blob.pk) if floor == "its own" else floor)
    rows = MemoryMetadata.objects.filter(chunk=blob)
    for count in range(4):
        for said in combinations_with_replacement(SAID, count):
            rows.delete()
            for key, value in (("conversation_id", "c"), *said):
                MemoryMetadata.objects.create(chunk=blob, key=key, value=value)
            marked = any(key.startswith("store.") for key, _ in said)
            expected = floor != "its own" and ("type", "state") in said and not marked
            with connection.cursor() as cursor:
                cursor.execute(f"SELECT {FOREIGN_BLOB} FROM conversation_states")
                assert [bool(found) for (found,) in cursor.fetchall()] == [expected], said
