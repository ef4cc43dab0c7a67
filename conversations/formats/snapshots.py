"""Conversations as records: each as of one revision, from wherever its truth is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from django.db import transaction

from conversations import conf
from conversations.batches import conversation_ids
from conversations.documents import Document
from conversations.exceptions import ConversationNotFound, StorageUnavailable
from conversations.formats.records import Place, Record, following
from conversations.locking import lock
from conversations.merge import Entry, entries_of, resequence
from conversations.models import ConversationMessage, ConversationState
from conversations.owners import user_exists
from conversations.reading import RACES, at_truth
from conversations.stores.base import Stored
from conversations.stores.normalized import NormalizedStore, owner_of, replaced
from conversations.transactions import translated


class _Raced(Exception):
    """The conversation moved on while it was read."""


def snapshots(ids: Iterable[str] | None = None) -> Iterator[Record]:
    """Yield every conversation, or those named; see `export_lines`."""
    named = ids is not None
    for conversation_id in conversation_ids(ids):
        record = snapshot(conversation_id)
        if record is not None:
            yield record
        elif named:
            raise ConversationNotFound(f"there is no conversation {conversation_id}.")


def snapshot(conversation_id: str) -> Record | None:
    """Return a conversation as of one revision, or None when no store holds it.

    Takes no lock, unless it loses too many races against writers.

    Raises: StorageUnavailable, also when the rows are not those that the counts promise.
    """
    with translated(conversation_id):
        for _ in range(RACES):
            try:
                return _read(conversation_id, locked=False)
            except _Raced:
                continue
        with transaction.atomic(using=conf.alias()):
            lock(conversation_id)
            try:
                return _read(conversation_id, locked=True)
            except _Raced as error:
                raise StorageUnavailable(
                    f"Conversation {conversation_id} does not hold what its counts say: run"
                    " `conversations verify`."
                ) from error


def _read(conversation_id: str, *, locked: bool) -> Record | None:
    found = at_truth(conversation_id, owner=None)
    if found is None:
        return None
    row, stored = found
    if row is None:
        assert stored is not None
        return _only_in_legacy(conversation_id, stored)
    if stored is not None:
        return _ahead_in_legacy(row, stored)
    if row.legacy_revision > row.revision and not locked:
        # Legacy moved on since the row was read. Under the lock: its last write has vanished,
        # and what the tables hold is all there is.
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
    """Return what legacy holds; its messages have the sequences they get when taken in."""
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
    """Return the places, with when each message was added where nothing else says it."""
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


def states_time(message: Any) -> bool:
    """Whether a message says itself when it was."""
    return isinstance(message, dict) and message.get("timestamp") is not None


def _only_in_legacy(conversation_id: str, stored: Stored) -> Record:
    """Return what legacy knows: of the times, only that of the last write."""
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
