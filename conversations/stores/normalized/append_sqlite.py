"""An addition in three statements: for SQLite, where a writer already holds the lock.

It avoids Django's queries and instances, which take most of a save's time there.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from conversations.content.changes.change import Addition
from conversations.content.digests import DIGEST_BYTES, roll_on
from conversations.stores.normalized.append import (
    Bumped,
    Shape,
    conditions_of,
    parts_of,
    set_sequences,
)
from conversations.stores.sql.cursors import execute

# Older versions of SQLite accept no more than 999 values.
MOST = 64


def append_in_steps(
    connection: BaseDatabaseWrapper,
    conversation_id: str,
    addition: Addition,
    *,
    owner: str | None,
    unchanged: str = "",
    now: datetime,
) -> Bumped | None:
    """Do the same as `append_at_once`, in a transaction that excludes all other writers."""
    entries = addition.messages
    if len(entries) > MOST:
        return None
    parts = parts_of(addition, conversation_id, owner=owner, unchanged=unchanged, now=now)
    shape = parts.shape
    with connection.wrap_database_errors:
        found = execute(connection, _find_sql(shape), parts.conditions).fetchone()
    if found is None:
        return None
    pk, revision, next_sequence, count, items, digest, state_digest = found
    bumped = Bumped(
        revision + 1,
        next_sequence + len(entries),
        count + len(entries),
        items,
        roll_on(bytes(digest), [entry.digest for entry in entries]),
    )
    if shape.changed:
        state_digest = addition.fields_digest + bytes(state_digest)[DIGEST_BYTES:]
    moment = connection.ops.adapt_datetimefield_value(now)
    parameters: list[Any] = [
        bumped.revision,
        moment,
        bumped.next_sequence,
        bumped.message_count,
        bumped.messages_digest,
        state_digest,
        *parts.changed,
        pk,
    ]
    execute(connection, _update_sql(shape.changed), parameters)
    set_sequences(entries, bumped)
    if entries:
        at = shape.given.index("timestamp") if "timestamp" in shape.given else None
        values: list[Any] = []
        for entry, row in zip(entries, parts.rows, strict=True):
            if at is not None and row[at] is not None:
                row[at] = connection.ops.adapt_datetimefield_value(row[at])
            values += [pk, entry.identity, bumped.revision, entry.digest, *row]
            values += [moment] if at is None else []
        execute(connection, _insert_sql(shape), values)
    return bumped


@lru_cache(maxsize=256)
def _find_sql(shape: Shape) -> str:
    return (
        "SELECT id, revision, next_sequence, message_count, context_item_count,"
        " messages_digest, state_digest"
        f" FROM conversation_states WHERE {' AND '.join(conditions_of(shape))}"
    )


@lru_cache(maxsize=64)
def _update_sql(changed: tuple[str, ...]) -> str:
    return (
        "UPDATE conversation_states SET revision = %s, updated_at = %s, next_sequence = %s,"
        " message_count = %s, messages_digest = %s, state_digest = %s"
        f"{''.join(f', {column} = %s' for column in changed)} WHERE id = %s"
    )


@lru_cache(maxsize=256)
def _insert_sql(shape: Shape) -> str:
    names = ["conversation_id", "sequence", "added_in", "key_digest", *shape.given]
    values = ["%s"] * len(names)
    if "timestamp" not in shape.given:
        names.append("timestamp")
        values.append("%s")
    if "extra" not in shape.given:
        names.append("extra")
        values.append("''")
    row = f"({', '.join(values)})"
    return (
        f"INSERT INTO conversation_messages ({', '.join(names)})"
        f" VALUES {', '.join([row] * shape.messages)}"
    )
