"""An append in one statement, on PostgreSQL: lock and bump the row, insert the messages behind.

It does what `NormalizedStore.write` does with a `Change` that only appends, under conditions that
the database checks. Where one does not hold, nothing is changed, and the long way tells why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

from conversations.codec import SPEAKING, encode_changed, encode_message
from conversations.digests import DIGEST_BYTES
from conversations.merge import Entry
from conversations.stores.cursors import bound_cursor
from flags import fence

# Each number of messages has a text of its own; what is more takes the long way.
MOST = 16


@dataclass(frozen=True, slots=True)
class At:
    """The state of a row that an addition was computed for; `version` is `messages_digest`."""

    revision: int
    version: str
    fields_digest: bytes


@dataclass(frozen=True, slots=True)
class Addition:
    """Messages behind the last one, and new values of the fields that `changed`.

    With `baseline` it holds for that state of the conversation alone, and `rolled` is the digest
    of all messages afterwards. `keys` are the caller's own, which no earlier message may have.
    """

    messages: Sequence[Entry]
    rolled: bytes | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    changed: frozenset[str] = frozenset()
    fields_digest: bytes = b""
    baseline: At | None = None
    keys: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Bumped:
    """What a row says after an addition; attributes are named as the model's."""

    revision: int
    next_sequence: int
    message_count: int
    context_item_count: int
    messages_digest: bytes


# The columns of a message that an addition fills, and their types.
_TYPES = {
    "role": "text",
    "content": "text",
    "message_type": "text",
    "tool_name": "text",
    "tool_success": "boolean",
    "tool_call_id": "text",
    "tool_calls": "text",
    "extra": "text",
    "timestamp": "timestamptz",
    "key": "text",
    "digest": "bytea",
}
# What a column holds where no message of the addition says anything else.
_DEFAULTS = {"extra": "''", "timestamp": "bumped.updated_at"}
_OWNER = "COALESCE(CAST(conversation_states.user_id AS text), conversation_states.legacy_user_id)"
# An UPDATE that waited for its row sees the newest version of that, and everything else as it was
# before: whoever looks for keys must not have waited.
_UNMOVED = (
    "revision = (SELECT seen.revision FROM conversation_states seen"
    " WHERE seen.id = conversation_states.id)"
)
_KEPT = f"substring(extra from 1 for {len(SPEAKING[0])}) NOT IN ({', '.join(map(repr, SPEAKING))})"


def append_at_once(
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
    entries, baseline = addition.messages, addition.baseline
    if len(entries) > MOST:
        return None
    rows = [
        encode_message(entry.value, now=now) | {"key": entry.key, "digest": entry.digest}
        for entry in entries
    ]
    default = {"extra": "", "timestamp": now}
    given = tuple(name for name in _TYPES if any(row[name] != default.get(name) for row in rows))
    columns = encode_changed(addition.fields, addition.changed) if addition.changed else {}
    parameters: list[Any] = [now, *columns.values()]
    if columns:
        parameters.append(addition.fields_digest)
    if baseline is None:
        parameters += [entry.digest for entry in entries]
    elif entries:
        parameters.append(addition.rolled)
    parameters.append(conversation_id)
    if baseline is not None:
        parameters += [
            baseline.revision,
            bytes.fromhex(baseline.version),
            baseline.fields_digest,
        ]
    if owner is not None:
        parameters.append(owner)
    parameters += [*addition.keys, *addition.keys]
    parameters += [row[name] for row in rows for name in given]
    sql = _statement(
        len(entries),
        given,
        tuple(columns),
        based=baseline is not None,
        owned=owner is not None,
        keys=len(addition.keys),
        settled=settled,
    )
    with bound_cursor() as cursor:
        cursor.execute(sql, parameters)
        found = cursor.fetchone()
    if found is None:
        return None
    bumped = Bumped(*found)
    first = bumped.next_sequence - len(entries)
    for place, entry in enumerate(entries):
        entry.identity, entry.added_in = first + place, bumped.revision
    return bumped


@lru_cache(maxsize=256)
def _statement(
    count: int,
    given: tuple[str, ...],
    columns: tuple[str, ...],
    *,
    based: bool,
    owned: bool,
    keys: int,
    settled: str,
) -> str:
    changes = ", ".join(_changes(count, columns, based=based))
    conditions = " AND ".join(_conditions(columns, based=based, owned=owned, keys=keys))
    update = f"UPDATE conversation_states SET {changes} WHERE {conditions}"
    if settled:
        update += f" AND {settled}"
    update += " RETURNING revision, next_sequence, message_count, context_item_count"
    update += ", messages_digest"
    if not count:
        return update
    # Only the first row names the types.
    typed = "".join(f", %s::{_TYPES[name]}" for name in given)
    plain = ", %s" * len(given)
    rows = ", ".join(f"({place}{typed if not place else plain})" for place in range(count))
    names = "".join(f", {name}" for name in given)
    absent = "".join(f", {name}" for name in _DEFAULTS if name not in given)
    defaults = "".join(f", {value}" for name, value in _DEFAULTS.items() if name not in given)
    return (
        f"WITH bumped AS ({update}, id, updated_at), added AS ("
        " INSERT INTO conversation_messages"
        f" (conversation_id, sequence, added_in, key_digest{names}{absent})"
        f" SELECT bumped.id, next_sequence - {count} + place, revision, digest{names}{defaults}"
        f" FROM bumped, (VALUES {rows}) messages (place{names})"
        ") SELECT revision, next_sequence, message_count, context_item_count, messages_digest"
        " FROM bumped"
    )


def _changes(count: int, columns: tuple[str, ...], *, based: bool) -> Iterator[str]:
    yield "revision = revision + 1"
    yield "updated_at = %s"
    yield from (f"{column} = %s" for column in columns)
    if columns:
        yield f"state_digest = %s || substring(state_digest from {DIGEST_BYTES + 1})"
    if count:
        yield f"next_sequence = next_sequence + {count}"
        yield f"message_count = message_count + {count}"
        rolled = "messages_digest"
        for _ in range(count):
            rolled = f"substring(sha256({rolled} || %s) from 1 for {DIGEST_BYTES})"
        yield f"messages_digest = {'%s' if based else rolled}"


def _conditions(columns: tuple[str, ...], *, based: bool, owned: bool, keys: int) -> Iterator[str]:
    yield "conversation_id = %s"
    # Everything older has to be taken in first, or redacted.
    yield "legacy_revision <= revision"
    yield "redaction_count = 0"
    # Before the row: a flip that waits for it must not wait for a row as well.
    yield f"{fence.shared_sql()} IS NOT NULL"
    if based:
        yield "revision = %s AND messages_digest = %s"
        yield f"substring(state_digest from 1 for {DIGEST_BYTES}) = %s"
    if columns and "extra" not in columns:
        yield _KEPT
    if owned:
        yield f"{_OWNER} = %s"
    if keys:
        yield _UNMOVED
        for superseded in ("IS NULL", "IS NOT NULL"):
            yield (
                "NOT EXISTS (SELECT 1 FROM conversation_messages known"
                " WHERE known.conversation_id = conversation_states.id"
                f" AND known.superseded_in {superseded}"
                f" AND known.key IN ({', '.join(['%s'] * keys)}))"
            )
