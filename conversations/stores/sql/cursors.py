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

from django.db import DataError, Error
from django.db.backends.base.base import BaseDatabaseWrapper

from conversations.stores.sql.prepared import SESSION, is_idle, is_stale, session_of

# SQLite's error for text that is no UTF-8: other code may have written such bytes.
_NO_TEXT = "Could not decode to UTF-8"


def cannot_be_read(error: BaseException) -> bool:
    """Whether the database answered with a value that its driver cannot represent.

    PostgreSQL: a time before the year 1 or after 9999, such as infinity; SQLite: text that is no
    UTF-8.
    """
    return isinstance(error, DataError) or _NO_TEXT in str(error)


def execute(
    connection: BaseDatabaseWrapper, sql: str, parameters: Sequence[Any], *, may_fail: bool = False
) -> Any:
    """Execute a statement whose parameters the server binds. Returns: the cursor, to fetch from.

    It uses Django's connection, and its execute wrappers and query log if there are any. On
    PostgreSQL it is prepared where that is safe (see `prepared`); `may_fail` says that a constraint
    may refuse it.

    Raises: django.db.Error. Fetching may raise the driver's errors (SQLite reads a row when it is
    fetched): fetch inside `connection.wrap_database_errors`.
    """
    # A `cursor` attribute on the instance means that a test or a tool watches or blocks it.
    kind: Any = type(connection)
    if "cursor" not in vars(connection) and _gives_djangos(kind):
        if connection.vendor == "postgresql":
            return _execute_by_psycopg(connection, sql, parameters, may_fail=may_fail)
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


def _execute_unwatched(
    connection: Any, driver: Any, sql: str, parameters: Sequence[Any], **options: Any
) -> Any:
    """Execute like Django's cursor when nothing watches: that takes a tenth of a load.

    `driver` is the driver's cursor, or its connection. Returns: the cursor.
    """
    if connection.needs_rollback:
        connection.validate_no_broken_transaction()
    try:
        return driver.execute(sql, parameters, **options)
    except connection.Database.Error:
        with connection.wrap_database_errors:
            raise


_PLACEHOLDER = re.compile("%%|%s")


@lru_cache(maxsize=256)
def _with_placeholders(sql: str) -> str:
    """Return a statement with SQLite's placeholders."""
    return _PLACEHOLDER.sub(lambda found: "?" if found[0] == "%s" else "%", sql)


def _execute_by_psycopg(
    connection: Any, sql: str, parameters: Sequence[Any], *, may_fail: bool
) -> Any:
    raw = _open(connection)
    session = getattr(raw, SESSION, None) or session_of(raw)
    prepare = session.prepares(raw, sql, may_fail=may_fail)
    try:
        cursor = _run(connection, raw, sql, parameters, prepare)
    except Error as error:
        stale = prepare is not False and is_stale(error.__cause__ or error)
        # The preparation of one that failed may stand in the server, and psycopg does not know it.
        session.is_stale = session.is_stale or stale or (may_fail and prepare is True)
        if stale and is_idle(raw):
            return _run(connection, raw, sql, parameters, False)
        raise
    if may_fail and prepare is False:
        session.texts.add(sql)
    return cursor


def _run(connection: Any, raw: Any, sql: str, parameters: Sequence[Any], prepare: Any) -> Any:
    plain, told, wide = _psycopg()
    # A small and a large integer would make a statement of its own each.
    bound = list(parameters)
    for place, value in enumerate(bound):
        if value.__class__ is int:
            bound[place] = wide(value)
    if not (connection.execute_wrappers or connection.queries_logged):
        cursor = plain(raw)
        cursor.format = _BINARY
        return _execute_unwatched(connection, cursor, sql, bound, prepare=prepare)
    cursor = told(raw)
    # Of a prepared statement, psycopg keeps no text for Django's query log.
    cursor.format, cursor.prepare = _BINARY, False if connection.queries_logged else prepare
    make = connection.make_debug_cursor if connection.queries_logged else connection.make_cursor
    watched = make(cursor)
    watched.execute(sql, bound)
    return watched


# psycopg.pq.Format.BINARY: results come as the server stores them.
_BINARY = 1


@cache
def _psycopg() -> Any:
    """Return psycopg's cursor, one that is told what it prepares, and an integer of eight bytes.

    SQLite needs no psycopg.
    """
    from psycopg import Cursor
    from psycopg.types.numeric import Int8

    class ToldCursor(Cursor[Any]):
        """A cursor that is told beforehand whether it prepares: Django's pass no keywords."""

        prepare: bool | None = None

        def execute(self, query: Any, params: Any = None, **kwargs: Any) -> Any:
            return super().execute(query, params, prepare=self.prepare)

    return Cursor, ToldCursor, Int8
