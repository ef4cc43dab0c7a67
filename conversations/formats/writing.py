"""Records into the tables. The caller holds the conversations' locks and their transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.utils import timezone

from conversations import conf
from conversations.content.changes.change import Change
from conversations.content.entries import Entry, entries_of
from conversations.content.moments import states_time
from conversations.formats.records import Record
from conversations.models import (
    ConversationMessage,
    ConversationState,
)
from conversations.routing.owners import owner_columns
from conversations.routing.standing import decide
from conversations.routing.truth import Numbers
from conversations.stores.normalized import Creation, NormalizedStore, create_all, new_row, replaced
from conversations.writing.fork import touch
from conversations.writing.redact import inherit
from conversations.writing.write import write


def create(record: Record, owner: str | None, *, foreign_ids: str) -> None:
    """Create a conversation; `foreign_ids` is legacy's note from before it held nothing."""
    legacy, token = decide(record.conversation_id).legacy, ""
    if legacy is not None:
        # Legacy is not written: its number stays 0, so that the tables hold the truth.
        token = legacy.mark_ingested(
            record.conversation_id, revision=0, known="", foreign_ids=foreign_ids
        )
    create_all([creation(record, owner_columns(owner), token=token, now=timezone.now())])


def creation(
    record: Record, owner: Mapping[str, str | None], *, token: str, now: datetime
) -> Creation:
    """Return a record's conversation, with an owner's columns and legacy's token."""
    row = new_row(record.conversation_id, now=now, **owner)
    row.created_at = record.created_at or now
    row.next_sequence, row.legacy_token = record.next_sequence, token
    entries = _entries(record)
    moments = {
        place.sequence: place.timestamp
        for place, entry in zip(record.places or (), entries, strict=False)
        if place.timestamp is not None and not states_time(entry.value)
    }
    return Creation(row, record.document, entries, record.updated_at or now, moments)


def _entries(record: Record) -> list[Entry]:
    """Return the messages as new entries, with the sequences and keys of the record."""
    entries = entries_of(record.document.messages)
    if record.places is None:
        return entries
    for entry, place in zip(entries, record.places, strict=True):
        entry.identity, entry.key = place.sequence, place.key
        if place.key is not None:
            entry.key_digest = place.first_digest or entry.digest
    return entries


def _set_times(record: Record, entries: Sequence[Entry]) -> None:
    """Give messages their time of adding, if it is not `updated_at`."""
    added: dict[int | None, Any] = {
        place.sequence: place.timestamp for place in record.places or ()
    }
    changed: list[Any] = [
        ConversationMessage(pk=entry.row, timestamp=added[entry.identity])
        for entry in entries
        if added.get(entry.identity) is not None and not states_time(entry.value)
    ]
    rows = ConversationMessage.rows.using(conf.alias())
    rows.bulk_update(changed, ["timestamp"], batch_size=200)


def overwrite(record: Record) -> None:
    """Make a conversation what the record says, after the tables have taken in its truth."""
    carrying = decide(record.conversation_id).carrying()
    row = write(record.conversation_id, touch(), owner=None, decision=carrying).row
    assert row is not None
    tables = NormalizedStore()
    current = tables.messages(row, values=False)
    entries = _taking_over(current, _entries(record), numbered=record.places is not None)
    change = Change(fields=record.document.fields, messages=(current, entries))
    if record.document.items or row.context_item_count:
        items = tables.items(row)[0]
        change.items = (items, replaced(items, entries_of(record.document.items)))
    # A write continues from the row's own next sequence, and never sets the time of creation.
    row.next_sequence = max(row.next_sequence, record.next_sequence)
    row.created_at = record.created_at or row.created_at
    row.save(using=conf.alias(), update_fields=["next_sequence", "created_at"])
    revision = Numbers(row.revision, row.legacy_revision).next
    tables.write(row, change, revision=revision, now=record.updated_at or timezone.now())
    _set_times(record, [entry for entry in entries if entry.added_in == revision])


def _taking_over(
    current: Sequence[Entry], wanted: Sequence[Entry], *, numbered: bool
) -> Sequence[Entry]:
    """Return the wanted entries, but the current one wherever it is the same message."""
    if not numbered:
        return replaced(current, wanted)
    here = {entry.identity: entry for entry in current}
    entries: list[Entry] = []
    for entry in wanted:
        before = here.get(entry.identity)
        if before is not None and _message(before) == _message(entry):
            entries.append(before)
            continue
        entry.supersedes = None if before is None else before.row
        entries.append(entry)
    return entries


def _message(entry: Entry) -> tuple[bytes, str | None, bytes | None]:
    return entry.digest, entry.key, entry.key_digest


def join(fork: str, origin: str) -> bool:
    """Note the origin of a fork. Returns: whether the origin is in the tables.

    A conversation with an origin keeps it. A circle, which no fork can make, is not closed.
    """
    rows = ConversationState.rows.using(conf.alias())
    above = rows.filter(conversation_id=origin).values_list("pk", "forked_from_id").first()
    if above is None:
        return False
    joined = rows.filter(conversation_id=fork, forked_from=None)
    pk = joined.values_list("pk", flat=True).first()
    ancestor: int | None = above[0]
    while ancestor is not None and ancestor != pk:
        ancestor = rows.filter(pk=ancestor).values_list("forked_from_id", flat=True).first()
    if pk is not None and ancestor is None:
        joined.update(forked_from_id=above[0])
        inherit(origin, fork)
    return True
