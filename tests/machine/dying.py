"""Processes that are killed in the middle of an operation, at a statement or around its COMMIT.

The death is one of the connection: the server (or SQLite's file) sees it end without a word, as
when a process is killed, and rolls back what was not committed. A BaseException then unwinds the
Python code above, and every further statement of the operation meets a closed connection.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from unittest import mock

from django.db import connection

from flags.switches import snapshot
from tests.flags.test_fence import until_true

WRITES = ("INSERT", "UPDATE", "DELETE", "WITH", "COPY")


class Killed(BaseException):
    """The process is no more. Nothing in the project catches this."""


class When(StrEnum):
    """Where in an operation a process dies."""

    BEFORE = "before a statement"
    AFTER = "after a statement"
    BEFORE_COMMIT = "before the COMMIT"
    # The database is done, and its answer came; the caller never got ours.
    AFTER_COMMIT = "after the COMMIT"
    # COMMIT was sent, and nobody waited (SQLite, which nothing is sent to: as AFTER_COMMIT).
    IN_COMMIT = "in the COMMIT"


@dataclass(frozen=True)
class Moment:
    """When a process dies: at the `nth` statement or transaction, from 1."""

    when: When
    nth: int


@dataclass
class Fate:
    """What became of an operation. `committed` is None where only the database knows."""

    result: Any = None
    died: bool = False
    committed: bool | None = False


def fate_of(moment: Moment, call: Callable[[], Any]) -> Fate:
    """Carry out an operation in a process that dies then; what comes after is another process."""
    fate = Fate()
    pid = backend()
    try:
        with _dying(moment, fate):
            fate.result = call()
    except Killed:
        connection.close()
        # A new process knows no settings.
        snapshot.forget()
        if pid is not None:
            until_true(lambda: not _alive(pid))
    return fate


@contextmanager
def _dying(moment: Moment, fate: Fate) -> Iterator[None]:
    counts = dict.fromkeys(When, 0)

    def die_if(when: When) -> None:
        counts[when] += 1
        if moment == Moment(when, counts[when]):
            fate.died = True
            cut()
            raise Killed

    def statement(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if fate.died:
            raise Killed
        die_if(When.BEFORE)
        result = execute(sql, params, many, context)
        if not connection.in_atomic_block and sql.startswith(WRITES):
            fate.committed = True
        die_if(When.AFTER)
        return result

    original = connection._commit

    def commit() -> None:
        die_if(When.BEFORE_COMMIT)
        last = moment == Moment(When.IN_COMMIT, counts[When.IN_COMMIT] + 1)
        if last and connection.vendor == "postgresql":
            connection.connection.pgconn.send_query(b"COMMIT")
            connection.connection.pgconn.flush()
            fate.committed = None
        else:
            original()
            fate.committed = True
        die_if(When.IN_COMMIT)
        die_if(When.AFTER_COMMIT)

    # A connection that is there already: what Django sends to a new one is no part of it.
    connection.ensure_connection()
    with connection.execute_wrapper(statement), mock.patch.object(connection, "_commit", commit):
        yield


def cut() -> None:
    """End the connection as the death of its process does: without a word to the server."""
    raw = connection.connection
    if connection.vendor == "postgresql":
        with socket.socket(fileno=os.dup(raw.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)
    else:
        raw.rollback()
    raw.close()
    # Or Django would talk to what is closed where it unwinds, and raise that instead.
    connection.close()


def backend() -> int | None:
    """Return the id of the server's process behind our connection (PostgreSQL only)."""
    if connection.vendor != "postgresql":
        return None
    connection.ensure_connection()
    return int(connection.connection.info.backend_pid)


def _alive(pid: int) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [pid])
        return bool(cursor.fetchone()[0])
