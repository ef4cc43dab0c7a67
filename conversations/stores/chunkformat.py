"""What old code's blobs and their metadata rows look like, and the SQL that finds them."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from conversations.documents import Document, check_types
from conversations.exceptions import InvalidState

CONVERSATION_ID = "conversation_id"
REVISION_MARK = "store.revision"
QUARANTINE_MARK = "store.quarantined"
MARKS = (REVISION_MARK, QUARANTINE_MARK)


def parsed(content: str | None) -> Document:
    """Return the document of a blob. Raises: InvalidState when it is none."""
    try:
        data = json.loads(content or "")
    except (ValueError, RecursionError) as error:
        raise InvalidState(f"is no JSON ({error})", path="blob") from error
    if not isinstance(data, dict):
        raise InvalidState(f"is a {type(data).__name__}, not an object", path="blob")
    check_types(data)
    return Document.from_dict(data)


# The floor, as the conversation's row has it; see stores.floors.
_FLOOR = "COALESCE(CAST(NULLIF(conversation_states.legacy_token, '') AS bigint), 0)"

# Whether old code has written a blob above the floor. One look at all keys of a blob, because
# every further table is planned again with each load and save that is not prepared.
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
    """Return the SQL that finds the newest state blob as old code does: by created_at, then id."""
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


# What `held` reads, by the row's own number: the id, a space, the content. All marks are looked at
# together, as above. No floor passes what a load reads; where one stands above, this is NULL, and
# `held` has to be asked.
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


def _looked_at(count: int) -> str:
    """Return the SQL of every state blob of so many conversations, and of the newest of each."""
    places = ", ".join(["%s"] * count)
    return f"""
        WITH blob AS (
            SELECT named.value AS name, named.chunk_id AS id, chunk.created_at,
                chunk.id IS NOT NULL AS present,
                EXISTS (
                    SELECT 1 FROM memory_metadata aside
                    WHERE aside.chunk_id = named.chunk_id AND aside."key" = '{QUARANTINE_MARK}'
                ) AS aside,
                EXISTS (
                    SELECT 1 FROM memory_metadata marked
                    WHERE marked.chunk_id = named.chunk_id
                    AND marked."key" IN ('{REVISION_MARK}', '{QUARANTINE_MARK}')
                ) AS marked
            FROM memory_metadata named LEFT JOIN memory_chunks chunk ON chunk.id = named.chunk_id
            WHERE named."key" = '{CONVERSATION_ID}' AND named.value IN ({places})
            AND EXISTS (
                SELECT 1 FROM memory_metadata typed
                WHERE typed.chunk_id = named.chunk_id
                AND typed."key" = 'type' AND typed.value = 'state'
            )
        ), newest AS (
            SELECT name, id, row_number() OVER (
                PARTITION BY name ORDER BY created_at DESC NULLS LAST, id DESC
            ) AS place
            FROM blob WHERE present AND NOT aside
        )"""


def looks_sql(count: int, *, joined: str, cutoff: str) -> str:
    """Return the SQL of one look at so many conversations; a row for each that has a blob.

    Parameters: the conversations' ids, and twice those of `cutoff`, the time before which nothing
    is in flight.
    Columns of the newest blob, then `name`; `seen`, the ids of the unmarked ones (`joined`: how
    the database joins texts); the greatest id that has settled, and the least in flight.
    """
    return f"""SELECT found.* FROM ({_looked_at(count)}
        SELECT {_BLOB}, looked.* FROM (
            SELECT name, {joined} FILTER (WHERE NOT marked) AS seen,
                MAX(id) FILTER (WHERE created_at < {cutoff}) AS settled,
                MIN(id) FILTER (WHERE created_at IS NULL OR created_at >= {cutoff}) AS in_flight
            FROM blob GROUP BY name
        ) looked
        LEFT JOIN newest ON newest.name = looked.name AND newest.place = 1
        LEFT JOIN memory_chunks chunk ON chunk.id = newest.id
        ) found"""


def sizes_sql(count: int, *, length: str) -> str:
    """Return the SQL of names and of the length of what a load reads, of so many conversations."""
    return f"""SELECT found.* FROM ({_looked_at(count)}
        SELECT newest.name, {length} FROM newest JOIN memory_chunks chunk ON chunk.id = newest.id
        WHERE newest.place = 1
        ) found"""


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
