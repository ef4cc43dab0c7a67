"""Looking at a database that may be locked, slow or dead, without waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from django.db import Error, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from flags.conf import database_alias
from flags.exceptions import OutOfPatience

T = TypeVar("T")

MILLISECOND = timedelta(milliseconds=1)
# One locked table must not use up what the others have.
LOCKED = timedelta(milliseconds=200)
# psycopg tries for two seconds at least, whatever is asked for; per address of the server.
CONNECT_SECONDS = 1


class Patience:
    """A span of time for several reads, each bounded; begins to run when it is made.

    PostgreSQL: by lock_timeout and statement_timeout. SQLite: by busy_timeout; a statement that
    got its lock runs to its end. A new connection is bounded by connect_timeout, unless the host
    sets its own or has a pool; one that is open and whose server vanished without a word is
    bounded by the system alone (see tcp_user_timeout of libpq).
    """

    def __init__(self, span: timedelta) -> None:
        self._ends = time.monotonic() + span.total_seconds()

    def read(self, work: Callable[[], T]) -> T:
        """Return what a read gives; the caller's transaction is as before, also where it fails.

        A connection that was lost while it was idle is opened anew, once.

        Raises: django.db.Error, OutOfPatience when the time was up before it began.
        """
        connection = connections[database_alias()]
        return reopened(connection, lambda: self._bounded(connection, work))

    def _bounded(self, connection: BaseDatabaseWrapper, work: Callable[[], T]) -> T:
        left = timedelta(seconds=self._ends - time.monotonic())
        if left < MILLISECOND:
            raise OutOfPatience
        if connection.vendor == "sqlite":
            with _on_sqlite(connection, left):
                return work()
        with connected(connection), _on_postgresql(connection, left):
            return work()


def reopened(connection: BaseDatabaseWrapper, work: Callable[[], T]) -> T:
    """Do something; where its connection was lost while idle, open it anew and do it again.

    Raises: django.db.Error.
    """
    before = connection.connection
    try:
        return work()
    except Error:
        # The end of a transaction may have connected anew already.
        gone = connection.connection is not before or getattr(before, "closed", False)
        if connection.in_atomic_block or before is None or not gone:
            raise
        connection.close()
        return work()


@contextmanager
def _on_postgresql(connection: BaseDatabaseWrapper, left: timedelta) -> Iterator[None]:
    inside = connection.in_atomic_block
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('lock_timeout'), current_setting('statement_timeout'),"
            " set_config('lock_timeout', %s, true), set_config('statement_timeout', %s, true)",
            [str(min(left, LOCKED) // MILLISECOND), str(left // MILLISECOND)],
        )
        before = cursor.fetchone()[:2]
        yield
        if inside:
            # The caller's own patience; a rollback to the savepoint brings it back by itself.
            cursor.execute(
                "SELECT set_config('lock_timeout', %s, true),"
                " set_config('statement_timeout', %s, true)",
                before,
            )


@contextmanager
def _on_sqlite(connection: BaseDatabaseWrapper, left: timedelta) -> Iterator[None]:
    """Bound the wait for a lock; open no transaction, which would itself lock (IMMEDIATE)."""
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout")
        (before,) = cursor.fetchone()
        cursor.execute(f"PRAGMA busy_timeout = {min(left, LOCKED) // MILLISECOND}")
    try:
        if connection.in_atomic_block:
            with transaction.atomic(using=connection.alias):
                yield
        else:
            yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"PRAGMA busy_timeout = {before}")


@contextmanager
def connected(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Connect, if need be, and wait for a server no longer than a moment."""
    before = connection.settings_dict
    options = before.get("OPTIONS") or {}
    server = connection.vendor != "sqlite"
    if server and connection.connection is None and not {"pool", "connect_timeout"} & set(options):
        # The mapping is shared by the connections of all threads: leave it as it is.
        options = {**options, "connect_timeout": CONNECT_SECONDS}
        connection.settings_dict = {**before, "OPTIONS": options}
        try:
            connection.ensure_connection()
        finally:
            connection.settings_dict = before
    yield
