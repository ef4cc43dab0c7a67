"""Add to a conversation in few statements: the added values, and the conditions.

It does the same as `NormalizedStore.write` with a `Change` that only appends, under conditions
that the database checks. If one does not hold, nothing is changed, and the longer way finds the
reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from conversations.content.changes.change import Addition
from conversations.content.codec import encode_message
from conversations.content.digests import BLOCK, DIGEST_BYTES
from conversations.content.entries import Entry
from conversations.content.field_codec import SPEAKING, encode_changed


@dataclass(frozen=True, slots=True)
class Bumped:
    """The values of a row after an addition; attributes are named as the model's."""

    revision: int
    next_sequence: int
    message_count: int
    context_item_count: int
    messages_digest: bytes


# The columns of a message that an addition fills.
COLUMNS = (
    "role",
    "content",
    "message_type",
    "tool_name",
    "tool_success",
    "tool_call_id",
    "tool_calls",
    "extra",
    "timestamp",
    "key",
    "digest",
)
_OWNER = "COALESCE(CAST(conversation_states.user_id AS text), conversation_states.legacy_user_id)"
_KEPT = f"substr(extra, 1, {len(SPEAKING[0])}) NOT IN ({', '.join(map(repr, SPEAKING))})"


@dataclass(frozen=True, slots=True)
class Shape:
    """The parameters of a statement's text: one text for each shape, so that it can be prepared."""

    messages: int
    # The columns that differ from their default in any of the messages.
    given: tuple[str, ...]
    # The columns of the conversation that change.
    changed: tuple[str, ...]
    based: bool
    owned: bool
    keys: int
    unchanged: str


@dataclass(frozen=True, slots=True)
class Parts:
    """The shape of an addition, and the values that go with it."""

    shape: Shape
    changed: list[Any]
    conditions: list[Any]
    # Row by row, in the order of `Shape.given`.
    rows: list[list[Any]]


def parts_of(
    addition: Addition,
    conversation_id: str,
    *,
    owner: str | None,
    unchanged: str,
    now: datetime,
) -> Parts:
    """Return the parts of a statement."""
    rows = [
        encode_message(entry.value, now=now) | {"key": entry.key, "digest": entry.digest}
        for entry in addition.messages
    ]
    given = _given(rows, {"extra": "", "timestamp": now})
    columns = encode_changed(addition.fields, addition.changed) if addition.changed else {}
    conditions: list[Any] = [conversation_id]
    at = addition.baseline
    if at is not None:
        conditions += [at.revision, at.version, at.fields_digest]
    if owner is not None:
        conditions.append(owner)
    conditions += [*addition.keys, *addition.keys]
    shape = Shape(
        len(rows),
        given,
        tuple(columns),
        at is not None,
        owner is not None,
        len(addition.keys),
        unchanged,
    )
    values = [[row[name] for name in given] for row in rows]
    return Parts(shape, list(columns.values()), conditions, values)


def _given(rows: Sequence[Mapping[str, Any]], default: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns in which any row differs from the default."""
    given = []
    for name in COLUMNS:
        usual = default.get(name)
        for row in rows:
            if row[name] != usual:
                given.append(name)
                break
    return tuple(given)


def conditions_of(shape: Shape) -> Iterator[str]:
    """Yield the conditions over the conversation's row, for `Parts.conditions`."""
    yield "conversation_id = %s"
    # Older writes of legacy must be ingested first, and redactions applied.
    yield "legacy_revision <= revision"
    yield "redaction_count = 0"
    if shape.messages:
        # A message that fills a block must close its digest, which only the longer way does.
        yield (
            f"(message_blocks IS NULL OR (next_sequence - 1) / {BLOCK}"
            f" = (next_sequence + {shape.messages - 1}) / {BLOCK})"
        )
    if shape.based:
        yield "revision = %s AND messages_digest = %s"
        yield f"substr(state_digest, 1, {DIGEST_BYTES}) = %s"
    if shape.changed and "extra" not in shape.changed:
        yield _KEPT
    if shape.owned:
        yield f"{_OWNER} = %s"
    if shape.keys:
        # Two subqueries, because each has an index.
        for superseded in ("IS NULL", "IS NOT NULL"):
            yield (
                "NOT EXISTS (SELECT 1 FROM conversation_messages known"
                " WHERE known.conversation_id = conversation_states.id"
                f" AND known.superseded_in {superseded}"
                f" AND known.key IN ({', '.join(['%s'] * shape.keys)}))"
            )
    if shape.unchanged:
        yield shape.unchanged


def set_sequences(entries: Sequence[Entry], bumped: Bumped) -> None:
    """Give added entries their sequences and their revision, in place."""
    first = bumped.next_sequence - len(entries)
    for place, entry in enumerate(entries):
        entry.identity, entry.added_in = first + place, bumped.revision
