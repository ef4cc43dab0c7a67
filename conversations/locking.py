"""The lock of one conversation, which exists even when no row of it does."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from conversations import conf
from conversations.exceptions import StorageUnavailable
from conversations.models import ConversationState, ConversationTombstone
from conversations.stores.normalized import found_row
from flags import fence

# The fence first: a flip that waits for it must not wait for a row as well. What refers to the
# row by a foreign key may still be inserted.
_FOR_UPDATE = f"AND {fence.shared_sql()} IS NOT NULL FOR NO KEY UPDATE OF conversation_states"


def lock(conversation_id: str, *, probe: str | None = None) -> ConversationState | None:
    """Lock a conversation until the transaction ends. Returns: its row, or None without one.

    `probe` is an SQL expression over the row; its value becomes the row's attribute `probed`.

    A flip of the switches waits for it; see `flags.fence`.

    PostgreSQL: the row's lock where there is a row. Where there is none, an advisory lock of
    the id, and then the row is looked for again, in a later statement. SQLite: the database's
    write lock, taken first, because a lock cannot be upgraded while others write.
    """
    connection = connections[conf.alias()]
    if connection.vendor == "sqlite":
        lock_database(connection)
        return found_row(conversation_id, probe=probe)
    row = found_row(conversation_id, probe=probe, clause=_FOR_UPDATE)
    if row is None:
        lock_id(conversation_id)
        row = found_row(conversation_id, probe=probe, clause=_FOR_UPDATE)
    return row


def lock_database(connection: BaseDatabaseWrapper) -> None:
    """Take SQLite's write lock until the transaction ends, unless that began with it."""
    if getattr(connection, "transaction_mode", None) != "IMMEDIATE":
        # Even an UPDATE that matches nothing takes the write lock, and waits for it.
        with connection.cursor() as cursor:
            cursor.execute("UPDATE conversation_states SET revision = revision WHERE 0")


def probed(row: ConversationState) -> Any:
    """Return the value of the probe that a row was read with."""
    return vars(row)["probed"]


def lock_id(conversation_id: str) -> None:
    """Take the advisory lock of an id until the transaction ends (PostgreSQL only).

    Raises: StorageUnavailable in a transaction whose snapshot may be older than the lock.
    """
    connection = connections[conf.alias()]
    if connection.vendor != "postgresql":
        return
    digest = blake2b(b"conversation:" + conversation_id.encode("utf-8"), digest_size=8).digest()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('transaction_isolation'),"
            f" {fence.shared_sql()}, pg_advisory_xact_lock(%s)",
            [int.from_bytes(digest, "big", signed=True)],
        )
        isolation = cursor.fetchone()[0]
    if isolation != "read committed":
        raise StorageUnavailable(
            f"The transaction is {isolation}: it would not see what was written while it waited"
            " for its lock. Save in a READ COMMITTED transaction."
        )


def deleted(conversation_id: str) -> bool:
    """Whether a conversation was deleted."""
    tombstones = ConversationTombstone.rows.using(conf.alias())
    return bool(tombstones.filter(conversation_id=conversation_id).exists())
