"""Cursors for the statements of every load and save, with fewer calls around each of them.

On PostgreSQL Django's own cursor writes parameters into the text of a statement, and asks for
its results as text: that costs twice as much as parameters that the server binds. On SQLite it
looks through the whole text for placeholders, each time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from conversations import conf

# psycopg's own default: how often a statement comes before it is prepared.
PREPARED_AFTER = 5


def executed(connection: BaseDatabaseWrapper, sql: str, parameters: Sequence[Any]) -> Any:
    """Execute a statement whose parameters the server binds. Returns: the cursor, to fetch from.

    It goes through Django's connection, and where there are execute wrappers, or queries
    are logged, through those. It is prepared where the host allows that, by
    `PREPARE_STATEMENTS` or by the connection's own `prepare_threshold`; no other statement is.

    Raises: django.db.Error. What fetching raises (SQLite reads a row when it is fetched) may be
    the driver's: fetch inside `connection.wrap_database_errors`.
    """
    # A method of its own is how a connection is watched, or kept from being used in a test.
    kind: Any = type(connection)
    if "cursor" not in vars(connection) and _gives_djangos(kind):
        if connection.vendor == "postgresql":
            return _executed_by_psycopg(connection, sql, parameters)
        if connection.vendor == "sqlite" and not _watched(connection):
            return _executed_by_sqlite(connection, sql, parameters)
    cursor: Any = connection.cursor()
    cursor.execute(sql, parameters)
    return cursor


_GIVING = ("cursor", "_cursor", "create_cursor", "make_cursor", "_prepare_cursor")


@cache
def _gives_djangos(kind: Any) -> bool:
    """Whether a backend's cursors are Django's: another's may first choose the tenant's schema."""
    return all(getattr(kind, name).__module__.startswith("django.") for name in _GIVING)


def _watched(connection: Any) -> bool:
    return bool(connection.execute_wrappers) or connection.queries_logged


def _open(connection: Any) -> Any:
    """Return the driver's connection, after all that Django does before it gives a cursor."""
    connection.validate_thread_sharing()
    if connection.health_check_enabled and not connection.health_check_done:
        # One that the server closed is replaced.
        connection.close_if_health_check_failed()
    connection.ensure_connection()
    return connection.connection


def _execute(connection: Any, driver: Any, sql: str, parameters: Sequence[Any]) -> Any:
    """Do what Django's cursor does where nobody looks on: that takes a tenth of a load.

    `driver` is the driver's cursor, or what makes one to execute a statement. Returns: the cursor.
    """
    if connection.needs_rollback:
        connection.validate_no_broken_transaction()
    try:
        return driver.execute(sql, parameters)
    except connection.Database.Error:
        with connection.wrap_database_errors:
            raise


def _executed_by_sqlite(connection: Any, sql: str, parameters: Sequence[Any]) -> Any:
    # Its connection makes the cursor, or refuses where somebody has closed it.
    return _execute(connection, _open(connection), _placed(sql), parameters)


_PLACEHOLDER = re.compile("%%|%s")


@lru_cache(maxsize=256)
def _placed(sql: str) -> str:
    """Return a statement with SQLite's placeholders."""
    return _PLACEHOLDER.sub(lambda found: "?" if found[0] == "%s" else "%", sql)


def _executed_by_psycopg(connection: Any, sql: str, parameters: Sequence[Any]) -> Any:
    raw = _open(connection)
    cursor = _class(prepares=conf.get("PREPARE_STATEMENTS"))(raw)
    # As the server has them.
    cursor.format = _BINARY
    if _watched(connection):
        make = connection.make_debug_cursor if connection.queries_logged else connection.make_cursor
        cursor = make(cursor)
        cursor.execute(sql, parameters)
    else:
        _execute(connection, cursor, sql, parameters)
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
