"""An addition in one statement, on PostgreSQL: lock and bump the row, insert the messages."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from conversations.digests import DIGEST_BYTES
from conversations.stores.cursors import executed
from conversations.stores.normalized.adding import (
    Addition,
    Bumped,
    Shape,
    conditions_of,
    parts_of,
    placed,
)
from flags import fence

# Each number of messages has a text of its own; what is more takes the long way.
MOST = 16
_TYPES = {"tool_success": "boolean", "timestamp": "timestamptz", "digest": "bytea"}
# What a column holds where no message of the addition says anything else.
_DEFAULTS = {"extra": "''", "timestamp": "bumped.updated_at"}
# The fence before the row: a flip that waits for it must not wait for a row as well.
_FENCED = f"{fence.shared_sql()} IS NOT NULL"
# An UPDATE that waited for its row sees the newest version of that, and everything else as it was
# before: whoever looks for keys must not have waited.
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
    settled: str = "",
    now: datetime,
) -> Bumped | None:
    """Add messages and give their entries their sequences; None where a condition fails.

    `settled` is an SQL condition over the row: that nobody else has written into legacy.

    Raises: IntegrityError where somebody else added one of the keys at the same moment.
    """
    entries = addition.messages
    if len(entries) > MOST:
        return None
    parts = parts_of(addition, conversation_id, owner=owner, settled=settled, now=now)
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
    found = executed(connection, _statement(parts.shape), parameters).fetchone()
    if found is None:
        return None
    bumped = Bumped(*found)
    placed(entries, bumped)
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
    # Only the first row names the types.
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
    rolled = "%s" if shape.based else "messages_digest"
    for _ in range(0 if shape.based else shape.messages):
        rolled = f"substr(sha256({rolled} || %s), 1, {DIGEST_BYTES})"
    yield f"messages_digest = {rolled}"
