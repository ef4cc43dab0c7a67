"""Lists of what the legacy chunk tables hold, page by page, in the order of an index.

A conversation has no row in legacy, only blobs that name it. Grouping them would read them all
for each page; here the blobs are walked in the order of the list, and each is asked whether its
conversation has a later one. A page costs what stands before its end, however much is behind.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db import connections

from conversations import conf
from conversations.stores.base import NEVER
from conversations.stores.chunkformat import CONVERSATION_ID
from memory.models import MemoryChunk

Position = tuple[datetime, str]
_ALL = 2**62

_TYPED = """EXISTS (
        SELECT 1 FROM memory_metadata typed
        WHERE typed.chunk_id = {chunk} AND typed."key" = 'type' AND typed.value = 'state'
        LIMIT 1 OFFSET 0
    )"""
# What has no time is earlier than all that has one.
_MOMENT = "COALESCE({of}.created_at, NEVER)"
_NEVER = {
    "postgresql": "TIMESTAMPTZ '0001-01-01 00:00:00+00'",
    "sqlite": "'0001-01-01 00:00:00'",
}
# By created_at, then by id; of a name given twice to one blob, by the second. Ids mostly rise
# with time: from the greatest on, the first that is asked mostly is a later one.
_OVERTAKEN = f"""EXISTS (
        SELECT 1 FROM memory_metadata other CROSS JOIN memory_chunks later
        WHERE later.id = other.chunk_id
        AND other."key" = '{CONVERSATION_ID}' AND other.value = found.name
        AND (
            {_MOMENT.format(of="later")} > {_MOMENT.format(of="found")}
            OR {_MOMENT.format(of="later")} = {_MOMENT.format(of="found")}
            AND (later.id > found.id OR later.id = found.id AND other.id > found.named)
        )
        AND {_TYPED.format(chunk="other.chunk_id")}
        ORDER BY other.chunk_id DESC LIMIT 1 OFFSET 0
    )"""
# CROSS JOIN keeps SQLite from beginning with the names, and OFFSET keeps PostgreSQL from turning
# what is asked of each blob into joins that begin with all there is: it cannot know how few blobs
# it will have to ask.
_PAGE = f"""
    SELECT found.id, found.created_at, found.name FROM (
        SELECT chunk.id, chunk.created_at, named.value AS name, named.id AS named
        FROM memory_chunks chunk CROSS JOIN memory_metadata named
        WHERE named.chunk_id = chunk.id AND named."key" = '{CONVERSATION_ID}'
        AND named.value <> '' AND {{where}}
        AND {_TYPED.format(chunk="chunk.id")}
        {{apart}}
    ) found
    WHERE NOT {_OVERTAKEN}
    ORDER BY {{moment}} DESC, found.name DESC LIMIT %s"""
# First which blobs they are, then what is asked of each: else PostgreSQL reckons with asking
# every row that a blob has, and reads all that names a conversation instead.
_APART = f"LIMIT {_ALL} OFFSET 0"


def newest(
    *, owner: Any = None, before: Position | None = None, limit: int | None = None
) -> list[tuple[str, datetime | None]]:
    """Return name and time of conversations by their newest blob, latest first.

    `owner`, a key of a user: those whose newest blob is theirs. Those without a time come last;
    at one time, and without, by name, descending.
    """
    limit = _ALL if limit is None else limit
    if owner is not None:
        # By their index. That of all times would lead through everybody's.
        field: Any = MemoryChunk._meta.get_field("user")
        key = field.target_field.get_db_prep_value(owner, connections[conf.alias()])
        return _page(_MOMENT, before, limit, "chunk.user_id = %s", key, apart=_APART)
    found: list[tuple[str, datetime | None]] = []
    if before is None or before[0] != NEVER:
        found = _page("{of}.created_at", before, limit, "chunk.created_at IS NOT NULL")
        before = None
    if len(found) < limit:
        found += _page(_MOMENT, before, limit - len(found), "chunk.created_at IS NULL")
    return found


def _page(
    moment: str,
    before: Position | None,
    limit: int,
    where: str,
    *parameters: Any,
    apart: str = "",
) -> list[tuple[str, datetime | None]]:
    """Return a page by `moment`, an expression of what it is a column of, and by name."""
    connection, bound = connections[conf.alias()], list[Any]()
    if before is not None:
        # Twice about the time: the first is what an index can be entered with.
        time, of = connection.ops.adapt_datetimefield_value(before[0]), moment.format(of="chunk")
        where += f" AND {of} <= %s AND ({of} < %s OR named.value < %s)"
        bound = [time, time, before[1]]
    sql = _PAGE.format(where=where, moment=moment.format(of="found"), apart=apart)
    sql = sql.replace("NEVER", _NEVER[connection.vendor])
    # Through the model: how a time is stored is the host's.
    rows: Any = MemoryChunk.objects.raw(sql, [*parameters, *bound, limit], using=conf.alias())
    return [(row.name, row.created_at) for row in rows]


# One look-up for each name, in the order of their index. `place` counts them.
_NAMES = f"""
    WITH RECURSIVE names(value, place) AS (
        SELECT (
            SELECT MIN(named.value) FROM memory_metadata named
            WHERE named."key" = '{CONVERSATION_ID}' AND named.value > %s
        ), 1
        UNION ALL
        SELECT (
            SELECT MIN(named.value) FROM memory_metadata named
            WHERE named."key" = '{CONVERSATION_ID}' AND named.value > names.value
        ), place + 1
        FROM names WHERE names.value IS NOT NULL AND place < %s
    )
    SELECT names.value, EXISTS (
        SELECT 1 FROM memory_metadata named
        WHERE named."key" = '{CONVERSATION_ID}' AND named.value = names.value
        AND {_TYPED.format(chunk="named.chunk_id")}
        LIMIT 1 OFFSET 0
    )
    FROM names WHERE names.value IS NOT NULL ORDER BY place"""


def names(*, after: str, limit: int) -> list[str]:
    """Return the names of conversations with a state blob, in the order of the database."""
    found: list[str] = []
    while len(found) < limit:
        wanted = limit - len(found)
        with connections[conf.alias()].cursor() as cursor:
            cursor.execute(_NAMES, [after, wanted])
            rows = cursor.fetchall()
        found += [str(name) for name, is_state in rows if is_state]
        if len(rows) < wanted:
            break
        after = rows[-1][0]
    return found
