"""Create many conversations at once, each as `NormalizedStore.write` creates one.

The caller holds the conversations' locks, and knows that the tables do not know them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import connections

from conversations import conf
from conversations.content.codec import ITEM_COLUMNS, MESSAGE_COLUMNS, encode_item, encode_message
from conversations.content.digests import EMPTY, Blocks, roll
from conversations.content.document import Document, field_digests, fields_digest
from conversations.content.entries import Entry, entries_of, resequence
from conversations.content.field_codec import encode_fields
from conversations.models import ConversationState
from conversations.stores.normalized.items import number_items, set_positions
from conversations.stores.sql.bulk_insert import insert_all

FIRST_REVISION = 1

_STATE_FIELDS = [one for one in ConversationState._meta.concrete_fields if not one.primary_key]
_STATE_COLUMNS = [str(one.column) for one in _STATE_FIELDS]
_MESSAGE_COLUMNS = (
    "conversation_id",
    "sequence",
    "key",
    "key_digest",
    "digest",
    "added_in",
    "timestamp",
    *MESSAGE_COLUMNS,
)
_ITEM_COLUMNS = (
    "conversation_id",
    "sequence",
    "position",
    "digest",
    "added_in",
    "timestamp",
    *ITEM_COLUMNS,
)


@dataclass(slots=True)
class Creation:
    """A conversation to create: its unsaved row (see `new_row`), content and messages.

    `written` is the time of the writing, and of messages and items that state none. `moments`
    gives the times of messages, by sequence, that were added at another time.
    """

    row: ConversationState
    document: Document
    messages: Sequence[Entry]
    written: datetime
    moments: Mapping[int, datetime] = field(default_factory=dict)
    items: Sequence[Entry] = ()

    def __post_init__(self) -> None:
        """Set the row to the content, as of the first revision."""
        row, document = self.row, self.document
        self.items = entries_of(document.items)
        set_positions(self.items)
        for name, value in encode_fields(document.fields).items():
            setattr(row, name, value)
        row.revision, row.updated_at = FIRST_REVISION, self.written
        row.next_sequence = resequence(self.messages, next_sequence=row.next_sequence)
        row.message_count = len(self.messages)
        blocks = Blocks.of(
            [(entry.place, entry.digest) for entry in self.messages],
            next_sequence=row.next_sequence,
        )
        row.messages_digest, row.message_blocks = blocks.digest, blocks.closed
        row.state_digest = fields_digest(field_digests(document.fields)) + roll(
            EMPTY, [entry.digest for entry in self.items]
        )
        if self.items:
            row.next_item_sequence = number_items(self.items, next_sequence=row.next_item_sequence)
            row.context_item_count = len(self.items)
            row.context_items_revision = FIRST_REVISION


def create_all(creations: Sequence[Creation]) -> None:
    """Insert conversations that have no row yet: four statements, however many there are."""
    connection = connections[conf.alias()]
    states = [
        [
            one.get_db_prep_save(getattr(creation.row, one.attname), connection)
            for one in _STATE_FIELDS
        ]
        for creation in creations
    ]
    insert_all("conversation_states", _STATE_COLUMNS, states)
    rows = ConversationState.rows.using(conf.alias())
    ids = [creation.row.conversation_id for creation in creations]
    keys = dict(rows.filter(conversation_id__in=ids).values_list("conversation_id", "pk"))
    for creation in creations:
        creation.row.pk = keys[creation.row.conversation_id]
    insert_all("conversation_messages", _MESSAGE_COLUMNS, list(_messages(creations)))
    insert_all("memory_context_items", _ITEM_COLUMNS, list(_items(creations)))


def _messages(creations: Sequence[Creation]) -> Iterator[tuple[Any, ...]]:
    for creation in creations:
        pk, written, moments = creation.row.pk, creation.written, creation.moments
        for entry in creation.messages:
            columns = encode_message(entry.value, now=written)
            yield (
                pk,
                entry.identity,
                entry.key,
                entry.key_digest,
                entry.digest,
                FIRST_REVISION,
                moments.get(entry.place) or columns["timestamp"],
                *[columns[name] for name in MESSAGE_COLUMNS],
            )


def _items(creations: Sequence[Creation]) -> Iterator[tuple[Any, ...]]:
    for creation in creations:
        pk, written = creation.row.pk, creation.written
        for entry in creation.items:
            columns = encode_item(entry.value, now=written)
            yield (
                pk,
                entry.identity,
                entry.position,
                entry.digest,
                FIRST_REVISION,
                columns["timestamp"],
                *[columns[name] for name in ITEM_COLUMNS],
            )
