"""The floor on SQLite: two statements a load, and a transaction of two a write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from config.bench.floors.shared import (
    BEHIND,
    FIELDS,
    Held,
    Refused,
    columns_of,
    new_rows,
    state_of,
)
from config.bench.rows import Row, messages_of
from conversations.codec import MESSAGE_COLUMNS
from conversations.digests import EMPTY, roll
from conversations.state import AgentState

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
        return state_of(columns, messages), Held(revision, digest)

    def append(self, conversation_id: str, owner: Any, messages: list[Any], held: Held) -> None:
        self._write(conversation_id, owner, messages, held, _UPDATE_APPEND, [])

    def append_unseen(self, conversation_id: str, owner: Any, messages: list[Any]) -> None:
        self._write(conversation_id, owner, messages, None, _UPDATE_APPEND, [])

    def save(
        self, conversation_id: str, owner: Any, state: AgentState, new: list[Any], held: Held
    ) -> None:
        self._write(conversation_id, owner, new, held, _UPDATE_SAVE, columns_of(state))

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
        rows = new_rows(messages, now)
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
