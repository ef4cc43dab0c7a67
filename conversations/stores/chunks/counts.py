"""Totals of the legacy chunk tables, by SQL that reads no content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import connections

from conversations import conf
from conversations.stores.chunks import overtaken
from conversations.stores.chunks.format import names_its_chunk
from conversations.stores.sql.expressions import byte_length, single_row
from conversations.stores.types import Blobs, Leftovers, Pruned
from memory.models import MemoryChunk, MemoryMetadata

_STATE_CHUNKS = """
    FROM memory_chunks chunk WHERE EXISTS (
        SELECT 1 FROM memory_metadata typed
        WHERE typed.chunk_id = chunk.id AND typed."key" = 'type' AND typed.value = 'state'
    )"""
_NAMED = f"""EXISTS (
        SELECT 1 FROM memory_metadata named
        WHERE named.chunk_id = chunk.id AND {names_its_chunk("named")} AND named.value <> ''
    )"""
_UNNAMED = f"SELECT COUNT(*) {_STATE_CHUNKS} AND NOT {_NAMED}"
_OF_DELETED = f"""SELECT COUNT(*) {_STATE_CHUNKS} AND EXISTS (
        SELECT 1 FROM memory_metadata named
        JOIN conversation_tombstones gone ON gone.conversation_id = named.value
        WHERE named.chunk_id = chunk.id AND named."key" = 'conversation_id'
    )"""
# If no foreign key was ever enforced, a row may name a chunk that is gone, or none.
_BARE = """
    SELECT COUNT(*) FROM memory_metadata bare
    WHERE bare.chunk_id IS NULL AND bare.conversation_id IS NULL
    AND bare.message_id IS NULL AND bare.context_item_id IS NULL
    OR bare.chunk_id IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM memory_chunks chunk WHERE chunk.id = bare.chunk_id)"""
# The order in which old code reads the blobs.
_OVERTAKEN = """
    SELECT COUNT(*), SUM(size) FROM (
        SELECT {size} AS size, ROW_NUMBER() OVER (
            PARTITION BY named.value ORDER BY chunk.created_at DESC NULLS LAST, chunk.id DESC
        ) AS place
        FROM memory_metadata named JOIN memory_chunks chunk ON chunk.id = named.chunk_id
        WHERE named."key" = 'conversation_id' AND named.value <> '' AND EXISTS (
            SELECT 1 FROM memory_metadata typed
            WHERE typed.chunk_id = chunk.id AND typed."key" = 'type' AND typed.value = 'state'
        )
    ) AS placed WHERE place > 1"""


class ChunkTables:
    """The part of ChunkStore that counts its tables, and prunes them."""

    @property
    def tables(self) -> Sequence[str]:
        return (MemoryChunk._meta.db_table, MemoryMetadata._meta.db_table)

    def blobs(self) -> Blobs:
        """Count the state blobs, and their bytes."""
        return Blobs(*single_row(f"SELECT COUNT(*), SUM({_size()}) {_STATE_CHUNKS}"))

    def leftovers(self) -> Leftovers:
        """Count the rows that no load reads."""
        overtaken = self.overtaken()
        (unnamed,) = single_row(_UNNAMED)
        (bare,) = single_row(_BARE)
        (of_deleted,) = single_row(_OF_DELETED)
        return Leftovers(overtaken.count, overtaken.bytes, unnamed, bare, of_deleted)

    def overtaken(self) -> Blobs:
        return Blobs(*single_row(_OVERTAKEN.format(size=_size())))

    def crowded(self, ids: Sequence[str], *, keep: int) -> Sequence[str]:
        return overtaken.crowded(ids, keep=keep)

    def prune(
        self,
        conversation_id: str,
        *,
        keep: int,
        needed: int,
        behind: Any = None,
        dry_run: bool = False,
        measured: bool = True,
    ) -> Pruned:
        """Continue below a key; `stores.overtaken` lists the blobs that stay."""
        return overtaken.prune(
            conversation_id,
            keep=keep,
            needed=needed,
            below=behind,
            dry_run=dry_run,
            measured=measured,
        )


def _size() -> str:
    return byte_length("chunk.content", connections[conf.alias()].vendor)
