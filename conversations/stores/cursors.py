"""Cursors for the statements of every load and save.

On PostgreSQL Django's own cursor writes parameters into the text of a statement, and asks for
its results as text: that costs twice as much as parameters that the server binds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections

from conversations import conf

# psycopg's own default: how often a statement comes before it is prepared.
PREPARED_AFTER = 5


@contextmanager
def bound_cursor(using: str | None = None) -> Iterator[Any]:
    """Open a cursor on Django's own connection, whose parameters the server binds.

    Execute wrappers and the log of queries see it as any other. A statement is prepared where
    the host allows that, by `PREPARE_STATEMENTS` or by the connection's own `prepare_threshold`;
    nobody else's statements are.
    """
    connection = connections[using or conf.alias()]
    if connection.vendor != "postgresql":
        with connection.cursor() as cursor:
            yield cursor
        return
    from psycopg import Cursor
    from psycopg.pq import Format

    connection.validate_thread_sharing()
    connection.ensure_connection()
    raw: Any = connection.connection
    with connection.wrap_database_errors:
        bound: Any = Cursor(raw)
    bound.format = Format.BINARY
    wrapped = connection.make_debug_cursor if connection.queries_logged else connection.make_cursor
    before = raw.prepare_threshold
    if before is None and conf.get("PREPARE_STATEMENTS"):
        raw.prepare_threshold = PREPARED_AFTER
    try:
        with wrapped(bound) as cursor:
            yield cursor
    finally:
        raw.prepare_threshold = before
