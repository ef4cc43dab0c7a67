"""The legacy tables as SQL, and old code's statements against them, word for word.

Source: docs/design.md, section 5. Old code knows nothing of ours: every function takes a plain
DB-API connection (sqlite3, psycopg) or a Django one, and commits each statement on its own.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

TABLES = {
    "postgresql": (
        "CREATE TABLE memory_chunks (id serial PRIMARY KEY,"
        " user_id integer NULL REFERENCES {users} ON DELETE CASCADE,"
        " content text, embedding json NULL, created_at timestamp with time zone)",
        "CREATE TABLE memory_metadata (id serial PRIMARY KEY,"
        " chunk_id integer REFERENCES memory_chunks, key varchar, value varchar)",
    ),
    "sqlite": (
        "CREATE TABLE memory_chunks (id integer PRIMARY KEY,"
        " user_id integer NULL REFERENCES {users} ON DELETE CASCADE,"
        " content text, embedding json NULL, created_at timestamp with time zone)",
        "CREATE TABLE memory_metadata (id integer PRIMARY KEY,"
        " chunk_id integer REFERENCES memory_chunks, key varchar, value varchar)",
    ),
}
# What a host may have built for old code's loads.
INDEXES = (
    "CREATE INDEX ix_memory_chunks_user_id ON memory_chunks (user_id)",
    "CREATE INDEX ix_memory_metadata_chunk_id ON memory_metadata (chunk_id, key)",
)
# Old code keeps the newest entries of these lists, before each save.
PRUNED_LISTS = ("conversation_history", "memory_context")
KEPT_ENTRIES = 20

_INSERT_CHUNK = (
    "INSERT INTO memory_chunks (user_id, content, created_at) VALUES (%s, %s, %s) RETURNING id"
)
_INSERT_METADATA = "INSERT INTO memory_metadata (chunk_id, key, value) VALUES (%s, %s, %s)"
_NEWEST_STATE = """
    SELECT c.content FROM memory_chunks c
    JOIN memory_metadata named ON named.chunk_id = c.id
        AND named.key = 'conversation_id' AND named.value = %s
    JOIN memory_metadata typed ON typed.chunk_id = c.id
        AND typed.key = 'type' AND typed.value = 'state'
    ORDER BY c.created_at DESC LIMIT 1
"""


def create_legacy_tables(
    connection: Any, *, users: str = "auth_user", indexed: bool = False
) -> None:
    """Create the legacy tables, whose owners are rows of the table `users`."""
    for statement in (*TABLES[vendor_of(connection)], *(INDEXES if indexed else ())):
        execute(connection, statement.format(users=users))


def old_save(
    connection: Any,
    conversation_id: str,
    user_id: Any,
    state: Mapping[str, Any],
    created_at: datetime | None = None,
    *,
    keep: int | None = KEPT_ENTRIES,
) -> int:
    """Save a state as old code does: a chunk, then eight metadata rows, nine commits.

    `keep` is how many entries of each list old code keeps; None keeps all of them.

    Returns: the id of the chunk.
    """
    now = created_at or datetime.now(UTC)
    kept = {
        name: value[-keep:] if keep and name in PRUNED_LISTS else value
        for name, value in state.items()
    }
    stamp: Any = now
    if vendor_of(connection) == "sqlite":
        stamp = now.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    [(chunk_id,)] = execute(connection, _INSERT_CHUNK, [user_id, json.dumps(kept), stamp])

    def length(of: Mapping[str, Any], name: str) -> str:
        return str(len(of.get(name) or ()))

    rows = {
        "conversation_id": conversation_id,
        "type": "state",
        "last_updated": now.isoformat(),
        "optimization_applied": "true",
        "original_conversation_length": length(state, "conversation_history"),
        "optimized_conversation_length": length(kept, "conversation_history"),
        "original_context_length": length(state, "memory_context"),
        "optimized_context_length": length(kept, "memory_context"),
    }
    for key, value in rows.items():
        execute(connection, _INSERT_METADATA, [chunk_id, key, value])
    return int(chunk_id)


def old_load(connection: Any, conversation_id: str) -> dict[str, Any] | None:
    """Load a state as old code does: the newest chunk by created_at; None if there is none."""
    rows = execute(connection, _NEWEST_STATE, [conversation_id])
    return json.loads(rows[0][0]) if rows else None


def vendor_of(connection: Any) -> str:
    """Return "sqlite" or "postgresql"."""
    if isinstance(connection, sqlite3.Connection):
        return "sqlite"
    return str(getattr(connection, "vendor", "postgresql"))


def execute(connection: Any, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Execute one statement, commit it, and return its rows.

    A Django connection commits by itself, unless the caller has opened a transaction.
    """
    is_sqlite3 = isinstance(connection, sqlite3.Connection)
    cursor = connection.cursor()
    try:
        cursor.execute(statement.replace("%s", "?") if is_sqlite3 else statement, values)
        rows = cursor.fetchall() if cursor.description else []
    finally:
        cursor.close()
    if not hasattr(connection, "vendor"):
        connection.commit()
    return [tuple(row) for row in rows]
