"""Cursors for the statements of every load and save.

On PostgreSQL Django's own cursor writes parameters into the text of a statement, and asks for
its results as text: that costs twice as much as parameters that the server binds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
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

    Raises: django.db.Error.
    """
    if connection.vendor != "postgresql" or "cursor" in vars(connection):
        # A method of its own is how a connection is watched, or kept from being used in a test.
        cursor: Any = connection.cursor()
        cursor.execute(sql, parameters)
        return cursor
    return _bound(connection, sql, parameters)


def _bound(connection: Any, sql: str, parameters: Sequence[Any]) -> Any:
    """Do what Django's `connection.cursor().execute` does, in fewer calls."""
    connection.validate_thread_sharing()
    if connection.health_check_enabled and not connection.health_check_done:
        # As Django does before a cursor: a connection that the server closed is replaced.
        connection.close_if_health_check_failed()
    connection.ensure_connection()
    cursor = _class(prepares=conf.get("PREPARE_STATEMENTS"))(connection.connection)
    # As the server has them.
    cursor.format = _BINARY
    if connection.queries_logged or connection.execute_wrappers:
        make = connection.make_debug_cursor if connection.queries_logged else connection.make_cursor
        cursor = make(cursor)
        cursor.execute(sql, parameters)
        return cursor
    # What Django's wrapper does where nobody looks on takes a tenth of a load.
    if connection.needs_rollback:
        connection.validate_no_broken_transaction()
    try:
        cursor.execute(sql, parameters)
    except connection.Database.Error:
        with connection.wrap_database_errors:
            raise
    return cursor


# psycopg.pq.Format.BINARY
_BINARY = 1


@cache
def _class(*, prepares: bool) -> Any:
    """Return psycopg's cursor, or one that prepares its statements: SQLite needs neither."""
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
