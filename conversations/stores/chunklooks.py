"""Looking at many conversations of the chunk tables at once, for a sync or an import.

One statement gives what `survey`, `load` and `settle` of ChunkStore find out in four for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from django.db import connections

from conversations import conf
from conversations.exceptions import InvalidState
from conversations.stores.base import Look, Stored, byte_length
from conversations.stores.chunkformat import REVISION_MARK, looks_sql, sizes_sql
from conversations.stores.floors import raised, settled_before
from memory.models import MemoryChunk, MemoryMetadata

# How a database joins texts.
_JOINED = {
    "postgresql": "string_agg(CAST(id AS text), ',')",
    "sqlite": "group_concat(id, ',')",
}
NOTHING = "0"


def sizes(ids: Sequence[str]) -> Mapping[str, int]:
    """Return how many bytes the newest blob of each conversation has."""
    connection = connections[conf.alias()]
    if not ids:
        return {}
    length = byte_length("chunk.content", connection.vendor)
    with connection.cursor() as cursor:
        cursor.execute(sizes_sql(len(ids), length=length), list(ids))
        return {str(name): int(size or 0) for name, size in cursor.fetchall()}


def looks(ids: Sequence[str], stored_of: Callable[[MemoryChunk], Stored]) -> Sequence[Look]:
    """Return a look at each conversation; `stored_of` reads a blob, or raises InvalidState."""
    connection = connections[conf.alias()]
    if not ids:
        return ()
    cutoff, parameters = settled_before()
    sql = looks_sql(len(ids), joined=_JOINED[connection.vendor], cutoff=cutoff)
    # Through the model, for the columns are the host's: an owner may be a UUID.
    found: Iterable[Any] = MemoryChunk.objects.raw(
        sql, [*ids, *parameters, *parameters], using=conf.alias()
    )
    by_name = {blob.name: _look(blob, stored_of) for blob in found}
    return [by_name.get(name) or Look(name, held=False, token=NOTHING) for name in ids]


def _look(blob: Any, stored_of: Callable[[MemoryChunk], Stored]) -> Look:
    """Return the look that one row gives; the floor is raised as `settle` raises it."""
    floor = raised(0, blob.settled, blob.in_flight)
    stored = None
    if blob.pk is not None:
        # What a load reads is not passed.
        floor = min(floor, blob.pk)
        try:
            stored = stored_of(blob)
        except InvalidState:
            # Whoever looks at it by itself says what is wrong.
            stored = None
    return Look(str(blob.name), held=True, token=str(floor), stored=stored, seen=blob.seen or "")


def settle(looks: Sequence[Look], *, revision: int) -> None:
    """Mark what the looks have seen above their floors, and what a load reads, as taken in."""
    marks = [
        MemoryMetadata(chunk_id=int(chunk_id), key=REVISION_MARK, value=str(revision))
        for look in looks
        for chunk_id in dict.fromkeys(filter(None, look.seen.split(",")))
        if int(chunk_id) > int(look.token)
        or (look.stored is not None and chunk_id == look.stored.reference)
    ]
    MemoryMetadata.objects.using(conf.alias()).bulk_create(marks)
