"""Conversations as records: each of one revision, from the store that holds its truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import transaction

from conversations import conf
from conversations.content.document import Document
from conversations.content.entries import Entry, entries_of, resequence
from conversations.content.moments import states_time
from conversations.exceptions import StorageUnavailable
from conversations.formats.records import Place, Record, following
from conversations.models import ConversationMessage, ConversationState
from conversations.reading import RACES, at_truth
from conversations.routing.locks import lock
from conversations.routing.owners import user_exists
from conversations.routing.standing import Decision, decide
from conversations.routing.transactions import translated
from conversations.stores.normalized import NormalizedStore, owner_of, replaced
from conversations.stores.types import Stored
from flags.texts import shown


class _Raced(Exception):
    """A writer changed the conversation during the read."""


def snapshot(conversation_id: str) -> Record | None:
    """Return a conversation as of one revision, or None if no store holds it.

    Takes no lock, unless it loses too many races against writers.

    Raises: StorageUnavailable, also if the rows do not match the counts.
    """
    decision = decide(conversation_id)
    with translated(conversation_id, emergency=decision.emergency):
        for _ in range(RACES):
            try:
                return _read(conversation_id, decision, locked=False)
            except _Raced:
                continue
        with transaction.atomic(using=conf.alias()):
            lock(conversation_id)
            try:
                return _read(conversation_id, decision, locked=True)
            except _Raced as error:
                raise StorageUnavailable(
                    f"Conversation {shown(conversation_id)} has rows that do not match its counts:"
                    " run `conversations verify`."
                ) from error


def _read(conversation_id: str, decision: Decision, *, locked: bool) -> Record | None:
    found = at_truth(conversation_id, decision, owner=None)
    if found is None:
        return None
    row, stored = found
    if row is None:
        assert stored is not None
        return _only_in_legacy(conversation_id, stored)
    if stored is not None:
        return _ahead_in_legacy(row, stored)
    if row.legacy_revision > row.revision and not locked:
        # Legacy changed since the row was read. Under the lock, it means that legacy's last write
        # has vanished, and the tables hold all there is.
        raise _Raced
    return _in_tables(row)


def _in_tables(row: ConversationState) -> Record:
    tables = NormalizedStore()
    messages = tables.messages(row, revision=row.revision)
    items: list[Entry] = []
    if row.context_item_count:
        items, changed = tables.items(row)
        if changed != row.context_items_revision:
            raise _Raced
    if (len(messages), len(items)) != (row.message_count, row.context_item_count):
        raise _Raced
    document = Document(
        tables.fields(row), [entry.value for entry in messages], [entry.value for entry in items]
    )
    return _of_row(row, document, messages)


def _ahead_in_legacy(row: ConversationState, stored: Stored) -> Record:
    """Return legacy's state; its messages get the sequences that an ingest would give them."""
    held = NormalizedStore().messages(row, revision=row.revision, values=False)
    entries = replaced(held, entries_of(stored.document.messages))
    resequence(entries, next_sequence=row.next_sequence)
    return _of_row(row, stored.document, entries)


def _of_row(row: ConversationState, document: Document, entries: Sequence[Entry]) -> Record:
    rows = ConversationState.rows.using(conf.alias())
    origin = None
    if row.forked_from_id is not None:
        named = rows.filter(pk=row.forked_from_id).values_list("conversation_id", flat=True)
        origin = named.first()
    places = _places(row, document, entries)
    return Record(
        conversation_id=row.conversation_id,
        document=document,
        owner=None if row.user_id is None else owner_of(row),
        legacy_user=row.legacy_user_id if row.user_id is None else None,
        forked_from=origin,
        created_at=row.created_at,
        updated_at=row.updated_at,
        places=places,
        next_sequence=max(row.next_sequence, following(places)),
    )


def _places(
    row: ConversationState, document: Document, entries: Sequence[Entry]
) -> tuple[Place, ...]:
    """Return the places, with the time of adding if the message and `updated_at` do not say it."""
    added: dict[int | None, Any] = dict(
        ConversationMessage.rows.using(conf.alias())
        .filter(conversation_id=row.pk)
        .exclude(timestamp=row.updated_at)
        .values_list("pk", "timestamp")
    )
    return tuple(
        Place(
            entry.identity or 0,
            entry.key,
            None if entry.key_digest == entry.digest else entry.key_digest,
            None if states_time(value) else added.get(entry.row),
        )
        for entry, value in zip(entries, document.messages, strict=True)
    )


def _only_in_legacy(conversation_id: str, stored: Stored) -> Record:
    """Return legacy's conversation; its only time is that of the last write."""
    places = tuple(Place(number) for number, _ in enumerate(stored.document.messages, start=1))
    known = stored.owner is not None and user_exists(stored.owner)
    return Record(
        conversation_id=conversation_id,
        document=stored.document,
        owner=stored.owner if known else None,
        legacy_user=None if known else stored.owner,
        created_at=stored.updated_at,
        updated_at=stored.updated_at,
        places=places,
        next_sequence=following(places),
    )
