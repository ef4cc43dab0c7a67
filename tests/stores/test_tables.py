"""What the database itself refuses, and what a deletion leaves behind: nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.admin import site
from django.contrib.auth import get_user_model
from django.db import IntegrityError, connection, transaction
from django.db.models import Model

from conversations.exceptions import DirectWriteRefused
from conversations.models import (
    ConversationConflict,
    ConversationMessage,
    ConversationRedaction,
    ConversationState,
    ConversationTombstone,
    in_pages,
    reading,
)
from memory.adoption import CHECK, METADATA, has_check
from memory.models import MemoryChunk, MemoryContextItem, MemoryMetadata

pytestmark = pytest.mark.django_db

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)


def state(conversation_id: str = "c-1", /, **values: Any) -> ConversationState:
    defaults = {"messages_digest": bytes(16), "state_digest": bytes(32)}
    return ConversationState.rows.create(
        **{"conversation_id": conversation_id, "created_at": NOW, "updated_at": NOW}
        | defaults
        | values
    )


def message(conversation: ConversationState, sequence: int = 1, **values: Any) -> Any:
    return ConversationMessage.rows.create(
        **{
            "conversation": conversation,
            "sequence": sequence,
            "digest": bytes(16),
            "added_in": 1,
        }
        | values
    )


def item(conversation: ConversationState, position: int = 0, **values: Any) -> MemoryContextItem:
    return MemoryContextItem.objects.create(
        **{
            "conversation": conversation,
            "sequence": position + 1,
            "position": position,
            "digest": bytes(16),
            "added_in": 1,
        }
        | values
    )


def full(conversation_id: str = "c-1", **values: Any) -> ConversationState:
    """Create a conversation with a row in every table that can hold one of it."""
    conversation = state(conversation_id, **values)
    kept = message(conversation)
    message(conversation, 2, superseded_in=2)
    remembered = item(conversation)
    ConversationConflict.rows.create(
        conversation=conversation, kind="merged", reason="", revision=1, created_at=NOW
    )
    ConversationRedaction.rows.create(
        conversation=conversation, text_hash=bytes(32), replacement="-", created_at=NOW
    )
    for target in ({"conversation": conversation}, {"message": kept}, {"context_item": remembered}):
        MemoryMetadata.objects.create(key="topic", value="tea", **target)
    return conversation


def counts() -> dict[str, int]:
    """Return how many rows each table of a conversation holds."""
    models: tuple[type[Model], ...] = (
        ConversationState,
        ConversationMessage,
        ConversationConflict,
        ConversationRedaction,
        MemoryContextItem,
        MemoryMetadata,
    )
    return {model._meta.db_table: model._base_manager.count() for model in models}


EMPTY = {
    "conversation_states": 0,
    "conversation_messages": 0,
    "conversation_conflicts": 0,
    "conversation_redactions": 0,
    "memory_context_items": 0,
    "memory_metadata": 0,
}


def assert_refused(write: Callable[[], Any], constraint: str, *columns: str) -> None:
    """Assert that the database refuses a write; SQLite names the columns of a unique one."""
    with pytest.raises(IntegrityError) as raised, transaction.atomic():
        write()
    text = str(raised.value)
    if connection.vendor == "sqlite" and columns:
        assert text == "UNIQUE constraint failed: " + ", ".join(columns)
    else:
        assert constraint in text


@pytest.mark.parametrize(
    "values",
    [
        {"revision": -1},
        {"legacy_revision": -1},
        {"next_sequence": 0},
        {"message_count": -1},
        {"context_item_count": -1},
        {"redaction_count": -1},
    ],
    ids=lambda values: next(iter(values)),
)
def test_counters_of_a_conversation_are_never_negative(values: dict[str, int]) -> None:
    assert_refused(lambda: state(**values), "state_numbers_not_negative")


def test_two_conversations_never_share_an_id() -> None:
    state("c-1")
    assert_refused(
        lambda: state("c-1"), "state_conversation_id", "conversation_states.conversation_id"
    )
    state("c-2")


def test_an_id_is_buried_once() -> None:
    def bury() -> None:
        ConversationTombstone.rows.create(conversation_id="c-1", deleted_at=NOW, reason="")

    bury()
    assert_refused(bury, "tombstone_conversation_id", "conversation_tombstones.conversation_id")


def test_a_conversation_has_one_current_message_per_sequence() -> None:
    conversation = state()
    message(conversation, 1, added_in=1, superseded_in=2)
    message(conversation, 1, added_in=2)
    assert_refused(
        lambda: message(conversation, 1, added_in=3),
        "message_current_sequence",
        "conversation_messages.conversation_id",
        "conversation_messages.sequence",
    )
    message(state("c-2"), 1)


def test_a_conversation_has_one_current_message_per_key() -> None:
    conversation = state()
    message(conversation, 1, key="k", added_in=1, superseded_in=2)
    message(conversation, 1, key="k", added_in=2)
    assert_refused(
        lambda: message(conversation, 2, key="k"),
        "message_current_key",
        "conversation_messages.conversation_id",
        "conversation_messages.key",
    )
    message(state("c-2"), 1, key="k")
    message(conversation, 3)
    message(conversation, 4)


def test_a_revision_adds_one_version_of_a_message() -> None:
    conversation = state()
    message(conversation, 1, added_in=1, superseded_in=2)
    assert_refused(
        lambda: message(conversation, 1, added_in=1, superseded_in=3),
        "message_version",
        "conversation_messages.conversation_id",
        "conversation_messages.sequence",
        "conversation_messages.added_in",
    )


def test_sequences_begin_at_1() -> None:
    conversation = state()
    assert_refused(lambda: message(conversation, 0), "message_sequence_from_1")


@pytest.mark.parametrize("superseded_in", [4, 5])
def test_a_message_is_superseded_after_it_was_added(superseded_in: int) -> None:
    conversation = state()
    assert_refused(
        lambda: message(conversation, added_in=5, superseded_in=superseded_in),
        "message_superseded_later",
    )
    message(conversation, added_in=5, superseded_in=6)


@pytest.mark.parametrize("superseded_in", [4, 5])
def test_a_context_item_is_superseded_after_it_was_added(superseded_in: int) -> None:
    conversation = state()
    assert_refused(
        lambda: item(conversation, added_in=5, superseded_in=superseded_in),
        "item_superseded_later",
    )
    item(conversation, added_in=5, superseded_in=6)


@pytest.mark.parametrize("score", [-0.001, 1.001])
def test_relevance_is_between_0_and_1(score: float) -> None:
    conversation = state()
    assert_refused(lambda: item(conversation, relevance_score=score), "item_relevance_0_to_1")
    for position, accepted in enumerate((0.0, 1.0, None)):
        item(conversation, position, relevance_score=accepted)


def test_a_conversation_has_one_current_context_item_per_position() -> None:
    conversation = state()
    item(conversation, 0, superseded_in=2)
    item(conversation, 0)
    assert_refused(
        lambda: item(conversation, 0),
        "item_by_position",
        "index 'item_by_position'",
    )


def test_a_text_is_redacted_once_per_conversation() -> None:
    def redact(conversation: ConversationState) -> None:
        ConversationRedaction.rows.create(
            conversation=conversation, text_hash=b"h" * 32, replacement="-", created_at=NOW
        )

    conversation = state()
    redact(conversation)
    assert_refused(
        lambda: redact(conversation),
        "redaction_text",
        "conversation_redactions.conversation_id",
        "conversation_redactions.text_hash",
    )
    redact(state("c-2"))


@pytest.mark.parametrize("chosen", [(), ("chunk", "conversation"), ("message", "context_item")])
def test_metadata_is_about_exactly_one_row(chosen: tuple[str, ...]) -> None:
    conversation = state()
    rows = {
        "chunk": MemoryChunk.objects.create(content=""),
        "conversation": conversation,
        "message": message(conversation),
        "context_item": item(conversation),
    }
    targets = {name: rows[name] for name in chosen}
    assert_refused(
        lambda: MemoryMetadata.objects.create(key="k", value="v", **targets),
        "metadata_one_target",
    )
    for name, row in rows.items():
        made = MemoryMetadata.objects.create(key="k", value="v", **{name: row})
        assert (made.table_name, made.record_id) == (row._meta.db_table, row.pk)


def test_metadata_of_old_code_that_is_about_no_row_says_so() -> None:
    """Its tables may hold some: the constraint of ours does not look at rows from before."""
    left = MemoryMetadata(key="k", value="v")
    assert (left.target, left.table_name, left.record_id) == (None, None, None)
    assert site.get_model_admin(MemoryMetadata).target(left) is None


@pytest.mark.parametrize("name", ["conversation", "message", "context_item"])
def test_metadata_has_one_value_per_row_and_key(name: str) -> None:
    conversation = state()
    rows: dict[str, Any] = {
        "conversation": conversation,
        "message": message(conversation),
        "context_item": item(conversation),
    }

    def describe(key: str) -> None:
        MemoryMetadata.objects.create(key=key, value="v", **{name: rows[name]})

    describe("k")
    assert_refused(
        lambda: describe("k"),
        f"metadata_{name}_key",
        f"memory_metadata.{name}_id",
        "memory_metadata.key",
    )
    describe("other")


def test_metadata_of_chunks_repeats_keys_as_old_code_may() -> None:
    chunk = MemoryChunk.objects.create(content="")
    for _ in range(2):
        MemoryMetadata.objects.create(chunk=chunk, key="k", value="v")
    assert chunk.metadata.count() == 2


def test_foreign_keys_are_checked() -> None:
    def write() -> None:
        ConversationMessage.rows.create(
            conversation_id=10**9, sequence=1, digest=bytes(16), added_in=1
        )
        connection.check_constraints()

    with pytest.raises(IntegrityError), transaction.atomic():
        write()


def test_deleting_a_conversation_leaves_nothing_of_it() -> None:
    conversation = full()
    other = full("c-2", forked_from=conversation)
    both = counts()
    conversation.delete()
    assert counts() == {table: count // 2 for table, count in both.items()}
    other.refresh_from_db()
    assert other.forked_from is None
    other.delete()
    assert counts() == EMPTY


def test_deleting_conversations_in_bulk_leaves_nothing_of_them() -> None:
    for number in range(3):
        full(f"c-{number}")
    ConversationState.rows.all().delete()
    assert counts() == EMPTY


def test_deleting_a_user_leaves_nothing_of_theirs() -> None:
    user = get_user_model().objects.create_user("ann")
    full("c-1", user=user)
    chunk = MemoryChunk.objects.create(user=user, content="{}", created_at=NOW)
    MemoryMetadata.objects.create(chunk=chunk, key="type", value="state")
    user.delete()
    assert counts() == EMPTY
    assert MemoryChunk.objects.count() == 0


def test_deleting_a_message_or_an_item_takes_its_metadata() -> None:
    conversation = full()
    conversation.messages.get(sequence=1)
    ConversationMessage.rows.filter(conversation=conversation).delete()
    MemoryContextItem.objects.filter(conversation=conversation).delete()
    (left,) = MemoryMetadata.objects.all()
    assert (left.table_name, left.record_id) == ("conversation_states", conversation.pk)


@pytest.mark.parametrize(
    "write",
    [
        lambda: ConversationMessage.objects.create(sequence=1),
        lambda: ConversationMessage.objects.all().update(content=""),
        lambda: ConversationMessage.objects.all().delete(),
        lambda: ConversationState.objects.bulk_create([]),
        lambda: ConversationTombstone.objects.get_or_create(conversation_id="c-1"),
    ],
)
def test_writing_through_the_reading_manager_is_refused(write: Callable[[], Any]) -> None:
    with pytest.raises(DirectWriteRefused, match=r"conversations\.storage"):
        write()


def test_a_conversation_is_read_as_of_a_revision() -> None:
    conversation = state(revision=3)
    message(conversation, 1, added_in=1, superseded_in=3, content="draft")
    message(conversation, 1, added_in=3, content="final")
    message(conversation, 2, added_in=2, content="next")

    def contents(revision: int) -> list[str]:
        rows = conversation.messages.as_of(revision).order_by("sequence")
        return list(rows.values_list("content", flat=True))

    assert {revision: contents(revision) for revision in range(4)} == {
        0: [],
        1: ["draft"],
        2: ["draft", "next"],
        3: ["final", "next"],
    }
    current = conversation.messages.current().order_by("sequence")
    assert list(current.values_list("content", flat=True)) == ["final", "next"]


@pytest.mark.parametrize("count", [0, 2, 3, 4, 7])
def test_pages_give_every_row_once_in_order(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PAGE", 3)
    names = [f"c-{number}" for number in range(count)]
    for name in names:
        state(name)
    found = in_pages(ConversationState.rows.order_by("-pk"), "conversation_id", "revision")
    assert list(found) == [(name, 0) for name in names]


OURS = (
    "conversation_states",
    "conversation_messages",
    "conversation_tombstones",
    "conversation_conflicts",
    "conversation_redactions",
    "memory_context_items",
    "memory_metadata",
    "memory_chunks",
)


@pytest.mark.parametrize("table", OURS)
def test_every_index_check_and_unique_constraint_has_the_name_of_a_model(table: str) -> None:
    from django.apps import apps

    (model,) = (found for found in apps.get_models() if found._meta.db_table == table)
    declared = {found.name for found in [*model._meta.indexes, *model._meta.constraints]}
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, table)
    named = {
        name
        for name, facts in found.items()
        if (facts["index"] or facts["check"] or facts["unique"]) and not facts["primary_key"]
    }
    # What SQLite's introspection calls __unnamed_constraint_n__ belongs to a column: that of
    # embedding's type, which is Django's, and ours that came with a column.
    named = {name for name in named if not name.startswith("__unnamed")}
    if table == METADATA and has_check(connection):
        named.add(CHECK)
    assert named == declared
