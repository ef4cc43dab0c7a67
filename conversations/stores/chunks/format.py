"""The form of old code's blobs and their metadata rows, and the SQL that finds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from conversations.content.document import Document
from conversations.content.validation import check_types
from conversations.exceptions import InvalidState
from conversations.stores.sql.expressions import byte_length

CONVERSATION_ID = "conversation_id"
REVISION_MARK = "store.revision"
QUARANTINE_MARK = "store.quarantined"
# Beside the revision, on a blob of other code that the tables ingested: it stays as evidence.
TAKEN_IN_MARK = "store.taken_in"
# A blob that was put back carries its old key here, so that doing it twice adds nothing.
RESTORED_MARK = "store.restored"
MARKS = (REVISION_MARK, QUARANTINE_MARK)


def parsed(content: str | None) -> Document:
    """Return the document of a blob. Raises: InvalidState if it is none."""
    data, problem = None, ""
    try:
        data = json.loads(content or "")
    except (ValueError, RecursionError) as error:
        # Raised below: json's error holds the whole blob, and would be its context here.
        problem = f"is no JSON ({error})"
    if problem:
        raise InvalidState(problem, path="blob")
    if not isinstance(data, dict):
        raise InvalidState(f"is a {type(data).__name__}, not an object", path="blob")
    check_types(data)
    return Document.from_dict(data)


def names_its_chunk(of: str) -> str:
    """Return the SQL condition that a metadata row, found by its chunk, names a conversation.

    Not the bare key: without statistics, PostgreSQL would then look a chunk up in the index of the
    names. Its id comes second there, so the whole index would be read each time.
    """
    return f"{of}.\"key\" || '' = '{CONVERSATION_ID}'"


# The floor in the conversation's row; see stores.floors.
_FLOOR = "COALESCE(CAST(NULLIF(conversation_states.legacy_token, '') AS bigint), 0)"

# Whether old code has written a blob above the floor. One subquery reads all keys of a blob,
# because every further table costs planning time in each load and save that is not prepared.
FOREIGN_BLOB = f"""EXISTS (
    SELECT 1 FROM memory_metadata named
    WHERE named."key" = '{CONVERSATION_ID}'
    AND named.value = conversation_states.conversation_id
    AND named.chunk_id > {_FLOOR}
    AND (
        SELECT count(*) FILTER (WHERE said."key" = 'type' AND said.value = 'state') > 0
            AND count(*) FILTER (WHERE said."key" <> 'type') = 0
        FROM memory_metadata said
        WHERE said.chunk_id = named.chunk_id
        AND said."key" IN ('type', '{REVISION_MARK}', '{QUARANTINE_MARK}')
    )
)"""


def _newest(columns: str, wanted: str = "") -> str:
    """Return the SQL of the newest state blob in old code's order: by created_at, then id."""
    return f"""
        SELECT {columns}
        FROM memory_metadata named JOIN memory_chunks chunk ON chunk.id = named.chunk_id
        WHERE named."key" = '{CONVERSATION_ID}' AND named.value = %s
        AND EXISTS (
            SELECT 1 FROM memory_metadata typed
            WHERE typed.chunk_id = chunk.id AND typed."key" = 'type' AND typed.value = 'state'
        )
        AND NOT EXISTS (
            SELECT 1 FROM memory_metadata aside
            WHERE aside.chunk_id = chunk.id AND aside."key" = '{QUARANTINE_MARK}'
        )
        {wanted}
        ORDER BY chunk.created_at DESC NULLS LAST, chunk.id DESC LIMIT 1"""


_BLOB = "chunk.id, chunk.user_id, chunk.content, chunk.created_at"
NEWEST = _newest(_BLOB)
NEWEST_OF_REVISION = _newest(
    _BLOB,
    f"""AND EXISTS (
        SELECT 1 FROM memory_metadata marked
        WHERE marked.chunk_id = chunk.id AND marked."key" = '{REVISION_MARK}' AND marked.value = %s
    )""",
)
OWNER_OF_NEWEST = _newest("chunk.id, chunk.user_id")

# The ids of the blobs of other code above a floor: every save asks for them, and Django takes
# longer to build this than the database to answer. Parameters: the conversation, and the floor.
UNMARKED = f"""
    SELECT named.chunk_id FROM memory_metadata named
    WHERE named."key" = '{CONVERSATION_ID}' AND named.value = %s AND named.chunk_id > %s
    AND EXISTS (
        SELECT 1 FROM memory_metadata typed
        WHERE typed.chunk_id = named.chunk_id AND typed."key" = 'type' AND typed.value = 'state'
    )
    AND NOT EXISTS (
        SELECT 1 FROM memory_metadata marked
        WHERE marked.chunk_id = named.chunk_id
        AND marked."key" IN ('{REVISION_MARK}', '{QUARANTINE_MARK}')
    )"""


# The value that `last_ours` reads, by the row's own number: the id, a space, the content. One
# subquery reads all marks, as above. No floor passes the blob that a load reads; if the floor is
# higher all the same, this is NULL, and `last_ours` must be asked.
HELD_BLOB = f"""(
    SELECT CAST(chunk.id AS text) || ' ' || chunk.content
    FROM memory_metadata named JOIN memory_chunks chunk ON chunk.id = named.chunk_id
    WHERE named."key" = '{CONVERSATION_ID}'
    AND named.value = conversation_states.conversation_id
    AND named.chunk_id >= {_FLOOR}
    AND (
        SELECT count(*) FILTER (WHERE said."key" = 'type' AND said.value = 'state') > 0
            AND count(*) FILTER (
                WHERE said."key" = '{REVISION_MARK}'
                AND said.value = CAST(conversation_states.legacy_revision AS text)
            ) > 0
            AND count(*) FILTER (WHERE said."key" = '{QUARANTINE_MARK}') = 0
        FROM memory_metadata said
        WHERE said.chunk_id = named.chunk_id
        AND said."key" IN ('type', '{REVISION_MARK}', '{QUARANTINE_MARK}')
    )
    ORDER BY chunk.created_at DESC NULLS LAST, chunk.id DESC LIMIT 1
)"""


# Each look-up runs by itself; OFFSET keeps it so. Without statistics, PostgreSQL takes a few names
# for half of the table, and reads the whole table. SQLite looks each up.
_NAMED = {
    "postgresql": f"""unnest(CAST(%s AS text[])) wanted(name) CROSS JOIN LATERAL (
                SELECT value, chunk_id FROM memory_metadata
                WHERE "key" = '{CONVERSATION_ID}' AND value = wanted.name OFFSET 0
            ) named""",
    "sqlite": f"""(
                SELECT value, chunk_id FROM memory_metadata
                WHERE "key" = '{CONVERSATION_ID}' AND value IN ({{places}})
            ) named""",
}
_CHUNK = {
    "postgresql": "LEFT JOIN LATERAL (SELECT {columns} FROM memory_chunks chunk"
    " WHERE chunk.id = {key} OFFSET 0) chunk ON TRUE",
    "sqlite": "LEFT JOIN memory_chunks chunk ON chunk.id = {key}",
}
# Joins ids to one text.
_JOINED = {
    "postgresql": "string_agg(CAST(id AS text), ',')",
    "sqlite": "group_concat(id, ',')",
}


def names_bound(ids: Sequence[str], vendor: str) -> list[Any]:
    """Return the parameters that pass the conversations' ids to the statements below."""
    return [list(ids)] if vendor == "postgresql" else list(ids)


def _looked_at(count: int, vendor: str) -> str:
    """Return the SQL of every state blob of so many conversations, and of the newest of each."""
    named = _NAMED[vendor].format(places=", ".join(["%s"] * count))
    chunk = _CHUNK[vendor].format(columns="chunk.id, chunk.created_at", key="named.chunk_id")
    return f"""
        WITH blob AS (
            SELECT named.value AS name, named.chunk_id AS id, chunk.created_at,
                chunk.id IS NOT NULL AS present,
                EXISTS (
                    SELECT 1 FROM memory_metadata aside
                    WHERE aside.chunk_id = named.chunk_id AND aside."key" = '{QUARANTINE_MARK}'
                    LIMIT 1 OFFSET 0
                ) AS aside,
                EXISTS (
                    SELECT 1 FROM memory_metadata marked
                    WHERE marked.chunk_id = named.chunk_id
                    AND marked."key" IN ('{REVISION_MARK}', '{QUARANTINE_MARK}')
                    LIMIT 1 OFFSET 0
                ) AS marked
            FROM {named} {chunk}
            WHERE EXISTS (
                SELECT 1 FROM memory_metadata typed
                WHERE typed.chunk_id = named.chunk_id
                AND typed."key" = 'type' AND typed.value = 'state'
                LIMIT 1 OFFSET 0
            )
        ), newest AS (
            SELECT name, id, row_number() OVER (
                PARTITION BY name ORDER BY created_at DESC NULLS LAST, id DESC
            ) AS place
            FROM blob WHERE present AND NOT aside
        )"""


def looks_sql(count: int, *, vendor: str, cutoff: str) -> str:
    """Return the SQL of one look at so many conversations; a row for each that has a blob.

    Parameters: `names_bound`, then twice those of `cutoff`, the time before which no write is in
    flight. Columns: those of the newest blob; `name`; `seen`, the ids of the unmarked blobs; the
    greatest settled id; the least id in flight.
    """
    chunk = _CHUNK[vendor].format(columns=_BLOB, key="newest.id")
    return f"""SELECT found.* FROM ({_looked_at(count, vendor)}
        SELECT {_BLOB}, looked.* FROM (
            SELECT name, {_JOINED[vendor]} FILTER (WHERE NOT marked) AS seen,
                MAX(id) FILTER (WHERE created_at < {cutoff}) AS settled,
                MIN(id) FILTER (WHERE created_at IS NULL OR created_at >= {cutoff}) AS in_flight
            FROM blob GROUP BY name
        ) looked
        LEFT JOIN newest ON newest.name = looked.name AND newest.place = 1
        {chunk}
        ) found"""


def sizes_sql(count: int, *, vendor: str) -> str:
    """Return the SQL of names, and of the bytes that a load reads, of so many conversations.

    Parameters: `names_bound`.
    """
    length = byte_length("chunk.content", vendor)
    chunk = _CHUNK[vendor].format(columns="chunk.content", key="newest.id")
    return f"""SELECT found.* FROM ({_looked_at(count, vendor)}
        SELECT newest.name, {length} FROM newest {chunk} WHERE newest.place = 1
        ) found"""


def taken_in(revision: int) -> dict[str, str]:
    """Return the rows that mark a blob of other code as ingested at a revision."""
    return {REVISION_MARK: str(revision), TAKEN_IN_MARK: "true"}


def met_sql(count: int, *, vendor: str) -> str:
    """Return the SQL of those of so many conversations that have a state blob up to a key.

    Parameters: `names_bound`, and the key.
    """
    named = _NAMED[vendor].format(places=", ".join(["%s"] * count))
    return f"""SELECT DISTINCT named.value FROM {named} WHERE named.chunk_id <= %s AND EXISTS (
            SELECT 1 FROM memory_metadata typed
            WHERE typed.chunk_id = named.chunk_id
            AND typed."key" = 'type' AND typed.value = 'state'
            LIMIT 1 OFFSET 0
        )"""


def metadata_of(conversation_id: str, document: Document, now: datetime) -> dict[str, str]:
    """Return the eight metadata rows of a save, in the order old code writes them.

    We do not prune, so the "optimized" lengths equal the original ones.
    """
    messages, items = str(len(document.messages)), str(len(document.items))
    return {
        CONVERSATION_ID: conversation_id,
        "type": "state",
        "last_updated": now.astimezone(UTC).isoformat(),
        "optimization_applied": "true",
        "original_conversation_length": messages,
        "optimized_conversation_length": messages,
        "original_context_length": items,
        "optimized_context_length": items,
    }
