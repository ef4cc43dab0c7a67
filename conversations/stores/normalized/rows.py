"""The row of a conversation, and what one revision changes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

from django.db import connections
from django.db.models import Q, QuerySet

from conversations import conf
from conversations.digests import EMPTY
from conversations.documents import Document
from conversations.fieldcodec import encode_fields
from conversations.merge import Entry, rebase
from conversations.models import ConversationState
from conversations.stores.normalized.loading import Head

_FIELDS = ConversationState._meta.concrete_fields
_NAMES = [field.attname for field in _FIELDS]
_COLUMNS = ", ".join(f'conversation_states."{field.column}"' for field in _FIELDS)


def found_row(
    conversation_id: str, *, probe: str | None = None, clause: str = ""
) -> ConversationState | None:
    """Return the row of a conversation, or None.

    `probe` is an SQL expression over it, see `LegacyStore.probe`; its value becomes the row's
    attribute `probed`. `clause` ends the statement, to lock the row.

    This and the other statements of every load and save are spelled in SQL: compiling them
    takes Django several times as long as a database takes to answer them.
    """
    alias = conf.alias()
    columns = f"{_COLUMNS}, {probe}" if probe else _COLUMNS
    sql = f"SELECT {columns} FROM conversation_states WHERE conversation_id = %s {clause}"
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, [conversation_id])
        found = cursor.fetchone()
    if found is None:
        return None
    values = list(found[: len(_FIELDS)])
    for place, converters, column in _converters(alias):
        for converter in converters:
            values[place] = converter(values[place], column, connections[alias])
    row = ConversationState.from_db(alias, _NAMES, values)
    if probe:
        vars(row)["probed"] = found[-1]
    return row


def replayed(row: ConversationState | Head) -> tuple[str, list[Any]]:
    """Return the condition that a replica holds what the primary's row says, and its parameters.

    It stands in the statement that reads the content, whose snapshot it shares: where the
    replica is behind, or ahead of the row by now, the statement gives nothing.
    """
    sql = (
        "EXISTS (SELECT 1 FROM conversation_states replayed WHERE replayed.id = %s"
        " AND replayed.revision = %s AND replayed.messages_digest = %s)"
    )
    return sql, [row.pk, row.revision, bytes(row.messages_digest)]


def probed_rows(probe: str, *, after: int, limit: int) -> list[tuple[int, str, str, Any]]:
    """Return primary key, id, legacy token and probe of verified rows, by primary key."""
    with connections[conf.alias()].cursor() as cursor:
        cursor.execute(
            f"SELECT id, conversation_id, legacy_token, {probe} FROM conversation_states"
            " WHERE id > %s AND verified_revision >= revision"
            " AND verified_revision >= legacy_revision ORDER BY id LIMIT %s",
            [after, limit],
        )
        found: list[tuple[int, str, str, Any]] = cursor.fetchall()
    return found


def probed_between(probe: str, *, low: int | None, high: int) -> list[tuple[int, str, str, Any]]:
    """Return the same of all rows behind `low` (None: the first) up to and including `high`."""
    with connections[conf.alias()].cursor() as cursor:
        cursor.execute(
            f"SELECT id, conversation_id, legacy_token, {probe} FROM conversation_states"
            " WHERE id > %s AND id <= %s ORDER BY id",
            [low or 0, high],
        )
        found: list[tuple[int, str, str, Any]] = cursor.fetchall()
    return found


def probed_named(probe: str, ids: Sequence[str]) -> list[tuple[str, int, int, str, Any]]:
    """Return id, revision, legacy revision, legacy token and probe of the rows of these ids."""
    places = ", ".join(["%s"] * len(ids))
    with connections[conf.alias()].cursor() as cursor:
        cursor.execute(
            f"SELECT conversation_id, revision, legacy_revision, legacy_token, {probe}"
            f" FROM conversation_states WHERE conversation_id IN ({places})",
            list(ids),
        )
        found: list[tuple[str, int, int, str, Any]] = cursor.fetchall()
    return found


@cache
def _converters(alias: str) -> list[tuple[int, list[Any], Any]]:
    """Return what turns a database's values into Python's: place, functions, column.

    What Django finds out for each query is the same for all of ours.
    """
    compiler = ConversationState.rows.all().query.get_compiler(using=alias)
    columns = [field.get_col(ConversationState._meta.db_table) for field in _FIELDS]
    found = compiler.get_converters(columns)
    return [(place, converters, column) for place, (converters, column) in found.items()]


@dataclass(slots=True)
class Change:
    """What one revision changes. None means: that part stays as it is.

    `appended` is for changes that only add messages behind the last; `messages` is the pair of
    entries before and after; `items` the same for context items.
    """

    fields: Mapping[str, Any] | None = None
    appended: Sequence[Entry] = ()
    messages: tuple[Sequence[Entry], Sequence[Entry]] | None = None
    items: tuple[Sequence[Entry], Sequence[Entry]] | None = None
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def nothing(self) -> bool:
        """Whether nothing changes."""
        return (
            self.fields is None
            and not self.appended
            and self.messages is None
            and self.items is None
            and not self.columns
        )


def new_row(conversation_id: str, *, now: datetime, **values: Any) -> ConversationState:
    """Return the unsaved row of an empty conversation."""
    document = Document.from_dict({})
    return ConversationState(
        conversation_id=conversation_id,
        messages_digest=EMPTY,
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
    """Return the first `limit` of those rows that are an owner's, by latest activity.

    One look-up for a user, one for an owner that only legacy knows, each in the order of its
    index and bounded: one condition for both would read and sort everything that is theirs.
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
    """Return the entries after a list was replaced whole: what is equal stays as it is."""
    return rebase(
        given=[entry.digest for entry in current],
        located=current,
        places=[entry.identity for entry in current],
        wanted=wanted,
        current=current,
    ).entries
