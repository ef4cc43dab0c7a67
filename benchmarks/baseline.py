"""The baseline: the same rows by one hand-written statement each, giving equal Python objects.

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

from benchmarks.rows import Row, messages_of, row_of
from conversations.content.changes import OWN_KEYS
from conversations.content.codec import MESSAGE_COLUMNS
from conversations.content.digests import DIGEST_BYTES, EMPTY, roll_on
from conversations.content.document import DEFAULTS, ITEMS, MESSAGES, field_digests, fields_digest
from conversations.content.field_codec import decode_fields, encode_fields
from conversations.state import AgentState

_FIELDS = ("user_input", "focus_areas", "step_count", "last_tool_result", "extra", "state_digest")
# A message's row: the codec's columns, and what stands behind them.
_COLUMNS = (*MESSAGE_COLUMNS, "digest", "timestamp", "key", "key_digest")
_NAMES = ", ".join(_COLUMNS)


class Refused(Exception):
    """The conversation is another owner's, or has another revision by now: load it again."""


@dataclass(slots=True)
class Held:
    """What a program that uses the baseline knows of a conversation after a load or a write."""

    revision: int
    messages_digest: bytes


class Baseline(Protocol):
    """Saves and loads one conversation by hand-written SQL, on the connection of `connect`."""

    @property
    def connect(self) -> Callable[[], Any]:
        """Return the function that gives the DB-API connection."""

    def load(self, key: str, owner: Any) -> tuple[AgentState, Held]:
        """Return a state equal to that of `load_state`, and what a later write needs."""

    def write(
        self,
        key: str,
        owner: Any,
        messages: Sequence[Any],
        held: Held | None = None,
        state: AgentState | None = None,
    ) -> None:
        """Add messages behind the last one, and make the fields those of a state.

        Without `held`, at any revision. Raises: Refused.
        """


def _rows(messages: Sequence[Any], now: datetime) -> list[Row]:
    token = f"{OWN_KEYS}{secrets.token_hex(8)}"
    rows = (row_of(message, now=now) for message in messages)
    # Behind the codec's columns: the digest, then the time.
    return [(*row, f"{token}:{number}", row[-2]) for number, row in enumerate(rows)]


def _fields(state: AgentState | None) -> list[Any]:
    """Return the columns `_FIELDS` of a state without context items; none if there is no state."""
    if state is None:
        return []
    fields = {name: getattr(state, name) for name in DEFAULTS if name not in (ITEMS, MESSAGES)}
    fields |= state.extra
    columns = encode_fields(fields) | {"state_digest": fields_digest(field_digests(fields)) + EMPTY}
    return [columns[name] for name in _FIELDS]


def _state(columns: Sequence[Any], messages: list[Any]) -> AgentState:
    """Return the state of the columns `_FIELDS` but the last."""
    user_input, focus, steps, result, extra = columns
    if extra:
        fields = decode_fields(dict(zip(_FIELDS, columns, strict=False)))
        return AgentState.from_dict({**fields, MESSAGES: messages})
    return AgentState(
        user_input=user_input,
        step_count=steps,
        focus=json.loads(focus),
        conversation_history=messages,
        last_tool_result=json.loads(result),
    )


_TYPES = {"tool_success": "boolean", "timestamp": "timestamptz"} | dict.fromkeys(
    ("digest", "key_digest"), "bytea"
)
_WIDTH = len(MESSAGE_COLUMNS)
# The conversation's own columns first, in the types of the messages', then the messages. Sorting
# the whole once more would cost a tenth of it.
_LOAD = f"""
    SELECT found.* FROM conversation_states s, LATERAL (
        SELECT s.user_input, s.focus_areas, s.step_count::text, NULL, NULL::boolean, NULL,
            s.last_tool_result, s.extra, s.revision, s.messages_digest
        UNION ALL (
            SELECT {", ".join(f"m.{name}" for name in MESSAGE_COLUMNS)}, NULL, NULL
            FROM conversation_messages m
            WHERE m.conversation_id = s.id AND m.superseded_in IS NULL ORDER BY m.sequence
        )
    ) found WHERE s.conversation_id = %s AND s.user_id = %s"""


@cache
def _write_sql(count: int, *, fields: bool, seen: bool) -> str:
    """Return the one statement of a write of `count` messages.

    Where the row was not `seen`, PostgreSQL rolls the digest on, and any revision will do.
    """
    rolled = "%s" if seen else "messages_digest"
    for _ in range(0 if seen else count):
        rolled = f"substring(sha256({rolled} || %s) from 1 for {DIGEST_BYTES})"
    casts = ", ".join(f"%s::{_TYPES.get(name, 'text')}" for name in _COLUMNS)
    marks = ", ".join(["%s"] * len(_COLUMNS))
    values = [f"({casts}, 0)", *(f"({marks}, {place})" for place in range(1, count))]
    return f"""
        WITH bumped AS (
            UPDATE conversation_states SET revision = revision + 1,
                next_sequence = next_sequence + {count}, message_count = message_count + {count},
                messages_digest = {rolled},
                updated_at = %s{"".join(f", {name} = %s" for name in _FIELDS) if fields else ""}
            WHERE conversation_id = %s AND user_id = %s{" AND revision = %s" if seen else ""}
            RETURNING id, revision, next_sequence - {count} AS first
        ), added AS (
            INSERT INTO conversation_messages (conversation_id, sequence, added_in, {_NAMES})
            SELECT bumped.id, bumped.first + place, bumped.revision, {_NAMES}
            FROM bumped, (VALUES {", ".join(values)}) new ({_NAMES}, place)
        ) SELECT revision FROM bumped"""


@dataclass(slots=True)
class PostgresBaseline:
    """One statement a load and a write, prepared, on a psycopg connection."""

    connect: Callable[[], psycopg.Connection[Any]]

    def load(self, key: str, owner: Any) -> tuple[AgentState, Held]:
        cursor = psycopg.Cursor(self.connect())
        cursor.execute(_LOAD, (key, owner), binary=True)
        rows = cursor.fetchall()
        if not rows:
            raise Refused
        user_input, focus, steps, _, _, _, result, extra, revision, digest = rows[0]
        messages = messages_of([row[:_WIDTH] for row in rows[1:]])
        state = _state((user_input, focus, int(steps), result, extra), messages)
        return state, Held(revision, bytes(digest))

    def write(
        self,
        key: str,
        owner: Any,
        messages: Sequence[Any],
        held: Held | None = None,
        state: AgentState | None = None,
    ) -> None:
        now = datetime.now(UTC)
        rows = _rows(messages, now)
        digests = [row[-1] for row in rows]
        rolled = digests if held is None else [roll_on(held.messages_digest, digests)]
        parameters = [*rolled, now, *_fields(state), key, owner]
        parameters += [] if held is None else [held.revision]
        for row in rows:
            parameters += row
        cursor = psycopg.Cursor(self.connect())
        sql = _write_sql(len(rows), fields=state is not None, seen=held is not None)
        cursor.execute(sql, parameters)
        found = cursor.fetchone()
        if found is None:
            raise Refused
        if held is not None:
            held.revision, held.messages_digest = found[0], rolled[0]


_UPDATE = """
    UPDATE conversation_states SET revision = revision + 1, next_sequence = next_sequence + ?,
        message_count = message_count + ?, messages_digest = ?, updated_at = ?{fields}
    WHERE conversation_id = ? AND user_id = ? AND revision = ?
    RETURNING id, revision, next_sequence"""
_APPEND = _UPDATE.format(fields="")
_SAVE = _UPDATE.format(fields="".join(f", {name} = ?" for name in _FIELDS))
_INSERT = f"""
    INSERT INTO conversation_messages (conversation_id, sequence, added_in, {_NAMES})
    VALUES (?, ?, ?, {", ".join("?" * len(_COLUMNS))})"""
_SELECT_STATE = f"""
    SELECT {", ".join(_FIELDS[:-1])}, id, revision, messages_digest
    FROM conversation_states WHERE conversation_id = ? AND user_id = ?"""
_SELECT_HELD = """
    SELECT revision, messages_digest FROM conversation_states WHERE conversation_id = ?"""
_SELECT_MESSAGES = f"""
    SELECT {", ".join(MESSAGE_COLUMNS)} FROM conversation_messages
    WHERE conversation_id = ? AND superseded_in IS NULL ORDER BY sequence"""


@dataclass(slots=True)
class SqliteBaseline:
    """A transaction of two statements a write, two statements a load, on an sqlite3 connection."""

    connect: Callable[[], Any]

    def load(self, key: str, owner: Any) -> tuple[AgentState, Held]:
        plain = self.connect()
        row = plain.execute(_SELECT_STATE, (key, owner)).fetchone()
        if row is None:
            raise Refused
        *columns, pk, revision, digest = row
        messages = messages_of(plain.execute(_SELECT_MESSAGES, (pk,)).fetchall())
        return _state(columns, messages), Held(revision, digest)

    def write(
        self,
        key: str,
        owner: Any,
        messages: Sequence[Any],
        held: Held | None = None,
        state: AgentState | None = None,
    ) -> None:
        now = datetime.now(UTC)
        stamp, rows, fields = _stamp(now), _rows(messages, now), _fields(state)
        count = len(rows)
        plain = self.connect()
        plain.execute("BEGIN IMMEDIATE")
        try:
            if held is None:
                seen = plain.execute(_SELECT_HELD, (key,)).fetchone()
                held = Held(*seen) if seen else Held(0, EMPTY)
            digest = roll_on(held.messages_digest, [row[-1] for row in rows])
            found = plain.execute(
                _SAVE if fields else _APPEND,
                (count, count, digest, stamp, *fields, key, owner, held.revision),
            ).fetchone()
            if found is None:
                raise Refused
            pk, revision, following = found
            plain.executemany(
                _INSERT,
                [
                    (pk, following - count + at, revision, *row[:-3], _stamp(row[-3]), *row[-2:])
                    for at, row in enumerate(rows)
                ],
            )
            plain.execute("COMMIT")
        except BaseException:
            plain.execute("ROLLBACK")
            raise
        held.revision, held.messages_digest = revision, digest


def _stamp(moment: datetime | None) -> str | None:
    return None if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S.%f")


def baseline_here() -> Baseline:
    """Return the baseline on Django's own connection."""
    made = PostgresBaseline if connection.vendor == "postgresql" else SqliteBaseline
    return made(lambda: connection.connection)


@contextmanager
def prepared(*, wanted: bool = True) -> Iterator[None]:
    """Let Django's connection prepare statements at once meanwhile, for the baseline alone."""
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


def parameters() -> dict[str, Any]:
    """Return the parameters of Django's connection as a driver takes them, without Django's own."""
    found = connection.get_connection_params()
    for ours in ("cursor_factory", "context", "prepare_threshold"):
        found.pop(ours, None)
    return found


@contextmanager
def bare_baseline() -> Iterator[Baseline]:
    """Give the baseline on a connection of its own that Django knows nothing of."""
    if connection.vendor == "postgresql":
        with psycopg.connect(**parameters(), autocommit=True, prepare_threshold=0) as bare:
            yield PostgresBaseline(lambda: bare)
        return
    plain = sqlite3.connect(parameters()["database"], timeout=20, isolation_level=None)
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
        plain.execute(f"PRAGMA {pragma}")
    try:
        yield SqliteBaseline(lambda: plain)
    finally:
        plain.close()
