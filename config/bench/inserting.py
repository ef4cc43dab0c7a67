"""Rows written in bulk: COPY on PostgreSQL, executemany on SQLite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from django.db import connection

from config.bench.rows import Row


def moment(value: datetime) -> Any:
    """Return a time as `insert` takes it."""
    if connection.vendor == "postgresql":
        return value
    return value.strftime("%Y-%m-%d %H:%M:%S.%f")


def next_id(table: str) -> int:
    """Return the number that the next row of a table may have."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT coalesce(max(id), 0) + 1 FROM {table}")
        return int(cursor.fetchone()[0])


def insert(table: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Insert rows whose values stand in the order of the columns."""
    names = ", ".join(f'"{name}"' for name in columns)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            with cursor.copy(f"COPY {table} ({names}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
            return
        marks = ", ".join(["%s"] * len(columns))
        cursor.executemany(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(rows))


def settle(numbered: Sequence[str]) -> None:
    """Let new rows of these tables get free numbers, and the planner know of all that are there."""
    with connection.cursor() as cursor:
        if connection.vendor != "postgresql":
            cursor.execute("ANALYZE")
            return
        for table in numbered:
            cursor.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', 'id'),"
                f" (SELECT coalesce(max(id), 1) FROM {table}))"
            )
        cursor.execute("VACUUM ANALYZE")
