"""Lists of the conversations in the legacy chunk tables, page by page, in the order of an index.

A conversation has no row in legacy, only blobs that name it. Grouping the blobs would read them
all for each page. So this walks the blobs in the order of the list, and tests of each whether its
conversation has a later one. The cost of a page depends on the blobs before its end only.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from django.db import connections

from conversations import conf
from conversations.stores.chunks.format import CONVERSATION_ID, names_its_chunk
from conversations.stores.sql.expressions import NEVER
from memory.models import MemoryChunk

Position = tuple[datetime, str]
_ALL = 2**62


class Line(NamedTuple):
    """A conversation by its newest blob; `owner` is the key of a user."""

    name: str
    created_at: datetime | None
    owner: Any


_TYPED = """EXISTS (
        SELECT 1 FROM memory_metadata typed
        WHERE typed.chunk_id = {chunk} AND typed."key" = 'type' AND typed.value = 'state'
        LIMIT 1 OFFSET 0
    )"""
# Without statistics, PostgreSQL would begin with the names, since it expects few of them.
_NAMED = {
    "postgresql": f"""LATERAL (
            SELECT id, value FROM memory_metadata said
            WHERE chunk_id = chunk.id AND {names_its_chunk("said")} AND value <> '' OFFSET 0
        ) named""",
    "sqlite": "memory_metadata named",
}
_NAMES_A_CHUNK = f""" AND named.chunk_id = chunk.id AND named."key" = '{CONVERSATION_ID}'
        AND named.value <> ''"""
# A blob without a time is earlier than all blobs with one.
_MOMENT = "COALESCE({of}.created_at, NEVER)"
_NEVER = {
    "postgresql": "TIMESTAMPTZ '0001-01-01 00:00:00+00'",
    "sqlite": "'0001-01-01 00:00:00'",
}
# The order is created_at, then id; if one blob has a name twice, the second row counts. Ids mostly
# rise with time: from the greatest on, the first one tested mostly is a later one.
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
# CROSS JOIN keeps SQLite from beginning with the names. OFFSET keeps PostgreSQL from turning the
# tests of each blob into joins over whole tables: it cannot know how few blobs it will test.
_PAGE = f"""
    SELECT found.id, found.created_at, found.user_id, found.name FROM (
        SELECT chunk.id, chunk.created_at, chunk.user_id, named.value AS name, named.id AS named
        FROM memory_chunks chunk CROSS JOIN NAMED
        WHERE {{where}}
        AND {_TYPED.format(chunk="chunk.id")}
        {{apart}}
    ) found
    WHERE NOT {_OVERTAKEN}
    ORDER BY {{moment}} DESC, found.name DESC LIMIT %s"""
# First the blobs, then the tests of each. Otherwise PostgreSQL expects a test for every row of a
# blob, and reads all rows that name a conversation instead.
_APART = f"LIMIT {_ALL} OFFSET 0"


def newest(
    *, owner: Any = None, before: Position | None = None, limit: int | None = None
) -> list[Line]:
    """Return conversations by their newest blob, latest first.

    `owner` is the key of a user: only conversations whose newest blob is theirs. Those without a
    time come last; those of equal time, or without one, by name, descending.
    """
    limit = _ALL if limit is None else limit
    if owner is not None:
        # By the owner's index: the index of times would lead through the blobs of all users.
        field: Any = MemoryChunk._meta.get_field("user")
        key = field.target_field.get_db_prep_value(owner, connections[conf.alias()])
        return _page(_MOMENT, before, limit, "chunk.user_id = %s", key, apart=_APART)
    found: list[Line] = []
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
) -> list[Line]:
    """Return a page ordered by `moment`, an expression of the time, and by name."""
    connection, bound = connections[conf.alias()], list[Any]()
    if before is not None:
        # Two conditions on the time: the first can enter an index.
        time, of = connection.ops.adapt_datetimefield_value(before[0]), moment.format(of="chunk")
        where += f" AND {of} <= %s AND ({of} < %s OR named.value < %s)"
        bound = [time, time, before[1]]
    if connection.vendor == "sqlite":
        where += _NAMES_A_CHUNK
    sql = _PAGE.format(where=where, moment=moment.format(of="found"), apart=apart)
    sql = sql.replace("NEVER", _NEVER[connection.vendor])
    sql = sql.replace("NAMED", _NAMED[connection.vendor])
    # Through the model: the host chose how a time is stored.
    rows: Any = MemoryChunk.objects.raw(sql, [*parameters, *bound, limit], using=conf.alias())
    return [Line(row.name, row.created_at, row.user_id) for row in rows]


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
