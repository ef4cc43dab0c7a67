"""The whole content of many conversations at once: every version, and every context item.

A verification reads everything. So each conversation gets one look-up per table, whatever the
database expects. Without statistics, PostgreSQL takes a list of keys for half of a table, and
reads all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db import connections

from conversations import conf
from conversations.content.codec import ITEM_COLUMNS, MESSAGE_COLUMNS, decode_items, decode_messages
from conversations.content.entries import Entry
from conversations.stores.sql.expressions import byte_length

# OFFSET keeps PostgreSQL from turning the look-ups into one join. SQLite looks each key up.
_EACH = {
    "postgresql": "unnest(CAST(%s AS bigint[])) wanted(id) CROSS JOIN LATERAL"
    " (SELECT {columns} FROM {table} WHERE conversation_id = wanted.id {current} OFFSET 0) found",
    "sqlite": "(SELECT {columns} FROM {table} WHERE conversation_id IN ({places}) {current}) found",
}
# The columns of a row that may be large.
_LARGE = {
    "conversation_states": ("user_input", "focus_areas", "last_tool_result", "extra"),
    "conversation_messages": ("content", "tool_calls", "extra"),
    "memory_context_items": ("content", "extra"),
}


@dataclass(slots=True)
class Content:
    """The content of one conversation's rows: versions by sequence and age, and items in order."""

    versions: list[Entry] = field(default_factory=list)
    items: list[Entry] = field(default_factory=list)


def content_sizes(ids: Sequence[str]) -> Mapping[str, int]:
    """Return the size in bytes of the texts of those conversations that the tables know."""
    connection = connections[conf.alias()]
    state, *parts = (
        " + ".join(f"COALESCE({byte_length(name, connection.vendor)}, 0)" for name in columns)
        for columns in _LARGE.values()
    )
    beside = "".join(
        f" + COALESCE((SELECT SUM({size}) FROM {table}"
        " WHERE conversation_id = conversation_states.id), 0)"
        for table, size in zip(list(_LARGE)[1:], parts, strict=True)
    )
    places = ", ".join(["%s"] * len(ids))
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT conversation_id, {state}{beside} FROM conversation_states"
            f" WHERE conversation_id IN ({places})",
            list(ids),
        )
        return {name: int(size) for name, size in cursor.fetchall()}


def contents_of(keys: Sequence[int]) -> Mapping[int, Content]:
    """Return the contents of conversations in the tables, by primary key: two statements in all."""
    found = {key: Content() for key in keys}
    rows = _of_each(
        keys,
        "conversation_messages",
        (*MESSAGE_COLUMNS, "digest", "added_in", "superseded_in", "sequence"),
        order="sequence, added_in",
    )
    for row, value in zip(rows, decode_messages(rows), strict=True):
        digest, added_in, superseded_in, sequence, key = row[-5:]
        entry = Entry(bytes(digest), value, sequence)
        entry.added_in, entry.superseded_in = added_in, superseded_in
        found[key].versions.append(entry)
    rows = _of_each(
        keys,
        "memory_context_items",
        (*ITEM_COLUMNS, "digest", "position"),
        order='"position"',
        current="AND superseded_in IS NULL",
    )
    for row, value in zip(rows, decode_items(rows), strict=True):
        digest, _, key = row[-3:]
        found[key].items.append(Entry(bytes(digest), value))
    return found


def _of_each(
    keys: Sequence[int], table: str, columns: Sequence[str], *, order: str, current: str = ""
) -> Sequence[tuple[Any, ...]]:
    """Return columns of these conversations' rows in a table, in order; the key comes last."""
    connection = connections[conf.alias()]
    selected = ", ".join(f'"{name}"' for name in (*columns, "conversation_id"))
    each = _EACH[connection.vendor].format(
        columns=selected, table=table, current=current, places=", ".join(["%s"] * len(keys))
    )
    bound = [list(keys)] if connection.vendor == "postgresql" else list(keys)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {selected} FROM {each} ORDER BY conversation_id, {order}", bound)
        found: list[tuple[Any, ...]] = cursor.fetchall()
    return found
