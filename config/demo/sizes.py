"""The size of each store: rows, bytes on disk, and the time of its statements."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.db import connection

TABLES = {
    "legacy": ("memory_chunks", "memory_metadata"),
    "tables": ("conversation_states", "conversation_messages", "memory_context_items"),
}
_STORE_OF = {table: store for store, tables in TABLES.items() for table in tables}
_TABLE = re.compile(r'(?:FROM|INTO|UPDATE)\s+"?(\w+)')


@dataclass(frozen=True, slots=True)
class Size:
    """Rows, and bytes; `how_weighed` names the kind of bytes."""

    rows: int
    bytes: int

    def __sub__(self, other: Size) -> Size:
        return Size(self.rows - other.rows, self.bytes - other.bytes)


def size_of(store: str) -> Size:
    """Return the size of a store's tables."""
    tables = TABLES[store]
    with connection.cursor() as cursor:
        rows = 0
        for table in tables:
            cursor.execute(f"SELECT count(*) FROM {table}")
            rows += cursor.fetchone()[0]
        return Size(rows, _bytes(cursor, tables))


def how_weighed() -> str:
    """Return the kind of the bytes of `size_of` on this database."""
    if connection.vendor == "postgresql":
        return "pages on disk, with indexes (pg_total_relation_size)"
    with connection.cursor() as cursor:
        if _has_dbstat(cursor):
            return "pages on disk, with indexes (dbstat)"
    return "the lengths of all columns, without indexes (this SQLite has no dbstat)"


def compact() -> None:
    """Give back the space of deleted rows. SQLite does so by itself."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            for table in _STORE_OF:
                cursor.execute(f"VACUUM FULL {table}")


def _bytes(cursor: Any, tables: tuple[str, ...]) -> int:
    names = ", ".join(f"'{table}'" for table in tables)
    if connection.vendor == "postgresql":
        cursor.execute(
            "SELECT sum(pg_total_relation_size(oid)) FROM pg_class"
            f" WHERE relname IN ({names}) AND relkind = 'r'"
        )
    elif _has_dbstat(cursor):
        cursor.execute(
            "SELECT sum(pgsize) FROM dbstat WHERE aggregate = TRUE AND name IN"
            f" (SELECT name FROM sqlite_master WHERE tbl_name IN ({names}))"
        )
    else:
        return sum(_length(cursor, table) for table in tables)
    return int(cursor.fetchone()[0] or 0)


def _has_dbstat(cursor: Any) -> bool:
    """Whether this SQLite has dbstat; the builds of Debian and python.org do."""
    cursor.execute("SELECT 1 FROM pragma_module_list WHERE name = 'dbstat'")
    return cursor.fetchone() is not None


def _length(cursor: Any, table: str) -> int:
    cursor.execute(f"SELECT name FROM pragma_table_info('{table}')")
    lengths = (f'coalesce(length(CAST("{name}" AS blob)), 0)' for (name,) in cursor.fetchall())
    cursor.execute(f"SELECT sum({' + '.join(lengths)}) FROM {table}")
    return int(cursor.fetchone()[0] or 0)


@dataclass(slots=True)
class Clock:
    """Seconds that the database spent on each store's statements, by their first table."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TABLES, 0.0))

    def __call__(
        self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        started = time.perf_counter()
        try:
            return execute(sql, params, many, context)
        finally:
            found = _TABLE.search(sql)
            store = _STORE_OF.get(found[1]) if found else None
            if store is not None:
                self.seconds[store] += time.perf_counter() - started


@contextmanager
def clocked() -> Iterator[Clock]:
    """Measure the time of each store's statements inside the block."""
    clock = Clock()
    with connection.execute_wrapper(clock):
        yield clock
