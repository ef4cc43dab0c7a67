"""The floor on PostgreSQL: one statement a load and a write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import psycopg

from config.bench.floors.shared import (
    BEHIND,
    FIELDS,
    Held,
    Refused,
    columns_of,
    new_rows,
    state_of,
)
from config.bench.rows import messages_of
from conversations.codec import MESSAGE_COLUMNS
from conversations.digests import DIGEST_BYTES, roll
from conversations.state import AgentState

_TYPES = {"tool_success": "boolean", "timestamp": "timestamptz"} | dict.fromkeys(
    ("digest", "key_digest"), "bytea"
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
        state = state_of((user_input, focus, int(steps), result, extra), messages)
        return state, Held(revision, bytes(digest))

    def append(self, conversation_id: str, owner: Any, messages: list[Any], held: Held) -> None:
        self._write(conversation_id, owner, messages, held, [])

    def append_unseen(self, conversation_id: str, owner: Any, messages: list[Any]) -> None:
        now = datetime.now(UTC)
        rows = new_rows(messages, now)
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
        self._write(conversation_id, owner, new, held, columns_of(state))

    def _write(
        self, conversation_id: str, owner: Any, messages: list[Any], held: Held, fields: list[Any]
    ) -> None:
        now = datetime.now(UTC)
        rows = new_rows(messages, now)
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
