"""An addition in one statement, on PostgreSQL: lock and bump the row, insert the messages."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from conversations.content.changes.change import Addition
from conversations.content.digests import DIGEST_BYTES
from conversations.stores.normalized.append import (
    Bumped,
    Shape,
    conditions_of,
    parts_of,
    set_sequences,
)
from conversations.stores.sql.cursors import execute
from flags import fence

# Each number of messages has its own statement text; more messages take the longer way.
MOST = 16
_TYPES = {"tool_success": "boolean", "timestamp": "timestamptz", "digest": "bytea"}
# The value of a column that no message of the addition fills.
_DEFAULTS = {"extra": "''", "timestamp": "bumped.updated_at"}
# The fence comes before the row: a flip that waits for the fence must not wait for a row too.
_FENCED = f"{fence.shared_sql()} IS NOT NULL"
# After waiting for the row lock, subqueries still use the old snapshot. The check of the keys
# would be stale, so give up if the revision moved.
_UNMOVED = (
    "revision = (SELECT seen.revision FROM conversation_states seen"
    " WHERE seen.id = conversation_states.id)"
)


def append_at_once(
    connection: BaseDatabaseWrapper,
    conversation_id: str,
    addition: Addition,
    *,
    owner: str | None,
    unchanged: str = "",
    now: datetime,
) -> Bumped | None:
    """Add messages and give their entries their sequences; None if a condition fails.

    `unchanged` is an SQL condition over the row: no other code has written to legacy.

    Raises: IntegrityError if another transaction added one of the keys at the same moment.
    """
    entries = addition.messages
    if len(entries) > MOST:
        return None
    parts = parts_of(addition, conversation_id, owner=owner, unchanged=unchanged, now=now)
    parameters: list[Any] = [now, *parts.changed]
    if parts.changed:
        parameters.append(addition.fields_digest)
    if addition.baseline is None:
        parameters += [entry.digest for entry in entries]
    elif entries:
        parameters.append(addition.rolled)
    parameters += parts.conditions
    for row in parts.rows:
        parameters += row
    found = execute(connection, _statement(parts.shape), parameters, may_fail=True).fetchone()
    if found is None:
        return None
    bumped = Bumped(*found)
    set_sequences(entries, bumped)
    return bumped


@lru_cache(maxsize=256)
def _statement(shape: Shape) -> str:
    conditions = [*conditions_of(shape), _FENCED, *([_UNMOVED] if shape.keys else [])]
    update = (
        f"UPDATE conversation_states SET {', '.join(_changes(shape))}"
        f" WHERE {' AND '.join(conditions)}"
        " RETURNING revision, next_sequence, message_count, context_item_count, messages_digest"
    )
    count, given = shape.messages, shape.given
    if not count:
        return update
    # Only the first row states the types.
    typed = "".join(f", %s::{_TYPES.get(name, 'text')}" for name in given)
    plain = ", %s" * len(given)
    rows = ", ".join(f"({place}{plain if place else typed})" for place in range(count))
    names = "".join(f", {name}" for name in given)
    absent = "".join(f", {name}" for name in _DEFAULTS if name not in given)
    defaults = "".join(f", {value}" for name, value in _DEFAULTS.items() if name not in given)
    return (
        f"WITH bumped AS ({update}, id, updated_at), added AS ("
        "INSERT INTO conversation_messages"
        f" (conversation_id, sequence, added_in, key_digest{names}{absent})"
        f" SELECT bumped.id, next_sequence - {count} + place, revision, digest{names}{defaults}"
        f" FROM bumped, (VALUES {rows}) messages (place{names})"
        ") SELECT revision, next_sequence, message_count, context_item_count, messages_digest"
        " FROM bumped"
    )


def _changes(shape: Shape) -> Iterator[str]:
    yield "revision = revision + 1"
    yield "updated_at = %s"
    yield from (f"{column} = %s" for column in shape.changed)
    if shape.changed:
        yield f"state_digest = %s || substr(state_digest, {DIGEST_BYTES + 1})"
    if not shape.messages:
        return
    yield f"next_sequence = next_sequence + {shape.messages}"
    yield f"message_count = message_count + {shape.messages}"
    rolled = "%s"
    if not shape.based:
        rolled = f"substr(messages_digest, 1, {DIGEST_BYTES})"
        for _ in range(shape.messages):
            rolled = f"substr(sha256({rolled} || %s), 1, {DIGEST_BYTES})"
        rolled = f"{rolled} || substr(messages_digest, {DIGEST_BYTES + 1})"
    yield f"messages_digest = {rolled}"
