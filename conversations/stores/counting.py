"""Counting what the legacy chunk tables hold, by SQL that reads no content."""

from __future__ import annotations

from django.db import connections

from conversations import conf
from conversations.stores.base import Blobs, Leftovers, byte_length, single_row

_STATE_CHUNKS = """
    FROM memory_chunks chunk WHERE EXISTS (
        SELECT 1 FROM memory_metadata typed
        WHERE typed.chunk_id = chunk.id AND typed."key" = 'type' AND typed.value = 'state'
    )"""
_NAMED = """EXISTS (
        SELECT 1 FROM memory_metadata named
        WHERE named.chunk_id = chunk.id AND named."key" = 'conversation_id'
    )"""
_UNNAMED = f"SELECT COUNT(*) {_STATE_CHUNKS} AND NOT {_NAMED}"
_OF_DELETED = f"""SELECT COUNT(*) {_STATE_CHUNKS} AND EXISTS (
        SELECT 1 FROM memory_metadata named
        JOIN conversation_tombstones gone ON gone.conversation_id = named.value
        WHERE named.chunk_id = chunk.id AND named."key" = 'conversation_id'
    )"""
# Where no foreign key was ever enforced, a row may name a chunk that is gone, or none.
_BARE = """
    SELECT COUNT(*) FROM memory_metadata bare
    WHERE bare.chunk_id IS NULL AND bare.conversation_id IS NULL
    AND bare.message_id IS NULL AND bare.context_item_id IS NULL
    OR bare.chunk_id IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM memory_chunks chunk WHERE chunk.id = bare.chunk_id)"""
# The order in which old code reads them.
_OVERTAKEN = """
    SELECT COUNT(*), SUM(size) FROM (
        SELECT {size} AS size, ROW_NUMBER() OVER (
            PARTITION BY named.value ORDER BY chunk.created_at DESC NULLS LAST, chunk.id DESC
        ) AS place
        FROM memory_metadata named JOIN memory_chunks chunk ON chunk.id = named.chunk_id
        WHERE named."key" = 'conversation_id' AND EXISTS (
            SELECT 1 FROM memory_metadata typed
            WHERE typed.chunk_id = chunk.id AND typed."key" = 'type' AND typed.value = 'state'
        )
    ) AS placed WHERE place > 1"""


def counted_blobs() -> Blobs:
    """Count the state blobs, and their bytes."""
    return Blobs(*single_row(f"SELECT COUNT(*), SUM({_size()}) {_STATE_CHUNKS}"))


def counted_leftovers() -> Leftovers:
    """Count what no load reads."""
    overtaken, overtaken_bytes = single_row(_OVERTAKEN.format(size=_size()))
    (unnamed,) = single_row(_UNNAMED)
    (bare,) = single_row(_BARE)
    (of_deleted,) = single_row(_OF_DELETED)
    return Leftovers(overtaken, overtaken_bytes, unnamed, bare, of_deleted)


def _size() -> str:
    return byte_length("chunk.content", connections[conf.alias()].vendor)
