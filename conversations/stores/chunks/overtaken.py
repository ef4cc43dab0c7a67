"""Overtaken blobs of the chunk tables: blobs that we wrote, and later blobs have replaced.

Each save in the dual phases inserts a whole state, and nothing reads the earlier ones again. Old
code loads the newest, and the tables hold every version. These always stay:

- the newest blobs of the conversation, in the order in which old code reads them;
- the blob that the conversation's row names, since a merge begins with it (`last_ours`);
- blobs of other writers, ingested or not, set aside or put back: they are evidence;
- the greatest key of the conversation: an adopted SQLite table gives the key of its last row
  again. A new blob must not get a key below a floor.

The code reads a window of the conversation's blobs by descending key, so its cost does not grow
with their number. A blob of the window is overtaken if enough blobs in it are later: then the
whole conversation has at least as many later ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connections

from conversations import conf
from conversations.stores.chunks.format import (
    CONVERSATION_ID,
    QUARANTINE_MARK,
    RESTORED_MARK,
    REVISION_MARK,
    TAKEN_IN_MARK,
)
from conversations.stores.sql.expressions import NEVER, byte_length
from conversations.stores.types import Pruned
from memory.models import MemoryChunk

# How many blobs are read behind those that stay: the most that a save, and a batch, remove.
BEHIND = 50
BATCH = 200
# Above every key.
_TOP = 2**63 - 1

_WINDOW = f"""
    SELECT chunk.id, chunk.created_at, {{size}} AS size,
        (
            SELECT MAX(said.value) FROM memory_metadata said
            WHERE said.chunk_id = found.id AND said."key" = '{REVISION_MARK}'
        ) AS revision,
        EXISTS (
            SELECT 1 FROM memory_metadata said
            WHERE said.chunk_id = found.id AND said."key" = '{QUARANTINE_MARK}'
        ) AS aside,
        EXISTS (
            SELECT 1 FROM memory_metadata said
            WHERE said.chunk_id = found.id
            AND (
                said."key" IN ('{TAKEN_IN_MARK}', '{RESTORED_MARK}')
                OR said."key" = '{CONVERSATION_ID}' AND said.id <> found.named
            )
        ) AS others
    FROM (
        SELECT named.chunk_id AS id, named.id AS named FROM memory_metadata named
        WHERE named."key" = '{CONVERSATION_ID}' AND named.value = %s AND named.chunk_id < %s
        AND EXISTS (
            SELECT 1 FROM memory_metadata typed
            WHERE typed.chunk_id = named.chunk_id
            AND typed."key" = 'type' AND typed.value = 'state'
        )
        ORDER BY named.chunk_id DESC LIMIT %s
    ) found JOIN memory_chunks chunk ON chunk.id = found.id
    ORDER BY chunk.id DESC"""


@dataclass(frozen=True, slots=True)
class Placed:
    """One blob in a window; `revision` is None if no mark says that we wrote it.

    `aside`: it was set aside, so no load of ours reads it. `size` is 0 if it was not measured.
    """

    key: int
    written_at: datetime | None
    revision: int | None
    aside: bool
    size: int = 0


def overtaken(
    looked: Iterable[Placed], beside: Iterable[Placed], *, keep: int, needed: int
) -> list[Placed]:
    """Return the blobs of `looked` that may be removed; `beside` are others of the conversation.

    Those are blobs that we wrote and that at least `keep` later ones of both overtook. Blobs with
    the number `needed` or a later one stay, and so does the greatest key.
    """
    looked = list(looked)
    known = {blob.key: blob for blob in (*beside, *looked)}
    readable = [blob for blob in known.values() if not blob.aside]
    readable.sort(key=lambda blob: (blob.written_at or NEVER, blob.key), reverse=True)
    stay = {blob.key for blob in readable[:keep]} | {max(known, default=0)}
    return [
        blob
        for blob in looked
        if blob.key not in stay
        and not blob.aside
        and blob.revision is not None
        and blob.revision < needed
    ]


def prune(
    conversation_id: str,
    *,
    keep: int,
    needed: int,
    below: int | None = None,
    dry_run: bool = False,
    measured: bool = True,
) -> Pruned:
    """Read one window below a key (None: the first one), and remove its overtaken blobs."""
    top = _window(conversation_id, _TOP, keep + BEHIND, measured=measured)
    looked, count = top, keep + BEHIND
    if below is not None:
        looked, count = _window(conversation_id, below, BATCH, measured=measured), BATCH
    found = overtaken(looked, top, keep=keep, needed=needed)
    gone = {blob.key for blob in found} if dry_run else set(_removed([b.key for b in found]))
    rest = looked[-1].key if len(looked) == count else None
    return Pruned(len(gone), sum(b.size for b in found if b.key in gone), rest)


def _window(conversation_id: str, below: int, count: int, *, measured: bool) -> Sequence[Placed]:
    vendor = connections[conf.alias()].vendor
    # SQLite reads a whole text to find its length.
    size = byte_length("chunk.content", vendor) if measured else "0"
    # Through the model, which knows the format of a time.
    found: Iterable[Any] = MemoryChunk.objects.raw(
        _WINDOW.format(size=size), [conversation_id, below, count], using=conf.alias()
    )
    return [
        Placed(
            blob.pk,
            blob.created_at,
            None if blob.others or blob.revision is None else int(blob.revision),
            aside=bool(blob.aside),
            size=int(blob.size or 0),
        )
        for blob in found
    ]


def _removed(keys: Sequence[int]) -> list[int]:
    """Remove chunks with their metadata rows, but skip chunks that another transaction locked.

    It does not wait for such a lock: the chunk goes the next time.

    Returns: the keys of the removed chunks.
    """
    if not keys:
        return []
    places = ", ".join(["%s"] * len(keys))
    connection = connections[conf.alias()]
    unlocked = "FOR UPDATE SKIP LOCKED" if connection.vendor == "postgresql" else ""
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM memory_metadata WHERE chunk_id IN"
            f" (SELECT id FROM memory_chunks WHERE id IN ({places}) {unlocked})"
            " RETURNING chunk_id",
            list(keys),
        )
        gone = sorted({int(key) for (key,) in cursor.fetchall()})
        if gone:
            places = ", ".join(["%s"] * len(gone))
            cursor.execute(f"DELETE FROM memory_chunks WHERE id IN ({places})", gone)
    return gone


_CROWDED = f"""
    SELECT named.value FROM memory_metadata named
    WHERE named."key" = '{CONVERSATION_ID}' AND named.value IN ({{places}})
    GROUP BY named.value HAVING COUNT(named.chunk_id) > %s"""


def crowded(ids: Sequence[str], *, keep: int) -> list[str]:
    """Return those conversations that more than `keep` chunks name, in the order given."""
    if not ids:
        return []
    sql = _CROWDED.format(places=", ".join(["%s"] * len(ids)))
    with connections[conf.alias()].cursor() as cursor:
        cursor.execute(sql, [*ids, keep])
        found = {str(name) for (name,) in cursor.fetchall()}
    return [conversation_id for conversation_id in ids if conversation_id in found]
