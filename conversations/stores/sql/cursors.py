"""Cursors for the statements of every load and save, with fewer calls around each of them.

On PostgreSQL, Django's own cursor writes parameters into the text of a statement, and requests its
results as text. That costs twice as much as parameters that the server binds. On SQLite, it
searches the whole text for placeholders each time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from django.db import DataError
from django.db.backends.base.base import BaseDatabaseWrapper

from conversations import conf

# psycopg's own default: a statement is prepared when it was executed this often.
PREPARED_AFTER = 5
# SQLite's error for text that is no UTF-8: other code may have written such bytes.
_NO_TEXT = "Could not decode to UTF-8"


def cannot_be_read(error: BaseException) -> bool:
    """Whether the database answered with a value that its driver cannot represent.

    PostgreSQL: a time before the year 1 or after 9999, such as infinity; SQLite: text that is no
    UTF-8.
    """
    return isinstance(error, DataError) or _NO_TEXT in str(error)


def execute(connection: BaseDatabaseWrapper, sql: str, parameters: Sequence[Any]) -> Any:
    """Execute a statement whose parameters the server binds. Returns: the cursor, to fetch from.

    It uses Django's connection, and its execute wrappers and query log if there are any. It is
    prepared if the host allows that, by `PREPARE_STATEMENTS` or by the connection's own
    `prepare_threshold`; no other statement is.

    Raises: django.db.Error. Fetching may raise the driver's errors (SQLite reads a row when it is
    fetched): fetch inside `connection.wrap_database_errors`.
    """
    # A `cursor` attribute on the instance means that a test or a tool watches or blocks it.
    kind: Any = type(connection)
    if "cursor" not in vars(connection) and _gives_djangos(kind):
        if connection.vendor == "postgresql":
            return _execute_by_psycopg(connection, sql, parameters)
        if connection.vendor == "sqlite" and not (
            connection.execute_wrappers or connection.queries_logged
        ):
            # Its connection makes the cursor, or refuses if it was closed.
            return _execute_unwatched(
                connection, _open(connection), _with_placeholders(sql), parameters
            )
    cursor: Any = connection.cursor()
    cursor.execute(sql, parameters)
    return cursor


_GIVING = ("cursor", "_cursor", "create_cursor", "make_cursor", "_prepare_cursor")


@cache
def _gives_djangos(kind: Any) -> bool:
    """Whether a backend's cursors are Django's: another's may first set the tenant's schema."""
    return all(getattr(kind, name).__module__.startswith("django.") for name in _GIVING)


def _open(connection: Any) -> Any:
    """Return the driver's connection, after the steps of Django before it opens a cursor."""
    connection.validate_thread_sharing()
    if connection.health_check_enabled and not connection.health_check_done:
        # A connection that the server closed is replaced.
        connection.close_if_health_check_failed()
    connection.ensure_connection()
    return connection.connection


def _execute_unwatched(connection: Any, driver: Any, sql: str, parameters: Sequence[Any]) -> Any:
    """Execute like Django's cursor when nothing watches: that takes a tenth of a load.

    `driver` is the driver's cursor, or its connection. Returns: the cursor.
    """
    if connection.needs_rollback:
        connection.validate_no_broken_transaction()
    try:
        return driver.execute(sql, parameters)
    except connection.Database.Error:
        with connection.wrap_database_errors:
            raise


_PLACEHOLDER = re.compile("%%|%s")


@lru_cache(maxsize=256)
def _with_placeholders(sql: str) -> str:
    """Return a statement with SQLite's placeholders."""
    return _PLACEHOLDER.sub(lambda found: "?" if found[0] == "%s" else "%", sql)


def _execute_by_psycopg(connection: Any, sql: str, parameters: Sequence[Any]) -> Any:
    raw = _open(connection)
    cursor = _class(prepares=conf.get("PREPARE_STATEMENTS"))(raw)
    # As the server stores them.
    cursor.format = _BINARY
    if connection.execute_wrappers or connection.queries_logged:
        make = connection.make_debug_cursor if connection.queries_logged else connection.make_cursor
        cursor = make(cursor)
        cursor.execute(sql, parameters)
    else:
        _execute_unwatched(connection, cursor, sql, parameters)
    return cursor


# psycopg.pq.Format.BINARY
_BINARY = 1


@cache
def _class(*, prepares: bool) -> Any:
    """Return psycopg's cursor, or one that prepares its statements; SQLite needs no psycopg."""
    from psycopg import Cursor

    class PreparingCursor(Cursor[Any]):
        """A cursor that prepares its statements, on a connection that prepares no others."""

        def execute(self, *args: Any, **kwargs: Any) -> Any:
            raw = self.connection
            before = raw.prepare_threshold
            raw.prepare_threshold = PREPARED_AFTER if before is None else before
            try:
                return super().execute(*args, **kwargs)
            finally:
                raw.prepare_threshold = before

    return PreparingCursor if prepares else Cursor
