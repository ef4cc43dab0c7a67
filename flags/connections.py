"""Lost connections: recognising them, and replacing them between transactions.

Django closes a lost connection at the beginning or end of a request. A worker of a queue, a
consumer and a long stream have no requests, so nothing else replaces the connection there.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any, ParamSpec, TypeVar, cast

from django.db import Error, InterfaceError, OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from flags.causes import reraise
from flags.conf import database_alias
from flags.exceptions import OwnError

P = ParamSpec("P")
T = TypeVar("T")

# SQLSTATE: connection exceptions, and sessions that the server ends.
CONNECTION_STATES = ("08", "57P")
# SQLSTATE of a session that the server ended because it slept in a transaction.
SLEPT = "25P03"
_END: Any = object()
# How long to wait while a pool checks its connections.
LOOK_SECONDS = 1.0


def managed(connection: BaseDatabaseWrapper) -> bool:
    """Whether the caller commits: inside its own block, or with autocommit turned off."""
    if connection.in_atomic_block:
        return True
    if connection.connection is None:
        return not connection.settings_dict["AUTOCOMMIT"]
    return not connection.autocommit


def closed(connection: BaseDatabaseWrapper) -> bool:
    """Whether there is no connection, or only one that its driver knows to be closed."""
    driver = connection.connection
    if driver is None:
        return True
    if connection.vendor != "sqlite":
        return bool(getattr(driver, "closed", False))
    try:
        # SQLite's driver shows it in no other way.
        driver.total_changes  # noqa: B018
    except sqlite3.ProgrammingError:
        return True
    return False


def cut_off(error: Exception) -> bool:
    """Whether an error came from the connection, so that the last COMMIT may have arrived.

    The connection itself does not show it: after a failed COMMIT, Django has made a new one.
    """
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    # psycopg's errors have a state, which is None if the server sent none.
    state = getattr(error.__cause__, "sqlstate", "")
    return state is None or state.startswith(CONNECTION_STATES)


def lost(connection: BaseDatabaseWrapper, error: Exception | None = None) -> bool:
    """Whether a connection is unusable, by its own state or by the error that it raised.

    A driver may still think a connection open after the server's farewell. An interrupted driver
    waits for its answer without end. So after such an error, a statement tries the connection.
    """
    if closed(connection):
        return True
    if error is None:
        return False
    slept = getattr(error.__cause__, "sqlstate", None) == SLEPT
    return (slept or cut_off(error)) and not connection.is_usable()


def close_if_lost(connection: BaseDatabaseWrapper, error: Exception | None = None) -> None:
    """Close a lost connection, so that its next use opens a new one.

    A working connection stays. The connection of the caller's transaction stays too, because the
    caller must see the loss: a new one would commit the rest of a block without its beginning.
    """
    if connection.connection is None or managed(connection) or not lost(connection, error):
        return
    connection.close()
    pool = getattr(connection, "pool", None)
    if pool is not None:
        # The pool's other connections were lost at the same time, and would be used next. A thread
        # checks them, and we wait only a second: a silent server makes each check take minutes.
        look = threading.Thread(target=pool.check, name="conversations-pool", daemon=True)
        look.start()
        look.join(LOOK_SECONDS)


def leave_block(connection: BaseDatabaseWrapper, *, inside: bool) -> None:
    """Leave a block that Django failed to leave after an error, unless it was `inside` before.

    If autocommit is off and the savepoint of a block fails, Django never leaves that block. Then
    even a connection that the caller closes could not be opened again.
    """
    if not inside and not connection.savepoint_ids:
        connection.in_atomic_block = False


@contextmanager
def replacing_lost() -> Iterator[None]:
    """Let an error of the database pass, and close its connection if it is lost.

    The error passes as a copy that quotes nothing. An error of ours gets such copies as causes.
    """
    connection = connections[database_alias()]
    inside = connection.in_atomic_block
    outer = sys.exception()
    try:
        yield
    except Error as error:
        leave_block(connection, inside=inside)
        close_if_lost(connection, error)
        reraise(error, outer=outer)
    except OwnError as error:
        reraise(error, outer=outer)


def reconnecting(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function or generator that failed with its connection work when it is called again."""

    @wraps(function)
    def whole(*args: P.args, **kwargs: P.kwargs) -> T:
        with replacing_lost():
            return function(*args, **kwargs)

    @wraps(function)
    def step_by_step(*args: P.args, **kwargs: P.kwargs) -> Any:
        with closing(cast(Any, function(*args, **kwargs))) as steps:
            while True:
                # Anew for each step: the caller may be handling another error by then.
                with replacing_lost():
                    step = next(steps, _END)
                if step is _END:
                    return
                yield step

    return cast("Callable[P, T]", step_by_step) if isgeneratorfunction(function) else whole


def reopened(connection: BaseDatabaseWrapper, work: Callable[[], T]) -> T:
    """Do the work; if its connection was lost while idle, reconnect and do the work again.

    For reads, and for work that may be done twice. Inside a caller's transaction the error stays.

    Raises: django.db.Error.
    """
    before, inside = connection.connection, managed(connection)
    in_block = connection.in_atomic_block
    try:
        return work()
    except Error as error:
        leave_block(connection, inside=in_block)
        if inside or before is None:
            raise
        # The end of a transaction may have connected anew already.
        if connection.connection is before:
            if not lost(connection, error):
                raise
            close_if_lost(connection, error)
        return work()
