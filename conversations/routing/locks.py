"""The lock of one conversation, which exists even when no row of it does."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from conversations import conf
from conversations.exceptions import StorageUnavailable
from conversations.models import ConversationState, ConversationTombstone
from conversations.stores.normalized import find_row
from flags import fence

# The fence first: a flip that waits for it must not wait for a row as well. NO KEY still lets
# others insert rows with a foreign key to this one.
_FOR_UPDATE = f"AND {fence.shared_sql()} IS NOT NULL FOR NO KEY UPDATE OF conversation_states"

_TOMBSTONE = "SELECT 1 FROM conversation_tombstones WHERE conversation_id = %s LIMIT 1"


def lock(conversation_id: str, *, token_sql: str | None = None) -> ConversationState | None:
    """Lock a conversation until the transaction ends. Returns: its row, or None without one.

    `token_sql` is an SQL expression over the row; `token_value` gives its value.

    A flip of the switches waits for it; see `flags.fence`.

    PostgreSQL: the row's lock. Without a row, an advisory lock of the id; a later statement then
    looks for the row again. SQLite: the database's write lock, taken first, because a lock cannot
    be upgraded while others write.
    """
    connection = connections[conf.alias()]
    if connection.vendor == "sqlite":
        lock_database(connection)
        return find_row(conversation_id, token_sql=token_sql)
    row = find_row(conversation_id, token_sql=token_sql, clause=_FOR_UPDATE)
    if row is None:
        lock_id(conversation_id)
        row = find_row(conversation_id, token_sql=token_sql, clause=_FOR_UPDATE)
    return row


def lock_database(connection: BaseDatabaseWrapper) -> None:
    """Take SQLite's write lock until the transaction ends, unless that began with it."""
    if getattr(connection, "transaction_mode", None) != "IMMEDIATE":
        # Even an UPDATE that matches nothing takes the write lock, and waits for it.
        with connection.cursor() as cursor:
            cursor.execute("UPDATE conversation_states SET revision = revision WHERE 0")


def token_value(row: ConversationState) -> Any:
    """Return the value of the token_sql that a row was read with."""
    return vars(row)["token_value"]


def lock_id(conversation_id: str) -> None:
    """Take the advisory lock of an id until the transaction ends (PostgreSQL only).

    Raises: StorageUnavailable in a transaction whose snapshot may be older than the lock.
    """
    connection = connections[conf.alias()]
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('transaction_isolation'),"
            f" {fence.shared_sql()}, pg_advisory_xact_lock(%s)",
            [_key_of(conversation_id)],
        )
        isolation = cursor.fetchone()[0]
    if isolation != "read committed":
        raise StorageUnavailable(
            f"The transaction is {isolation}: it would miss writes made while it waited for its"
            " lock. Save in a READ COMMITTED transaction."
        )


def _key_of(conversation_id: str) -> int:
    """Return the key of an id's advisory lock."""
    digest = blake2b(b"conversation:" + conversation_id.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def try_lock(ids: Sequence[str]) -> Sequence[str]:
    """Lock conversations that have no row, except those that another transaction holds.

    Waits for a flip of the switches only, as `lock` does, so it cannot deadlock. The caller looks
    for rows afterwards, in a later statement.

    Returns: those that are locked until the transaction ends; the others need `lock`, one by one.
    """
    connection = connections[conf.alias()]
    if connection.vendor == "sqlite":
        lock_database(connection)
        return ids
    keys = {_key_of(conversation_id): conversation_id for conversation_id in ids}
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT current_setting('transaction_isolation'), {fence.shared_sql()}")
        if cursor.fetchone()[0] != "read committed":
            # `lock` raises the error.
            return ()
        cursor.execute(
            "SELECT key FROM unnest(%s::bigint[]) key WHERE pg_try_advisory_xact_lock(key)",
            [list(keys)],
        )
        locked = {keys[key] for (key,) in cursor.fetchall()}
    return [conversation_id for conversation_id in ids if conversation_id in locked]


def new_among(ids: Sequence[str]) -> Sequence[str]:
    """Return those conversations that have neither a row nor a tombstone."""
    taken: set[str] = set()
    for model in (ConversationState, ConversationTombstone):
        rows: Any = model.rows.using(conf.alias()).filter(conversation_id__in=ids)
        taken.update(rows.values_list("conversation_id", flat=True))
    return [conversation_id for conversation_id in ids if conversation_id not in taken]


def deleted(conversation_id: str) -> bool:
    """Whether a conversation was deleted."""
    with connections[conf.alias()].cursor() as cursor:
        cursor.execute(_TOMBSTONE, [conversation_id])
        return cursor.fetchone() is not None
