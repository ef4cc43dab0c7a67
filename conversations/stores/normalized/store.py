"""NormalizedStore itself: whole changes of a conversation, its deletion, and lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.db.models import Q

from conversations import conf
from conversations.content.changes.change import Change, Edit
from conversations.content.digests import DIGEST_BYTES, EMPTY, Blocks, block_of, roll
from conversations.content.document import Document, field_digests, fields_digest
from conversations.content.entries import entries_of, resequence
from conversations.content.field_codec import decode_fields, encode_fields
from conversations.models import (
    ConversationConflict,
    ConversationRedaction,
    ConversationState,
)
from conversations.stores.normalized.items import ItemRows, number_items
from conversations.stores.normalized.messages import MessageRows
from conversations.stores.normalized.rows import (
    blocks_of,
    find_row,
    latest_of,
    owner_of,
    replaced,
)
from conversations.stores.types import Summary
from flags.phases import StoreName
from memory.models import MemoryContextItem, MemoryMetadata


class NormalizedStore(MessageRows, ItemRows):
    """The tables: one conversation, row by row, and lists of all."""

    name = StoreName.NORMALIZED.value

    def fields(self, row: ConversationState) -> dict[str, Any]:
        """Return the fields of a conversation."""
        return decode_fields(vars(row))

    def document(self, row: ConversationState) -> Document:
        """Return the whole content of a conversation."""
        items = self.items(row)[0] if row.context_item_count else []
        return Document(
            self.fields(row),
            [entry.value for entry in self.messages(row)],
            [entry.value for entry in items],
        )

    def write(
        self,
        row: ConversationState,
        change: Change,
        *,
        revision: int,
        now: datetime,
    ) -> None:
        """Apply a change as `revision`, and update `row`; insert it if it is new.

        `now` is the time of the change, and of messages that state none.
        """
        columns: dict[str, Any] = {"updated_at": now, **change.columns, "revision": revision}
        if change.edits:
            columns |= self._write_edits(row, change.edits, revision=revision, now=now)
        superseded: list[int] = []
        after = change.appended
        if change.messages is not None:
            before, after = change.messages
            rows = [entry.stored_row for entry in before]
            columns["next_sequence"] = resequence(after, next_sequence=row.next_sequence)
            kept = {entry.row for entry in after if entry.row is not None}
            superseded = [pk for pk in rows if pk not in kept]
            columns |= _digested(
                Blocks.of(
                    [(entry.place, entry.digest) for entry in after],
                    next_sequence=columns["next_sequence"],
                )
            )
            columns["message_count"] = len(after)
        elif after:
            columns["next_sequence"] = resequence(after, next_sequence=row.next_sequence)
            blocks = blocks_of(row).appended(
                [entry.digest for entry in after], next_sequence=row.next_sequence
            )
            columns |= _digested(blocks)
            columns["message_count"] = row.message_count + len(after)
        inserted = [entry for entry in after if entry.row is None]
        digest = bytes(row.state_digest)
        if change.fields is not None:
            columns |= encode_fields(change.fields)
            digest = fields_digest(field_digests(change.fields)) + digest[DIGEST_BYTES:]
        if change.items is not None:
            items_digest = roll(EMPTY, [entry.digest for entry in change.items[1]])
            digest = digest[:DIGEST_BYTES] + items_digest
            columns["next_item_sequence"] = number_items(
                change.items[1], next_sequence=row.next_item_sequence
            )
            columns["context_item_count"] = len(change.items[1])
            columns["context_items_revision"] = revision
        columns["state_digest"] = digest
        self._write_row(row, columns)
        self._supersede(row, superseded, revision=revision)
        if inserted:
            self._insert_messages(row, inserted, revision=revision, now=now)
        if change.items is not None:
            self._write_items(row, *change.items, revision=revision, now=now)

    def _write_edits(
        self, row: ConversationState, edits: Sequence[Edit], *, revision: int, now: datetime
    ) -> dict[str, Any]:
        """Write edits of single messages. Returns: the columns of the row that they change."""
        gone = [old for old, _ in edits if old is not None]
        new = [entry for _, entry in edits if entry is not None]
        self._supersede(row, [entry.stored_row for entry in gone], revision=revision)
        if new:
            self._insert_messages(row, new, revision=revision, now=now)
        blocks = blocks_of(row)
        if blocks.closed is None:
            places = self.digests(row)
            blocks = Blocks.of(places, next_sequence=row.next_sequence)
        else:
            numbers = sorted({block_of(entry.place) for entry in (*gone, *new)})
            blocks = blocks.replaced(self.block_digests(row, numbers))
        return _digested(blocks) | {"message_count": row.message_count + len(new) - len(gone)}

    def _write_row(self, row: ConversationState, columns: Mapping[str, Any]) -> None:
        changed = {name: value for name, value in columns.items() if getattr(row, name) != value}
        for name, value in changed.items():
            setattr(row, name, value)
        if row.pk is None:
            row.save(using=conf.alias(), force_insert=True)
        else:
            ConversationState.rows.using(conf.alias()).filter(pk=row.pk).update(**changed)

    def take(
        self,
        row: ConversationState,
        document: Document,
        *,
        revision: int,
        now: datetime,
        columns: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the content of a conversation exactly `document`; equal parts stay."""
        change = Change(fields=document.fields, columns=dict(columns or {}))
        stored = row.pk is not None
        messages = self.messages(row, values=False) if stored else []
        change.messages = (messages, replaced(messages, entries_of(document.messages)))
        if document.items or row.context_item_count:
            items = self.items(row)[0] if stored else []
            change.items = (items, replaced(items, entries_of(document.items)))
        self.write(row, change, revision=revision, now=now)

    def delete(self, conversation_id: str) -> bool:
        """Remove a conversation bottom-up, in a few statements rather than row by row."""
        row = find_row(conversation_id)
        if row is None:
            return False
        alias = conf.alias()
        items = MemoryContextItem.objects.using(alias).filter(conversation_id=row.pk)
        messages = self._messages(row)
        metadata = MemoryMetadata.objects.using(alias)
        metadata.filter(context_item_id__in=items.values("pk"))._raw_delete(alias)
        metadata.filter(message_id__in=messages.values("pk"))._raw_delete(alias)
        metadata.filter(conversation_id=row.pk)._raw_delete(alias)
        for query in (
            items,
            messages,
            ConversationConflict.rows.using(alias).filter(conversation_id=row.pk),
            ConversationRedaction.rows.using(alias).filter(conversation_id=row.pk),
        ):
            query._raw_delete(alias)
        rows = ConversationState.rows.using(alias)
        # A redaction in the origin must still reach the forks of a deleted fork.
        rows.filter(forked_from_id=row.pk).update(forked_from=row.forked_from_id)
        rows.filter(pk=row.pk)._raw_delete(alias)
        return True

    def list(
        self,
        *,
        owner: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int | None = None,
    ) -> Sequence[Summary]:
        rows = ConversationState.rows.using(conf.alias())
        if before is not None:
            moment, conversation_id = before
            # The first condition bounds the index; databases do not derive it from the second.
            rows = rows.filter(updated_at__lte=moment).filter(
                Q(updated_at__lt=moment) | Q(conversation_id__lt=conversation_id)
            )
        page = rows.order_by("-updated_at", "-conversation_id").only(
            "conversation_id", "updated_at", "message_count", "user_id", "legacy_user_id"
        )
        found = page[:limit] if owner is None else latest_of(page, owner, limit=limit)
        return [
            Summary(
                row.conversation_id, row.updated_at, row.message_count, self.name, owner_of(row)
            )
            for row in found
        ]


def _digested(blocks: Blocks) -> dict[str, Any]:
    """Return the columns of a conversation that hold its messages' digests."""
    return {"messages_digest": blocks.digest, "message_blocks": blocks.closed}
