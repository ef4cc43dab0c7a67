"""Read many conversations of the chunk tables at once, for a sync or an import.

One statement finds what `foreign_ids`, `load` and `mark_ingested` of ChunkStore find in four
statements for each conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from django.db import connections

from conversations import conf
from conversations.exceptions import InvalidState
from conversations.stores.chunks.format import looks_sql, met_sql, names_bound, sizes_sql, taken_in
from conversations.stores.chunks.watermark import raised, settled_before
from conversations.stores.types import BlobState, Stored
from memory.models import MemoryChunk, MemoryMetadata

NOTHING = "0"


def sizes(ids: Sequence[str]) -> Mapping[str, int]:
    """Return the size in bytes of the newest blob of each conversation."""
    connection = connections[conf.alias()]
    if not ids:
        return {}
    sql = sizes_sql(len(ids), vendor=connection.vendor)
    with connection.cursor() as cursor:
        cursor.execute(sql, names_bound(ids, connection.vendor))
        return {str(name): int(size or 0) for name, size in cursor.fetchall()}


def met(ids: Sequence[str], low: int) -> set[str]:
    """Return the conversations that have a state blob up to and including a key."""
    connection = connections[conf.alias()]
    if not ids:
        return set()
    with connection.cursor() as cursor:
        bound = [*names_bound(ids, connection.vendor), low]
        cursor.execute(met_sql(len(ids), vendor=connection.vendor), bound)
        return {str(name) for (name,) in cursor.fetchall()}


def read_many(
    ids: Sequence[str], stored_of: Callable[[MemoryChunk], Stored]
) -> Sequence[BlobState]:
    """Return legacy's content of each conversation.

    `stored_of` reads a blob, or raises InvalidState.
    """
    connection = connections[conf.alias()]
    if not ids:
        return ()
    cutoff, parameters = settled_before()
    sql = looks_sql(len(ids), vendor=connection.vendor, cutoff=cutoff)
    # Through the model, because the host chose the columns' types: an owner may be a UUID.
    found: Iterable[Any] = MemoryChunk.objects.raw(
        sql, [*names_bound(ids, connection.vendor), *parameters, *parameters], using=conf.alias()
    )
    by_name = {blob.name: _state_of(blob, stored_of) for blob in found}
    return [by_name.get(name) or BlobState(name, held=False, token=NOTHING) for name in ids]


def _state_of(blob: Any, stored_of: Callable[[MemoryChunk], Stored]) -> BlobState:
    """Return the state of one row; the floor is raised as `mark_ingested` raises it."""
    floor = raised(0, blob.settled, blob.in_flight)
    stored = None
    if blob.pk is not None:
        # The floor must not pass the blob that a load reads.
        floor = min(floor, blob.pk)
        try:
            stored = stored_of(blob)
        except InvalidState:
            # A look at this conversation alone reports the problem.
            stored = None
    name, seen = str(blob.name), blob.seen or ""
    return BlobState(name, held=True, token=str(floor), stored=stored, foreign_ids=seen)


def mark_ingested(looks: Sequence[BlobState], *, revision: int) -> None:
    """Mark blobs as ingested: those seen above their floors, and the ones that a load reads."""
    marks = [
        MemoryMetadata(chunk_id=int(chunk_id), key=key, value=value)
        for look in looks
        for chunk_id in dict.fromkeys(filter(None, look.foreign_ids.split(",")))
        if int(chunk_id) > int(look.token)
        or (look.stored is not None and chunk_id == look.stored.reference)
        for key, value in taken_in(revision).items()
    ]
    MemoryMetadata.objects.using(conf.alias()).bulk_create(marks)
