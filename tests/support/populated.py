"""A database of its own with enough rows that plans matter, made by a few INSERT ... SELECT.

Its rows are those of a crowd: no test reads what they say. What a test works on, it saves itself.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

from django.db import connection

CONVERSATIONS = 4_000
MESSAGES = 12
# Of each kind of row that stands beside them.
BESIDE = 2_000
USERS = 50
# How many of the crowd's conversations stand in legacy as well.
IN_LEGACY = 6_000
BASE_TIME = "2026-01-01 00:00:00"
FIRST = datetime.fromisoformat(f"{BASE_TIME}+00:00")


@contextmanager
def database_of_its_own(directory: Path) -> Iterator[None]:
    """Let the default connection use a copy of the test database; drop it afterwards."""
    name = str(connection.settings_dict["NAME"])
    if connection.vendor == "postgresql":
        copy = f"populated_{uuid.uuid4().hex}"
        connection.close()
        with connection._nodb_cursor() as cursor:
            cursor.execute(f'CREATE DATABASE {copy} TEMPLATE "{name}"')
    else:
        copy = str(directory / "populated.sqlite3")
        connection.close()
        with closing(sqlite3.connect(name)) as original:
            original.execute("VACUUM INTO ?", [copy])
        with closing(sqlite3.connect(copy)) as made:
            made.execute("PRAGMA journal_mode = WAL")
    connection.settings_dict["NAME"] = copy
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict["NAME"] = name
        if connection.vendor == "postgresql":
            with connection._nodb_cursor() as cursor:
                cursor.execute(f"DROP DATABASE {copy} WITH (FORCE)")


def _run(sql: str, count: int, **parameters: int) -> None:
    """Run an INSERT once; `series` holds n from 1 to `count`."""
    postgresql = connection.vendor == "postgresql"
    words = {
        # {time} is a moment n seconds behind the first one; {blob} are 16 bytes.
        "time": f"TIMESTAMPTZ '{BASE_TIME}+00' + n * INTERVAL '1 second'"
        if postgresql
        else f"datetime('{BASE_TIME}', n || ' seconds')",
        "blob": "decode(md5(n::text), 'hex')" if postgresql else "randomblob(16)",
        "true": "TRUE" if postgresql else "1",
        "false": "FALSE" if postgresql else "0",
    }
    into, select = sql.split("SELECT", 1)
    series = (
        "WITH RECURSIVE series(n) AS"
        f" (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < {count})"
    )
    with connection.cursor() as cursor:
        cursor.execute(f"{into} {series} SELECT {select}".format(**words), parameters)


def populate(*, statistics: bool = True) -> None:
    """Fill every table with a crowd, and gather statistics where the server would.

    Without `statistics` the tables are as a restored backup leaves them.
    """
    if not statistics:
        _forget_statistics()
    _users()
    _states()
    _messages()
    _items()
    _beside()
    _legacy()
    if statistics and connection.vendor == "postgresql":
        # The visibility map as well: without it an index-only scan looks dear.
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")


def _forget_statistics() -> None:
    """Forget what an ANALYZE of another test left in the copy: its rollback keeps half of it."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM pg_statistic")
            cursor.execute(
                "UPDATE pg_class SET relpages = 0, reltuples = -1, relallvisible = 0"
                " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
            )


def _users() -> None:
    _run(
        """INSERT INTO auth_user (username, password, is_superuser, first_name, last_name, email,
            is_staff, is_active, date_joined)
        SELECT 'crowd' || n, '', {false}, '', '', '', {false}, {true}, {time} FROM series""",
        USERS,
    )


def _states() -> None:
    # One in twenty belongs to an owner that only legacy knows, one in forty is a fork; one in a
    # hundred was written since it was verified, or legacy is behind in it.
    _run(
        """INSERT INTO conversation_states (conversation_id, user_id, legacy_user_id, user_input,
            focus_areas, step_count, last_tool_result, extra, revision, next_sequence,
            next_item_sequence, message_count, context_item_count, context_items_revision,
            redaction_count, messages_digest, state_digest, legacy_revision, legacy_token,
            verified_revision, foreign_written_at, forked_from_id, created_at, updated_at)
        SELECT 'crowd-' || n,
            CASE WHEN n %% 20 > 0 THEN (SELECT min(id) FROM auth_user WHERE username LIKE 'crowd%%')
                + n %% %(users)s END,
            CASE WHEN n %% 20 = 0 THEN CAST(900000 + n %% 400 AS text) END,
            'hello', '[]', 1, 'null', '', 3, %(next)s, 5, %(messages)s, 4, 1, 0, {blob}, {blob},
            CASE WHEN n %% 100 = 1 THEN 2 ELSE 3 END, '0',
            CASE WHEN n %% 100 = 2 THEN 2 ELSE 3 END,
            CASE WHEN n %% 50 = 0 THEN {time} END,
            NULL, {time}, {time}
        FROM series""",
        CONVERSATIONS,
        users=USERS,
        next=MESSAGES + 1,
        messages=MESSAGES,
    )
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE conversation_states SET forked_from_id = (SELECT min(id) FROM"
            " conversation_states) WHERE id % 40 = 0"
        )


def _messages() -> None:
    # One message in ten was edited; one in twenty has a key.
    columns = """(conversation_id, sequence, role, content, tool_name, extra, "key", key_digest,
        digest, added_in, superseded_in, superseded_at, timestamp)"""
    number = "(SELECT min(id) - 1 FROM conversation_states) + 1 + (n - 1) / %(each)s"
    for added, superseded, where in ((3, "NULL", ""), (1, "2", "WHERE n %% 10 = 0")):
        _run(
            f"""INSERT INTO conversation_messages {columns}
            SELECT {number}, 1 + (n - 1) %% %(each)s,
                CASE n %% 3 WHEN 0 THEN 'user' WHEN 1 THEN 'assistant' ELSE 'tool' END,
                'a message of the crowd, number ' || n,
                CASE WHEN n %% 3 = 2 THEN 'tool' || n %% 7 END, '',
                CASE WHEN n %% 20 = 0 THEN 'key-' || n END,
                CASE WHEN n %% 20 = 0 THEN {{blob}} END,
                {{blob}}, {added}, {superseded},
                CASE WHEN {superseded} IS NOT NULL THEN {{time}} END, {{time}}
            FROM series {where}""",
            CONVERSATIONS * MESSAGES,
            each=MESSAGES,
        )


def _items() -> None:
    number = "(SELECT min(id) - 1 FROM conversation_states) + 1 + (n - 1) / 4"
    for added, superseded, where in ((2, "NULL", ""), (1, "2", "WHERE n %% 20 = 0")):
        _run(
            f"""INSERT INTO memory_context_items (conversation_id, sequence, "position", source,
                content, relevance_score, context_type, extra, digest, timestamp, added_in,
                superseded_in)
            SELECT {number}, 1 + (n - 1) %% 4, 1024 * (1 + (n - 1) %% 4), 'source' || n %% 5,
                'an item of the crowd', (n %% 100) / 100.0, 'type' || n %% 3, '', {{blob}},
                {{time}}, {added}, {superseded}
            FROM series {where}""",
            CONVERSATIONS * 4,
        )


def _beside() -> None:
    """Fill what stands beside the conversations: metadata, records, measures."""
    for target, table in (
        ("conversation_id", "conversation_states"),
        ("message_id", "conversation_messages"),
        ("context_item_id", "memory_context_items"),
    ):
        _run(
            f"""INSERT INTO memory_metadata ({target}, "key", value)
            SELECT (SELECT min(id) - 1 FROM {table}) + n, 'channel', 'web' FROM series""",
            BESIDE,
        )
    first = "(SELECT min(id) - 1 FROM conversation_states) + n"
    _run(
        f"""INSERT INTO conversation_conflicts (conversation_id, kind, reason, revision, detail,
            created_at)
        SELECT {first}, CASE WHEN n %% 10 = 0 THEN 'quarantined' ELSE 'merged' END, 'r', 1,
            '{{{{}}}}', {{time}} FROM series""",
        BESIDE,
    )
    _run(
        f"""INSERT INTO conversation_redactions (conversation_id, text_hash, replacement,
            created_at)
        SELECT {first}, {{blob}}, 'gone', {{time}} FROM series""",
        BESIDE,
    )
    _run(
        """INSERT INTO conversation_tombstones (conversation_id, deleted_at, reason)
        SELECT 'buried-' || n, {time}, 'deleted' FROM series""",
        BESIDE,
    )
    _run(
        """INSERT INTO conversation_mismatches (conversation_id, seen_at, phase, revision, places,
            tables_hash, legacy_hash)
        SELECT 'crowd-' || n, {time}, 1, 1, '[]', '', '' FROM series""",
        BESIDE,
    )
    _run(
        """INSERT INTO sync_runs (target, state, stage, cursor, upper, mark, batch_size, reason,
            waiting, started_at, finished_at)
        SELECT 'tables', 'finished', 0, '0', '0', '0', 50, '', '', {time}, {time} FROM series""",
        20,
    )
    _run(
        """INSERT INTO sync_batches (run_id, stage, low, high, generation, conversations, counts,
            noted, failed, taken_at, finished_at)
        SELECT (SELECT min(id) FROM sync_runs) + n %% 20, 0, '0', '1', 1, 0, '{{}}', '[]', 0,
            {time}, {time} FROM series""",
        BESIDE,
    )
    _run(
        """INSERT INTO rollout_measures (began_at, operation, store, count, errors, fallbacks,
            stale, mismatches, seconds, cells)
        SELECT {time}, 'load', 'tables', 1, 0, 0, 0, 0, 0.1, '' FROM series""",
        20_000,
    )


def _legacy() -> None:
    """Fill the legacy tables, of chunks and of a host: half as the tables hold it, half alone."""
    _run(
        """INSERT INTO memory_chunks (user_id, content, created_at)
        SELECT (SELECT min(id) FROM auth_user WHERE username LIKE 'crowd%%') + n %% %(users)s,
            '{{"user_input": "hello"}}', {time} FROM series""",
        IN_LEGACY * 2,
        users=USERS,
    )
    chunk = "(SELECT min(id) - 1 FROM memory_chunks) + n"
    name = f"CASE WHEN n %% 2 = 0 THEN 'crowd-' ELSE 'unmoved-' END || (n %% {IN_LEGACY})"
    named = {
        "conversation_id": name,
        "type": "'state'",
        "last_updated": "'then'",
        "optimization_applied": "'true'",
        "original_conversation_length": "'2'",
        "optimized_conversation_length": "'2'",
        "original_context_length": "'0'",
        "optimized_context_length": "'0'",
        "store.revision": "CASE WHEN n %% 2 = 0 THEN '3' END",
    }
    for key, value in named.items():
        where = "WHERE n %% 2 = 0" if key.startswith("store.") else ""
        _run(
            f"""INSERT INTO memory_metadata (chunk_id, "key", value)
            SELECT {chunk}, '{key}', {value} FROM series {where}""",
            IN_LEGACY * 2,
        )
    _run(
        """INSERT INTO blobs_assistantsession (session_key, owner_id, data, version)
        SELECT CASE WHEN n %% 2 = 0 THEN 'crowd-' ELSE 'unmoved-' END || n,
            (SELECT min(id) FROM auth_user WHERE username LIKE 'crowd%%') + n %% %(users)s,
            '{{"user_input": "hello"}}', 1 FROM series""",
        IN_LEGACY,
        users=USERS,
    )
