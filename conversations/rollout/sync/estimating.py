"""The cost of a sync, measured on a sample that is carried over and rolled back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest

from django.db import connections, transaction

from conversations import conf
from conversations.rollout.sync.bulk import carry_all
from conversations.rollout.sync.one import Target, carry, the_legacy_store
from conversations.rollout.sync.planning import pending
from conversations.stores.base import LegacyStore
from flags.connections import reconnecting
from flags.sampling import share_of

SAMPLE = 200
# A transaction of the sample locks at most this many conversations, no longer than a batch.
TOGETHER = 50
_TABLES = ("conversation_states", "conversation_messages", "memory_context_items")


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of a sync. Counted: `conversations` (to carry over) and `legacy_bytes`.

    Also counted are `overtaken` blobs, which are not the newest of their conversation, and their
    bytes: while both stores are written, each save adds one.

    Measured on `sampled` conversations and multiplied: `disk_bytes` (the growth of tables and
    indexes), `wal_bytes` and `seconds`, with one worker. The notes say what a number means on this
    database.
    """

    target: Target
    conversations: int
    legacy_bytes: int
    sampled: int = 0
    disk_bytes: int = 0
    wal_bytes: int = 0
    seconds: float = 0.0
    disk_note: str = ""
    wal_note: str = ""
    overtaken: int = 0
    overtaken_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Cost:
    disk: int = 0
    wal: int = 0

    def __sub__(self, other: _Cost) -> _Cost:
        return _Cost(self.disk - other.disk, self.wal - other.wal)

    def __add__(self, other: _Cost) -> _Cost:
        return _Cost(self.disk + other.disk, self.wal + other.wal)


@reconnecting
def estimate(to: Target | str, *, sample: int = SAMPLE) -> Estimate:
    """Return the cost of a sync of everything.

    The sample is chosen by a hash of the ids, so that it has large and small conversations in
    their natural mix. It is carried over in short transactions that are rolled back. On
    PostgreSQL, their writes are dead space until the next vacuum, a few megabytes at most.

    Raises: ConversationNotFound if there is no legacy store to sync with.
    """
    target = Target(to)
    legacy = the_legacy_store(target)
    count = 0

    def counted() -> Sequence[str]:
        nonlocal count
        chosen: list[str] = []
        for found in pending(target):
            count += 1
            chosen.append(found)
            if len(chosen) >= 20 * sample:
                chosen = nsmallest(sample, chosen, key=share_of)
        return nsmallest(sample, chosen, key=share_of)

    chosen = counted()
    legacy_bytes, later = legacy.blobs().bytes, legacy.overtaken()
    if not chosen:
        return Estimate(
            target, count, legacy_bytes, overtaken=later.count, overtaken_bytes=later.bytes
        )
    cost, seconds = _measured(legacy, target, chosen)
    factor = count / len(chosen)
    postgresql = connections[conf.alias()].vendor == "postgresql"
    return Estimate(
        target,
        count,
        legacy_bytes,
        sampled=len(chosen),
        disk_bytes=int(cost.disk * factor),
        wal_bytes=int(cost.wal * factor),
        seconds=seconds * factor,
        disk_note="; free space is used first" if postgresql else "; whole pages",
        wal_note=(
            ", with concurrent writes of others"
            if postgresql
            else "; pages added, so at least this"
        ),
        overtaken=later.count,
        overtaken_bytes=later.bytes,
    )


def _measured(legacy: LegacyStore, target: Target, chosen: Sequence[str]) -> tuple[_Cost, float]:
    """Carry a sample over, and roll it back. Returns: its cost, and the seconds."""
    total, seconds = _Cost(), 0.0
    tables = (*_TABLES, *legacy.tables)
    for start in range(0, len(chosen), TOGETHER):
        ids = chosen[start : start + TOGETHER]
        with transaction.atomic(using=conf.alias()):
            before = _cost(tables)
            began = time.monotonic()
            # In bulk, as a run does: one by one would take many times as long.
            if target == Target.TABLES:
                carry_all(legacy, ids)
            else:
                for conversation_id in ids:
                    carry(legacy, target, conversation_id)
            seconds += time.monotonic() - began
            total += _cost(tables) - before
            transaction.set_rollback(True, using=conf.alias())
    return total, seconds


def _cost(tables: Sequence[str]) -> _Cost:
    """Return the database's present numbers: bytes on disk, and bytes of write-ahead log."""
    connection = connections[conf.alias()]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT sum(pg_total_relation_size(to_regclass(quote_ident(name)))),"
                " pg_current_wal_insert_lsn() - '0/0'::pg_lsn FROM unnest(%s::text[]) name",
                [[*tables]],
            )
            disk, wal = cursor.fetchone()
            return _Cost(int(disk), int(wal))
        cursor.execute("PRAGMA page_size")
        (size,) = cursor.fetchone()
        cursor.execute("PRAGMA page_count")
        (pages,) = cursor.fetchone()
        cursor.execute("PRAGMA freelist_count")
        (free,) = cursor.fetchone()
        used = (pages - free) * size
        return _Cost(used, used)
