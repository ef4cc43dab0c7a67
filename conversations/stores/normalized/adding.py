"""Adding to a conversation in few statements: what is added, and under which conditions.

It does what `NormalizedStore.write` does with a `Change` that only appends, under conditions that
the database checks. Where one does not hold, nothing is changed, and the long way tells why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from conversations.codec import encode_message
from conversations.digests import DIGEST_BYTES
from conversations.fieldcodec import SPEAKING, encode_changed
from conversations.merge import Entry


@dataclass(frozen=True, slots=True)
class At:
    """The state of a row that an addition was computed for; `version` is `messages_digest`."""

    revision: int
    version: bytes
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
    """What the text of a statement depends on: one text for each, so that it can be prepared."""

    messages: int
    # The columns of messages in which one says anything else than its default.
    given: tuple[str, ...]
    # The columns of the conversation that change.
    changed: tuple[str, ...]
    based: bool
    owned: bool
    keys: int
    settled: str


@dataclass(frozen=True, slots=True)
class Parts:
    """The shape of an addition, and the values that go with it."""

    shape: Shape
    changed: list[Any]
    conditions: list[Any]
    # Row by row, in the order of `Shape.given`.
    rows: list[list[Any]]


def parts_of(
    addition: Addition, conversation_id: str, *, owner: str | None, settled: str, now: datetime
) -> Parts:
    """Return what a statement is made of."""
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
        settled,
    )
    values = [[row[name] for name in given] for row in rows]
    return Parts(shape, list(columns.values()), conditions, values)


def _given(rows: Sequence[Mapping[str, Any]], default: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns in which a row holds anything else than the default."""
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
    # Everything older has to be taken in first, or redacted.
    yield "legacy_revision <= revision"
    yield "redaction_count = 0"
    if shape.based:
        yield "revision = %s AND messages_digest = %s"
        yield f"substr(state_digest, 1, {DIGEST_BYTES}) = %s"
    if shape.changed and "extra" not in shape.changed:
        yield _KEPT
    if shape.owned:
        yield f"{_OWNER} = %s"
    if shape.keys:
        # One by one, each has an index.
        for superseded in ("IS NULL", "IS NOT NULL"):
            yield (
                "NOT EXISTS (SELECT 1 FROM conversation_messages known"
                " WHERE known.conversation_id = conversation_states.id"
                f" AND known.superseded_in {superseded}"
                f" AND known.key IN ({', '.join(['%s'] * shape.keys)}))"
            )
    if shape.settled:
        yield shape.settled


def placed(entries: Sequence[Entry], bumped: Bumped) -> None:
    """Give entries the sequences that they got."""
    first = bumped.next_sequence - len(entries)
    for place, entry in enumerate(entries):
        entry.identity, entry.added_in = first + place, bumped.revision
