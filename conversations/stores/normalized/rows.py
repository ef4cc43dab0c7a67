"""The row of a conversation, and the changes that one revision makes to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from django.db import connections
from django.db.models import Q, QuerySet

from conversations import conf
from conversations.content.digests import DIGEST_BYTES, EMPTY, Blocks
from conversations.content.document import Document
from conversations.content.entries import Entry
from conversations.content.field_codec import encode_fields
from conversations.content.merge import rebase
from conversations.content.redaction import Redactions
from conversations.models import ConversationRedaction, ConversationState
from conversations.stores.normalized.load import Head

_FIELDS = ConversationState._meta.concrete_fields
_NAMES = [field.attname for field in _FIELDS]
_COLUMNS = ", ".join(f'conversation_states."{field.column}"' for field in _FIELDS)


def find_row(
    conversation_id: str, *, token_sql: str | None = None, clause: str = ""
) -> ConversationState | None:
    """Return the row of a conversation, or None.

    `token_sql` is an SQL expression over it (`LegacyStore.token_sql`); its value becomes the
    attribute `token_value` of the row. `clause` ends the statement, to lock the row.

    This and the other statements of every load and save are written in SQL. Django needs several
    times as long to compile them as a database to answer them.
    """
    alias = conf.alias()
    columns = f"{_COLUMNS}, {token_sql}" if token_sql else _COLUMNS
    sql = f"SELECT {columns} FROM conversation_states WHERE conversation_id = %s {clause}"
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, [conversation_id])
        found = cursor.fetchone()
    return None if found is None else _row_of(found, alias, with_token=token_sql is not None)


def find_rows(ids: Sequence[str], *, token_sql: str | None = None) -> list[ConversationState]:
    """Return the rows of those conversations that have one; see `find_row`."""
    alias = conf.alias()
    columns = f"{_COLUMNS}, {token_sql}" if token_sql else _COLUMNS
    places = ", ".join(["%s"] * len(ids))
    with connections[alias].cursor() as cursor:
        cursor.execute(
            f"SELECT {columns} FROM conversation_states WHERE conversation_id IN ({places})",
            list(ids),
        )
        found = cursor.fetchall()
    return [_row_of(values, alias, with_token=token_sql is not None) for values in found]


def _row_of(found: Sequence[Any], alias: str, *, with_token: bool) -> ConversationState:
    values = list(found[: len(_FIELDS)])
    for place, converters, column in _converters(alias):
        for converter in converters:
            values[place] = converter(values[place], column, connections[alias])
    row = ConversationState.from_db(alias, _NAMES, values)
    if with_token:
        vars(row)["token_value"] = found[-1]
    return row


def replayed(row: ConversationState | Head) -> tuple[str, list[Any]]:
    """Return the condition that a replica holds the row's revision, and its parameters.

    It is part of the statement that reads the content, and shares its snapshot. If the replica is
    behind the row, or ahead of it, the statement returns nothing.
    """
    sql = (
        "EXISTS (SELECT 1 FROM conversation_states replayed WHERE replayed.id = %s"
        " AND replayed.revision = %s AND replayed.messages_digest = %s)"
    )
    return sql, [row.pk, row.revision, bytes(row.messages_digest)]


class RowWithToken(NamedTuple):
    """What a row says of both stores, and the value of `LegacyStore.token_sql` beside it."""

    pk: int
    conversation_id: str
    revision: int
    legacy_revision: int
    legacy_token: str
    token_value: Any


def find_rows_with_token(
    token_sql: str, *, after: int, limit: int, verified: bool = False
) -> list[RowWithToken]:
    """Return rows behind a primary key, by that: all, or those verified since their last write."""
    chosen = "id > %s"
    if verified:
        chosen += " AND verified_revision >= revision AND verified_revision >= legacy_revision"
    return _find_rows_with_token(token_sql, f"{chosen} ORDER BY id LIMIT %s", [after, limit])


def find_rows_with_token_between(
    token_sql: str, *, low: int | None, high: int
) -> list[RowWithToken]:
    """Return all rows behind `low` (None: from the first) up to and including `high`."""
    return _find_rows_with_token(token_sql, "id > %s AND id <= %s ORDER BY id", [low or 0, high])


def find_rows_with_token_of(token_sql: str, ids: Sequence[str]) -> list[RowWithToken]:
    """Return the rows of these ids."""
    places = ", ".join(["%s"] * len(ids))
    return _find_rows_with_token(token_sql, f"conversation_id IN ({places})", ids)


def _find_rows_with_token(
    token_sql: str, where: str, parameters: Sequence[Any]
) -> list[RowWithToken]:
    with connections[conf.alias()].cursor() as cursor:
        cursor.execute(
            f"SELECT id, conversation_id, revision, legacy_revision, legacy_token, {token_sql}"
            f" FROM conversation_states WHERE {where}",
            list(parameters),
        )
        return [RowWithToken._make(found) for found in cursor.fetchall()]


@cache
def _converters(alias: str) -> list[tuple[int, list[Any], Any]]:
    """Return the converters from a database's values to Python's: place, functions, column.

    Django finds them for each query again, but they are the same for all of ours.
    """
    compiler = ConversationState.rows.all().query.get_compiler(using=alias)
    columns = [field.get_col(ConversationState._meta.db_table) for field in _FIELDS]
    found = compiler.get_converters(columns)
    return [(place, converters, column) for place, (converters, column) in found.items()]


def new_row(conversation_id: str, *, now: datetime, **values: Any) -> ConversationState:
    """Return the unsaved row of an empty conversation."""
    document = Document.from_dict({})
    return ConversationState(
        conversation_id=conversation_id,
        messages_digest=EMPTY,
        message_blocks=b"",
        state_digest=document.state_digest,
        created_at=now,
        updated_at=now,
        **encode_fields(document.fields),
        **values,
    )


def owner_of(row: ConversationState) -> str | None:
    """Return the owner's primary key as text: the user's, or the one only legacy knows."""
    return row.legacy_user_id if row.user_id is None else str(row.user_id)


def owned(rows: QuerySet[ConversationState], owner: str) -> QuerySet[ConversationState]:
    """Return the rows of an owner: a user, or one that only legacy knows."""
    return rows.filter(Q(user_id=owner) | Q(user_id=None, legacy_user_id=owner))


def latest_of(
    rows: QuerySet[ConversationState], owner: str, *, limit: int | None
) -> Iterable[ConversationState]:
    """Return the first `limit` of an owner's rows, by latest activity.

    One look-up finds a user, one an owner that only legacy knows. Each is bounded, and in the
    order of its index: one condition for both would read and sort all rows of the owner.
    """
    alias, parameters = rows.db, []
    parts = []
    for mine in (Q(user_id=owner), Q(user_id=None, legacy_user_id=owner)):
        sql, bound = rows.filter(mine)[:limit].query.get_compiler(using=alias).as_sql()
        parts.append(f"SELECT * FROM ({sql}) part")
        parameters += bound
    bounded = "" if limit is None else f" LIMIT {limit:d}"
    sql = f"{' UNION ALL '.join(parts)} ORDER BY updated_at DESC, conversation_id DESC{bounded}"
    return ConversationState.rows.using(alias).raw(sql, parameters)


def replaced(current: Sequence[Entry], wanted: Sequence[Entry]) -> Sequence[Entry]:
    """Return the entries after a list was replaced whole; equal entries stay as they are."""
    return rebase(
        given=[entry.digest for entry in current],
        located=current,
        places=[entry.identity for entry in current],
        wanted=wanted,
        current=current,
    ).entries


def blocks_of(row: ConversationState) -> Blocks:
    """Return the digests of a conversation's messages from its row."""
    closed = row.message_blocks
    digest = bytes(row.messages_digest)
    return Blocks(digest[:DIGEST_BYTES], None if closed is None else bytes(closed))


def redactions_of(row: ConversationState | None) -> Redactions:
    """Return the redactions of a conversation: keyed hash to replacement."""
    if row is None or not row.redaction_count:
        return {}
    query = ConversationRedaction.rows.using(conf.alias()).filter(conversation_id=row.pk)
    return {
        bytes(found): replacement
        for found, replacement in query.values_list("text_hash", "replacement")
    }
