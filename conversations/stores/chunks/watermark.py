"""The floor of a conversation in the chunk tables: up to this id, every blob is accounted for.

It may rise to blobs that have settled, never past blobs that may still be in flight. Ids commit
out of order, and the rows that make a chunk a state come late.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.db import connections
from django.utils import timezone

from conversations import conf
from conversations.stores.chunks.format import CONVERSATION_ID, MARKS
from memory.models import MemoryChunk


def floor_of(token: str) -> int:
    """Return the floor that a token of ChunkStore holds."""
    return int(token.removesuffix("+") or 0)


def settled_before() -> tuple[str, list[Any]]:
    """Return the time before which no write of old code is in flight: SQL, and its parameters.

    A transaction may see the data as of its beginning, and miss later writes that have settled
    since; see `flags.switches`. (On SQLite, such a transaction cannot write.)
    """
    connection, settles_within = connections[conf.alias()], conf.get("LEGACY_SETTLES_WITHIN")
    moment = connection.ops.adapt_datetimefield_value(timezone.now() - settles_within)
    if connection.vendor != "postgresql":
        return "%s", [moment]
    return "LEAST(%s, transaction_timestamp() - %s)", [moment, settles_within]


# The greatest settled id above a floor, and the least that may be in flight.
_BOUNDS_ABOVE = f"""
    SELECT MAX(named.chunk_id) FILTER (WHERE chunk.created_at < {{cutoff}}),
        MIN(named.chunk_id) FILTER (
            WHERE chunk.created_at IS NULL OR chunk.created_at >= {{cutoff}}
        )
    FROM memory_metadata named LEFT JOIN memory_chunks chunk ON chunk.id = named.chunk_id
    WHERE named."key" = '{CONVERSATION_ID}' AND named.value = %s AND named.chunk_id > %s
    AND EXISTS (
        SELECT 1 FROM memory_metadata typed
        WHERE typed.chunk_id = named.chunk_id AND typed."key" = 'type' AND typed.value = 'state'
    )"""


def bounds_above(conversation_id: str, floor: int) -> tuple[int | None, int | None]:
    """Return the greatest settled id above the floor, and the least that may be in flight."""
    cutoff, parameters = settled_before()
    with connections[conf.alias()].cursor() as cursor:
        cursor.execute(
            _BOUNDS_ABOVE.format(cutoff=cutoff),
            [*parameters, *parameters, conversation_id, floor],
        )
        settled, still_open = cursor.fetchone()
    return settled, still_open


# Written in SQL, because Django takes as long to build it as a short save takes in all. Blobs
# above the floor without a mark are those of other code.
_BEFORE_A_SAVE = f"""
    SELECT 0 AS id, MAX(chunk.created_at) AS created_at,
        MAX(named.chunk_id) FILTER (
            WHERE named.chunk_id > %s AND chunk.created_at < {{cutoff}} AND {{keeps_keys}}
        ) AS settled,
        MIN(named.chunk_id) FILTER (
            WHERE named.chunk_id > %s
            AND (
                chunk.created_at IS NULL OR chunk.created_at >= {{cutoff}}
                OR NOT EXISTS (
                    SELECT 1 FROM memory_metadata marked
                    WHERE marked.chunk_id = named.chunk_id
                    AND marked."key" IN ({", ".join(f"'{mark}'" for mark in MARKS)})
                )
            )
        ) AS still_open
    FROM memory_metadata named LEFT JOIN memory_chunks chunk ON chunk.id = named.chunk_id
    WHERE named."key" = '{CONVERSATION_ID}' AND named.value = %s
    AND EXISTS (
        SELECT 1 FROM memory_metadata typed
        WHERE typed.chunk_id = named.chunk_id AND typed."key" = 'type' AND typed.value = 'state'
    )"""


# An adopted SQLite table gives the keys of its newest rows again after they are removed. A later
# write of old code with such a key must not lie below a floor.
_KEEPS_KEYS = {
    "postgresql": "TRUE",
    "sqlite": "EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'memory_chunks')",
}


def before_a_save(conversation_id: str, floor: int) -> tuple[datetime | None, int]:
    """Return the newest blob's time, and the floor, raised over settled blobs of ours."""
    cutoff, parameters = settled_before()
    values = [floor, *parameters, floor, *parameters, conversation_id]
    # Through the model, which knows the format of a time.
    keeps_keys = _KEEPS_KEYS[connections[conf.alias()].vendor]
    sql = _BEFORE_A_SAVE.format(cutoff=cutoff, keeps_keys=keeps_keys)
    rows: Iterable[Any] = MemoryChunk.objects.raw(sql, values, using=conf.alias())
    found = next(iter(rows))
    return found.created_at, raised(floor, found.settled, found.still_open)


def raised(floor: int, settled: int | None, still_open: int | None) -> int:
    """Return the floor, raised to the greatest settled id, but below every open one."""
    highest = max(floor, settled or 0)
    return highest if still_open is None else max(floor, min(highest, still_open - 1))
