"""Context items: a row each, in the order of `position`; an edit replaces its row.

An item keeps its `sequence` when it is edited or moved, and no other item ever gets it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.db import connections

from conversations import conf
from conversations.content.codec import ITEM_COLUMNS, decode_items, encode_item
from conversations.content.entries import Entry
from conversations.models import ConversationState
from conversations.stores.normalized.load import Head
from conversations.stores.normalized.rows import replayed
from memory.models import MemoryContextItem, MemoryMetadata
from memory.selection import quality_of, selected

# `find_row` says why this is written in SQL.
_CURRENT = f"""
    SELECT {", ".join(f"item.{name}" for name in ITEM_COLUMNS)},
        item.id, item.sequence, item.position, item.digest, item.added_in,
        state.context_items_revision,
        EXISTS (SELECT 1 FROM memory_metadata described WHERE described.context_item_id = item.id)
    FROM memory_context_items item
    JOIN conversation_states state ON state.id = item.conversation_id
    WHERE item.conversation_id = %s AND item.superseded_in IS NULL"""
_WIDTH = len(ITEM_COLUMNS)
# Positions leave room, so that an insertion rarely moves the items behind it.
POSITION_GAP = 1024


class ItemRows:
    """The part of NormalizedStore that reads and writes context items."""

    def items(
        self,
        row: ConversationState | Head,
        *,
        threshold: float | None = None,
        last: int | None = None,
        using: str | None = None,
    ) -> tuple[list[Entry], int]:
        """Return context items in order, and the revision that last changed one.

        `threshold` leaves out items of a known lower quality. `last` keeps that many of the best,
        in order (unknown quality counts as best). `using` names a replica, which returns none
        unless it holds the row's revision.
        """
        sql = _CURRENT
        parameters: list[Any] = [row.pk]
        if using is not None:
            condition, compared = replayed(row)
            sql += f" AND {condition}"
            parameters += compared
        if threshold is not None:
            sql += " AND (item.relevance_score IS NULL OR item.relevance_score >= %s)"
            parameters.append(threshold)
        with connections[using or conf.alias()].cursor() as cursor:
            cursor.execute(f"{sql} ORDER BY item.position", parameters)
            rows = cursor.fetchall()
        found, changed = [], row.context_items_revision
        for item, value in zip(rows, decode_items(rows), strict=True):
            pk, sequence, position, digest, added_in, changed, described = item[_WIDTH:]
            found.append(
                Entry(
                    bytes(digest),
                    value,
                    identity=sequence,
                    row=pk,
                    added_in=added_in,
                    has_metadata=bool(described),
                    position=position,
                )
            )
        found = [entry for entry in found if selected(entry.value, threshold=threshold)]
        return limited_items(found, last), changed

    def _write_items(
        self,
        row: ConversationState,
        before: Sequence[Entry],
        after: Sequence[Entry],
        *,
        revision: int,
        now: datetime,
    ) -> None:
        """Make the rows of the context items equal to `after`: edits in place, then the rest."""
        kept = {entry.row for entry in after if entry.row is not None}
        removed = {entry.row: entry for entry in before if entry.row not in kept}
        new = [entry for entry in after if entry.row is None]
        carried = self._remove_items(removed, {entry.supersedes for entry in new})
        moved = set_positions(after)
        if moved:
            rows = [
                MemoryContextItem(pk=entry.row, position=entry.position or 0) for entry in moved
            ]
            MemoryContextItem.objects.using(conf.alias()).bulk_update(rows, ["position"])
        made = [
            MemoryContextItem(
                conversation_id=row.pk,
                sequence=entry.place,
                position=entry.position or 0,
                digest=entry.digest,
                added_in=revision,
                **encode_item(entry.value, now=now),
            )
            for entry in new
        ]
        MemoryContextItem.objects.using(conf.alias()).bulk_create(made)
        for entry, item in zip(new, made, strict=True):
            entry.row, entry.added_in = item.pk, revision
        metadata = [
            MemoryMetadata(context_item_id=entry.row, key=key, value=value)
            for entry in new
            for key, value in carried.get(entry.supersedes, ())
        ]
        if metadata:
            MemoryMetadata.objects.using(conf.alias()).bulk_create(metadata)

    def _remove_items(
        self, removed: Mapping[int | None, Entry], succeeded: set[int | None]
    ) -> dict[int | None, list[tuple[str, str | None]]]:
        """Delete item rows; return the metadata of those with a new version."""
        carried: dict[int | None, list[tuple[str, str | None]]] = {}
        if not removed:
            return carried
        described = [pk for pk, entry in removed.items() if entry.has_metadata]
        if described:
            metadata = MemoryMetadata.objects.using(conf.alias()).filter(
                context_item_id__in=described
            )
            for pk, key, value in metadata.values_list("context_item_id", "key", "value"):
                if pk in succeeded:
                    carried.setdefault(pk, []).append((key, value))
            metadata._raw_delete(conf.alias())
        items = MemoryContextItem.objects.using(conf.alias()).filter(pk__in=list(removed))
        items._raw_delete(conf.alias())
        return carried


def limited_items(entries: Sequence[Entry], last: int | None) -> list[Entry]:
    """Return the best `last` items in their order: unknown quality first, then by score."""
    if last is None or len(entries) <= last:
        return list(entries)
    quality = [quality_of(entry.value) for entry in entries]
    ranked = sorted(
        range(len(entries)),
        key=lambda place: (2.0 if quality[place] is None else quality[place], place),
        reverse=True,
    )
    return [entries[place] for place in sorted(ranked[:last])]


def number_items(entries: Sequence[Entry], *, next_sequence: int) -> int:
    """Give new items their sequences, in place. Returns: the next free one."""
    for entry in entries:
        if entry.identity is None:
            entry.identity = next_sequence
            next_sequence += 1
    return next_sequence


def set_positions(entries: Sequence[Entry]) -> list[Entry]:
    """Give every entry a position that rises along the list.

    New entries fill the gaps. Returns: the stored entries that had to move, all to positions
    behind every used one; () if the gaps sufficed.
    """
    used = [entry.position for entry in entries if entry.position is not None]
    low = 0
    place = 0
    while place < len(entries):
        here = entries[place].position
        if here is not None:
            low = here
            place += 1
            continue
        end = place
        while end < len(entries) and entries[end].position is None:
            end += 1
        count = end - place
        high = None if end == len(entries) else entries[end].position
        if high is None:
            positions = [low + POSITION_GAP * step for step in range(1, count + 1)]
        elif place == 0:
            positions = [high - POSITION_GAP * step for step in range(count, 0, -1)]
        elif high - low <= count:
            return _renumber(entries, start=max(used))
        else:
            positions = [low + (high - low) * step // (count + 1) for step in range(1, count + 1)]
        for entry, position in zip(entries[place:end], positions, strict=True):
            entry.position = position
        place = end
    return []


def _renumber(entries: Sequence[Entry], *, start: int) -> list[Entry]:
    for step, entry in enumerate(entries, start=1):
        entry.position = start + POSITION_GAP * step
    return [entry for entry in entries if entry.row is not None]
