"""A load in one statement: the conversation's row, and its current messages behind it.

One statement sees one moment, so no write can come between the row and its messages.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db.backends.base.base import BaseDatabaseWrapper

from conversations.content.codec import MESSAGE_COLUMNS, decode_messages
from conversations.content.digests import split
from conversations.content.entries import Given
from conversations.stores.sql.cursors import execute

# How many rows are decoded at once.
BATCH = 100
_SEQUENCE, _DIGEST = itemgetter(len(MESSAGE_COLUMNS)), itemgetter(len(MESSAGE_COLUMNS) + 1)

# The first row is the conversation's. Its texts stand in the columns of MESSAGE_COLUMNS. Columns
# of their own would be null in every other row, and cost as much as a small message.
_HEAD = """
    COALESCE(CAST(conversation_states.user_id AS text), conversation_states.legacy_user_id) AS role,
    conversation_states.user_input,
    conversation_states.legacy_token,
    conversation_states.focus_areas,
    conversation_states.user_id IS NOT NULL,
    {numbers},
    conversation_states.last_tool_result,
    conversation_states.extra"""
_NUMBERS = [
    f"conversation_states.{name}"
    for name in (
        "id",
        "revision",
        "legacy_revision",
        "message_count",
        "context_item_count",
        "context_items_revision",
        "step_count",
    )
]
_FIRST, _LAST = 0, 2**63 - 1


@dataclass(slots=True)
class Head:
    """The values of a conversation's row that a load needs; attributes are named as the model's."""

    owner: str | None
    legacy_token: str
    pk: int
    revision: int
    legacy_revision: int
    message_count: int
    context_item_count: int
    context_items_revision: int
    messages_digest: bytes
    columns: dict[str, Any]
    # The values that the statement read beside the row.
    beside: Sequence[Any] = ()

    def holds_as_much_as(self, other: Head) -> bool:
        """Whether two rows of one database have the same messages and items behind them."""
        mine, theirs = ((head.pk, head.revision, head.messages_digest) for head in (self, other))
        return mine == theirs


def load_at_once(
    connection: BaseDatabaseWrapper,
    conversation_id: str,
    *,
    last: int | None = None,
    beside: tuple[str, ...] = (),
) -> tuple[Head, Given] | None:
    """Return a conversation's row and its current messages in order (the `last`), or None.

    `beside` are SQL expressions over the row, see `LegacyStore.token_sql`.
    """
    vendor = connection.vendor
    sql = _statement(vendor, newest=last is not None, beside=beside)
    cursor = execute(connection, sql, _parameters(vendor, conversation_id, last))
    # Arrays and bytes, because separate objects would need as much memory as short messages.
    sequences, digests, values = array("q"), bytearray(), list[Any]()
    with connection.wrap_database_errors:
        batch = cursor.fetchmany(BATCH)
        if not batch:
            return None
        first, full, batch = batch[0], len(batch), batch[1:]
        while batch:
            sequences.extend(map(_SEQUENCE, batch))
            digests += b"".join(map(_DIGEST, batch))
            values += decode_messages(batch)
            batch = cursor.fetchmany(BATCH) if full == BATCH else []
            full = len(batch)
    return _head(first), _ascending(Given(sequences, bytes(digests), values))


def load_row_at_once(
    connection: BaseDatabaseWrapper, conversation_id: str, *, beside: tuple[str, ...] = ()
) -> Head | None:
    """Return a conversation's row alone, or None; see `load_at_once`."""
    sql = _row_statement(connection.vendor, beside=beside)
    cursor = execute(connection, sql, [conversation_id])
    with connection.wrap_database_errors:
        row = cursor.fetchone()
    return None if row is None else _head(row)


@dataclass(frozen=True, slots=True)
class Standing:
    """The tables' knowledge of a conversation, without its content."""

    owner: str | None
    deleted: bool


def load_owner(connection: BaseDatabaseWrapper, conversation_id: str) -> Standing | None:
    """Return a conversation's owner, or that it was deleted; None if the tables do not know it."""
    cursor = execute(connection, _OWNER, [conversation_id, conversation_id])
    with connection.wrap_database_errors:
        row = cursor.fetchone()
    if row is None:
        return None
    owner, is_user, deleted = row
    return Standing(_key(settings.AUTH_USER_MODEL, owner) if is_user else owner, bool(deleted))


_OWNER = (
    "SELECT COALESCE(CAST(user_id AS text), legacy_user_id), user_id IS NOT NULL, FALSE"
    " FROM conversation_states WHERE conversation_id = %s"
    " UNION ALL SELECT NULL, FALSE, TRUE"
    " FROM conversation_tombstones WHERE conversation_id = %s"
)


def _ascending(given: Given) -> Given:
    """Return messages by sequence; most are in that order already, or in its reverse."""
    places = list(given.identities)
    if places == sorted(places):
        return given
    order = sorted(range(len(places)), key=places.__getitem__)
    digests = split(given.digests)
    return Given(
        array("q", [places[at] for at in order]),
        b"".join([digests[at] for at in order]),
        [given.values[at] for at in order],
    )


def _head_of(vendor: str, *, sequence: int, beside: tuple[str, ...]) -> str:
    """Return the SQL of the first row: the conversation's."""
    numbers = " || ' ' || ".join(_NUMBERS)
    if vendor == "postgresql":
        # A chain of operators costs a fifth of a load that is not prepared.
        numbers = f"concat_ws(' ', {', '.join(_NUMBERS)})"
    head = _HEAD.format(numbers=numbers)
    head += f", CAST({sequence} AS bigint) AS sequence"
    head += ", conversation_states.messages_digest AS digest"
    return ", ".join((head, *beside))


@lru_cache(maxsize=32)
def _row_statement(vendor: str, *, beside: tuple[str, ...]) -> str:
    head = _head_of(vendor, sequence=_FIRST, beside=beside)
    return f"SELECT {head} FROM conversation_states WHERE conversation_id = %s"


@lru_cache(maxsize=32)
def _statement(vendor: str, *, newest: bool, beside: tuple[str, ...]) -> str:
    head = _head_of(vendor, sequence=_LAST if newest else _FIRST, beside=beside)
    columns = ", ".join((*MESSAGE_COLUMNS, "sequence", "digest", *["NULL"] * len(beside)))
    order = "ORDER BY sequence DESC LIMIT %s" if newest else "ORDER BY sequence"
    messages = f"SELECT {columns} FROM conversation_messages WHERE superseded_in IS NULL"
    # With ORDER BY outside, either would sort everything; `_ascending` checks the order of rows.
    if vendor == "sqlite":
        found = "(SELECT id FROM conversation_states WHERE conversation_id = %s)"
        return (
            f"SELECT {head} FROM conversation_states WHERE conversation_id = %s"
            f" UNION ALL SELECT * FROM ({messages} AND conversation_id = {found} {order})"
        )
    return (
        "SELECT found.* FROM conversation_states, LATERAL ("
        f"SELECT {head} UNION ALL"
        f" ({messages} AND conversation_id = conversation_states.id {order})) found"
        " WHERE conversation_states.conversation_id = %s"
    )


def _parameters(vendor: str, conversation_id: str, last: int | None) -> list[Any]:
    if vendor == "sqlite":
        return [conversation_id, conversation_id, *([] if last is None else [last])]
    return [*([] if last is None else [last]), conversation_id]


def _head(row: Sequence[Any]) -> Head:
    owner, user_input, token, focus_areas, is_user, numbers, result, extra, _, digest, *beside = row
    pk, revision, legacy_revision, messages, items, items_revision, step_count = map(
        int, numbers.split(" ")
    )
    if is_user:
        owner = _key(settings.AUTH_USER_MODEL, owner)
    return Head(
        owner=owner,
        legacy_token=token,
        pk=pk,
        revision=revision,
        legacy_revision=legacy_revision,
        message_count=messages,
        context_item_count=items,
        context_items_revision=items_revision,
        messages_digest=bytes(digest),
        columns={
            "user_input": user_input,
            "focus_areas": focus_areas,
            "step_count": step_count,
            "last_tool_result": result,
            "extra": extra,
        },
        beside=beside,
    )


@lru_cache(maxsize=1024)
def _key(model: str, text: str) -> str:
    """Return a user's primary key as Python writes it, from the database's text."""
    return str(get_user_model()._meta.pk.to_python(text))
