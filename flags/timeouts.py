"""Reading a database that may be locked, slow or dead, with a bounded wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from flags.conf import database_alias
from flags.connections import managed, reopened
from flags.exceptions import TimeIsUp

T = TypeVar("T")

MILLISECOND = timedelta(milliseconds=1)
# One locked table must not use up the time of the others.
LOCKED = timedelta(milliseconds=200)
# psycopg tries for two seconds at least, also if asked for less; per address of the server.
CONNECT_SECONDS = 1


class Deadline:
    """A span of time for several reads, each bounded; it begins when this object is made.

    On PostgreSQL, lock_timeout and statement_timeout bound a read. On SQLite, busy_timeout does; a
    statement that has its lock runs to its end. connect_timeout bounds a new connection, unless
    the host sets its own or has a pool. If the server of an open connection vanishes silently, the
    operating system alone bounds the read (see tcp_user_timeout of libpq).
    """

    def __init__(self, span: timedelta) -> None:
        self._ends = time.monotonic() + span.total_seconds()

    def read(self, work: Callable[[], T]) -> T:
        """Return the result of a read; the caller's transaction survives a failure.

        A connection that was lost while idle is opened anew, once.

        Raises: django.db.Error, TimeIsUp if the time is up before the read begins.
        """
        connection = connections[database_alias()]
        return reopened(connection, lambda: self._bounded(connection, work))

    def _bounded(self, connection: BaseDatabaseWrapper, work: Callable[[], T]) -> T:
        left = timedelta(seconds=self._ends - time.monotonic())
        if left < MILLISECOND:
            raise TimeIsUp
        if connection.vendor == "sqlite":
            with _on_sqlite(connection, left):
                return work()
        with connected(connection), _on_postgresql(connection, left):
            return work()


@contextmanager
def _on_postgresql(connection: BaseDatabaseWrapper, left: timedelta) -> Iterator[None]:
    inside = managed(connection)
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('lock_timeout'), current_setting('statement_timeout'),"
            " set_config('lock_timeout', %s, true), set_config('statement_timeout', %s, true)",
            [str(min(left, LOCKED) // MILLISECOND), str(left // MILLISECOND)],
        )
        before = cursor.fetchone()[:2]
        yield
        if inside:
            # Restore the caller's timeouts. A rollback to the savepoint restores them by itself.
            cursor.execute(
                "SELECT set_config('lock_timeout', %s, true),"
                " set_config('statement_timeout', %s, true)",
                before,
            )


@contextmanager
def _on_sqlite(connection: BaseDatabaseWrapper, left: timedelta) -> Iterator[None]:
    """Bound the wait for a lock; open no transaction, because it would lock too (IMMEDIATE)."""
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout")
        (before,) = cursor.fetchone()
        cursor.execute(f"PRAGMA busy_timeout = {min(left, LOCKED) // MILLISECOND}")
    try:
        if managed(connection):
            with transaction.atomic(using=connection.alias):
                yield
        else:
            yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"PRAGMA busy_timeout = {before}")


@contextmanager
def connected(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Connect if there is no connection, and bound the wait for the server."""
    before = connection.settings_dict
    options = before.get("OPTIONS") or {}
    server = connection.vendor != "sqlite"
    if server and connection.connection is None and not {"pool", "connect_timeout"} & set(options):
        # The connections of all threads share the mapping, so do not change it.
        options = {**options, "connect_timeout": CONNECT_SECONDS}
        connection.settings_dict = {**before, "OPTIONS": options}
        try:
            connection.ensure_connection()
        finally:
            connection.settings_dict = before
    yield
