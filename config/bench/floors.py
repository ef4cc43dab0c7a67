"""The floor: the same rows by one hand-written statement each, giving equal Python objects.

It locks by owner and revision as `save_state` does, keeps order, keys and digests, and does
nothing else: it knows no phases, no legacy, no tombstones, no redactions and no context items,
compares nothing, and gives no state that could be saved by another process.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Protocol

import psycopg
from django.db import connection

from config.bench.rows import Row, messages_of, row_of
from conversations.changes import OWN_KEYS
from conversations.codec import MESSAGE_COLUMNS, decode_fields, encode_fields
from conversations.digests import DIGEST_BYTES, EMPTY, roll
from conversations.documents import DEFAULTS, ITEMS, MESSAGES, field_digests, fields_digest
from conversations.state import AgentState

FIELDS = ("user_input", "focus_areas", "step_count", "last_tool_result", "extra", "state_digest")
# What a message's row holds behind the codec's columns.
BEHIND = ("digest", "timestamp", "key", "key_digest")
_TYPES = {"tool_success": "boolean", "timestamp": "timestamptz"} | dict.fromkeys(
    ("digest", "key_digest"), "bytea"
)


@dataclass(slots=True)
class Held:
    """What a program that uses the floor knows of a conversation after a load or a write."""

    revision: int
    messages_digest: bytes


class Refused(Exception):
    """The conversation is another owner's, or has another revision by now: load it again."""


class Floor(Protocol):
    """Saves and loads one conversation by hand-written SQL, on the connection of `connect`."""

    @property
    def connect(self) -> Callable[[], Any]:
        """Return the function that gives the DB-API connection."""

    def load(self, conversation_id: str, owner: Any) -> tuple[AgentState, Held]:
        """Return a state equal to that of `load_state`, and what a later save needs."""

    def append(self, conversation_id: str, owner: Any, messages: list[Any], held: Held) -> None:
        """Add messages behind the last one. Raises: Refused."""

    def append_unseen(self, conversation_id: str, owner: Any, messages: list[Any]) -> None:
        """Add messages behind the last one, whatever the revision. Raises: Refused."""

    def save(
        self, conversation_id: str, owner: Any, state: AgentState, new: list[Any], held: Held
    ) -> None:
        """Add the messages `new`, and make the fields those of the state. Raises: Refused."""


def _new_rows(messages: list[Any], now: datetime) -> list[Row]:
    token = f"{OWN_KEYS}{secrets.token_hex(8)}"
    rows = (row_of(message, now=now) for message in messages)
    # Behind the codec's columns: the digest, then the time.
    return [(*row, f"{token}:{number}", row[-2]) for number, row in enumerate(rows)]


def _columns(state: AgentState) -> list[Any]:
    """Return the columns `FIELDS` of a state without context items."""
    fields = {name: getattr(state, name) for name in DEFAULTS if name not in (ITEMS, MESSAGES)}
    fields |= state.extra
    columns = encode_fields(fields) | {"state_digest": fields_digest(field_digests(fields)) + EMPTY}
    return [columns[name] for name in FIELDS]


def _state(columns: Sequence[Any], messages: list[Any]) -> AgentState:
    """Return the state of the columns `FIELDS` but the last."""
    user_input, focus, steps, result, extra = columns
    if extra:
        fields = decode_fields(dict(zip(FIELDS, columns, strict=False)))
        return AgentState.from_dict({**fields, MESSAGES: messages})
    return AgentState(
        user_input=user_input,
        step_count=steps,
        focus=json.loads(focus),
        conversation_history=messages,
        last_tool_result=json.loads(result),
    )


@cache
def _write_sql(count: int, *, fields: bool = False, seen: bool = True) -> str:
    """Return the one statement of a write of `count` messages.

    Where the row was not `seen`, PostgreSQL rolls the digest on, and any revision will do.
    """
    rolled = "%s" if seen else "messages_digest"
    for _ in range(0 if seen else count):
        rolled = f"substring(sha256({rolled} || %s) from 1 for {DIGEST_BYTES})"
    columns = (*MESSAGE_COLUMNS, *BEHIND)
    sets = ", ".join(f"{name} = %s" for name in FIELDS) if fields else ""
    casts = ", ".join(f"%s::{_TYPES.get(name, 'text')}" for name in columns)
    first = f"({casts}, 0)"
    others = (f"({', '.join(['%s'] * len(columns))}, {place})" for place in range(1, count))
    return f"""
        WITH bumped AS (
            UPDATE conversation_states SET revision = revision + 1,
                next_sequence = next_sequence + {count}, message_count = message_count + {count},
                messages_digest = {rolled}, updated_at = %s{", " if fields else ""}{sets}
            WHERE conversation_id = %s AND user_id = %s{" AND revision = %s" if seen else ""}
            RETURNING id, revision, next_sequence - {count} AS first
        ), added AS (
            INSERT INTO conversation_messages
                (conversation_id, sequence, added_in, {", ".join(columns)})
            SELECT bumped.id, bumped.first + place, bumped.revision, {", ".join(columns)}
            FROM bumped, (VALUES {", ".join([first, *others])}) new ({", ".join(columns)}, place)
        ) SELECT revision FROM bumped"""


_WIDTH = len(MESSAGE_COLUMNS)
_READ = ", ".join(f"m.{name}" for name in MESSAGE_COLUMNS)
# The conversation's own columns first, in the types of the messages', then the messages. Sorting
# the whole once more would cost a tenth of it.
_LOAD_SQL = f"""
    SELECT found.* FROM conversation_states s, LATERAL (
        SELECT s.user_input, s.focus_areas, s.step_count::text, NULL, NULL::boolean, NULL,
            s.last_tool_result, s.extra, s.revision, s.messages_digest
        UNION ALL (
            SELECT {_READ}, NULL, NULL FROM conversation_messages m
            WHERE m.conversation_id = s.id AND m.superseded_in IS NULL ORDER BY m.sequence
        )
    ) found WHERE s.conversation_id = %s AND s.user_id = %s"""


@dataclass(slots=True)
class PostgresFloor:
    """One statement a load and a write, prepared, on a psycopg connection."""

    connect: Callable[[], psycopg.Connection[Any]]

    def load(self, conversation_id: str, owner: Any) -> tuple[AgentState, Held]:
        cursor = psycopg.Cursor(self.connect())
        cursor.execute(_LOAD_SQL, (conversation_id, owner), binary=True)
        rows = cursor.fetchall()
        if not rows:
            raise Refused
        user_input, focus, steps, _, _, _, result, extra, revision, digest = rows[0]
        messages = messages_of([row[:_WIDTH] for row in rows[1:]])
        state = _state((user_input, focus, int(steps), result, extra), messages)
        return state, Held(revision, bytes(digest))

    def append(self, conversation_id: str, owner: Any, messages: list[Any], held: Held) -> None:
        self._write(conversation_id, owner, messages, held, [])

    def append_unseen(self, conversation_id: str, owner: Any, messages: list[Any]) -> None:
        now = datetime.now(UTC)
        rows = _new_rows(messages, now)
        parameters = [*(row[-1] for row in rows), now, conversation_id, owner]
        for row in rows:
            parameters += row
        cursor = psycopg.Cursor(self.connect())
        cursor.execute(_write_sql(len(rows), seen=False), parameters)
        if cursor.fetchone() is None:
            raise Refused

    def save(
        self, conversation_id: str, owner: Any, state: AgentState, new: list[Any], held: Held
    ) -> None:
        self._write(conversation_id, owner, new, held, _columns(state))

    def _write(
        self, conversation_id: str, owner: Any, messages: list[Any], held: Held, fields: list[Any]
    ) -> None:
        now = datetime.now(UTC)
        rows = _new_rows(messages, now)
        digest = roll(held.messages_digest, [row[-1] for row in rows])
        parameters = [digest, now, *fields, conversation_id, owner, held.revision]
        for row in rows:
            parameters += row
        cursor = psycopg.Cursor(self.connect())
        cursor.execute(_write_sql(len(rows), fields=bool(fields)), parameters)
        found = cursor.fetchone()
        if found is None:
            raise Refused
        held.revision, held.messages_digest = found[0], digest


_UPDATE = """
    UPDATE conversation_states SET revision = revision + 1, next_sequence = next_sequence + ?,
        message_count = message_count + ?, messages_digest = ?, updated_at = ?{fields}
    WHERE conversation_id = ? AND user_id = ? AND revision = ?
    RETURNING id, revision, next_sequence"""
_UPDATE_APPEND = _UPDATE.format(fields="")
_UPDATE_SAVE = _UPDATE.format(fields="".join(f", {name} = ?" for name in FIELDS))
_INSERTED = ("conversation_id", "sequence", "added_in", *MESSAGE_COLUMNS, *BEHIND)
_INSERT = f"""
    INSERT INTO conversation_messages ({", ".join(_INSERTED)})
    VALUES ({", ".join("?" * len(_INSERTED))})"""
_SELECT_STATE = f"""
    SELECT {", ".join(FIELDS[:-1])}, id, revision, messages_digest
    FROM conversation_states WHERE conversation_id = ? AND user_id = ?"""
_SELECT_HELD = """
    SELECT revision, messages_digest FROM conversation_states WHERE conversation_id = ?"""
_SELECT_MESSAGES = f"""
    SELECT {", ".join(MESSAGE_COLUMNS)} FROM conversation_messages
    WHERE conversation_id = ? AND superseded_in IS NULL ORDER BY sequence"""


@dataclass(slots=True)
class SqliteFloor:
    """A transaction of two statements a write, two statements a load, on an sqlite3 connection."""

    connect: Callable[[], Any]

    def load(self, conversation_id: str, owner: Any) -> tuple[AgentState, Held]:
        plain = self.connect()
        row = plain.execute(_SELECT_STATE, (conversation_id, owner)).fetchone()
        if row is None:
            raise Refused
        *columns, pk, revision, digest = row
        messages = messages_of(plain.execute(_SELECT_MESSAGES, (pk,)).fetchall())
        return _state(columns, messages), Held(revision, digest)

    def append(self, conversation_id: str, owner: Any, messages: list[Any], held: Held) -> None:
        self._write(conversation_id, owner, messages, held, _UPDATE_APPEND, [])

    def append_unseen(self, conversation_id: str, owner: Any, messages: list[Any]) -> None:
        self._write(conversation_id, owner, messages, None, _UPDATE_APPEND, [])

    def save(
        self, conversation_id: str, owner: Any, state: AgentState, new: list[Any], held: Held
    ) -> None:
        self._write(conversation_id, owner, new, held, _UPDATE_SAVE, _columns(state))

    def _write(
        self,
        conversation_id: str,
        owner: Any,
        messages: list[Any],
        held: Held | None,
        update: str,
        fields: list[Any],
    ) -> None:
        """Write in one transaction; without `held`, what the row says is read in it."""
        now = datetime.now(UTC)
        stamp = now.strftime("%Y-%m-%d %H:%M:%S.%f")
        rows = _new_rows(messages, now)
        count = len(rows)
        plain = self.connect()
        plain.execute("BEGIN IMMEDIATE")
        try:
            if held is None:
                seen = plain.execute(_SELECT_HELD, (conversation_id,)).fetchone()
                held = Held(*seen) if seen else Held(0, EMPTY)
            digest = roll(held.messages_digest, [row[-1] for row in rows])
            found = plain.execute(
                update,
                (count, count, digest, stamp, *fields, conversation_id, owner, held.revision),
            ).fetchone()
            if found is None:
                raise Refused
            pk, revision, following = found
            plain.executemany(
                _INSERT,
                [
                    _inserted(row, pk, following - count + at, revision, stamp)
                    for at, row in enumerate(rows)
                ],
            )
            plain.execute("COMMIT")
        except BaseException:
            plain.execute("ROLLBACK")
            raise
        held.revision, held.messages_digest = revision, digest


def _inserted(row: Row, pk: int, sequence: int, revision: int, stamp: str) -> Row:
    moment = row[-3]
    if moment is not None:
        stamp = moment.strftime("%Y-%m-%d %H:%M:%S.%f")
    return (pk, sequence, revision, *row[:-3], stamp if moment else None, *row[-2:])


def floor_here() -> Floor:
    """Return the floor on Django's own connection."""
    if connection.vendor == "postgresql":
        return PostgresFloor(lambda: connection.connection)
    return SqliteFloor(lambda: connection.connection)


@contextmanager
def prepared(*, wanted: bool = True) -> Iterator[None]:
    """Let Django's connection prepare statements at once meanwhile, for the floor alone."""
    connection.ensure_connection()
    if connection.vendor != "postgresql" or not wanted:
        yield
        return
    before = connection.connection.prepare_threshold
    connection.connection.prepare_threshold = 0
    try:
        yield
    finally:
        connection.connection.prepare_threshold = before


@contextmanager
def bare_floor() -> Iterator[Floor]:
    """Give the floor on a connection of its own that Django knows nothing of."""
    parameters = connection.get_connection_params()
    if connection.vendor == "postgresql":
        for ours in ("cursor_factory", "context", "prepare_threshold"):
            parameters.pop(ours, None)
        bare = psycopg.connect(**parameters, autocommit=True, prepare_threshold=0)
        with bare:
            yield PostgresFloor(lambda: bare)
        return
    plain = sqlite3.connect(parameters["database"], timeout=20, isolation_level=None)
    plain.execute("PRAGMA journal_mode = WAL")
    plain.execute("PRAGMA synchronous = NORMAL")
    plain.execute("PRAGMA foreign_keys = ON")
    try:
        yield SqliteFloor(lambda: plain)
    finally:
        plain.close()
