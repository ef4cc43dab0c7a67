"""What becomes of database errors, and of the caller's transaction."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from django.db import Error, InterfaceError, OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from conversations import conf
from conversations.exceptions import StorageUnavailable
from flags.switches import current_plan

logger = logging.getLogger("conversations")

# How long a lock is waited for in an emergency.
MOMENT = "500ms"
# SQLSTATE: connection exceptions, and sessions that the server ends.
CONNECTION_STATES = ("08", "57P")


@contextmanager
def translated(
    conversation_id: str, connection: BaseDatabaseWrapper | None = None
) -> Iterator[None]:
    """Turn database errors into StorageUnavailable: never into an empty state.

    Where the caller's own transaction is lost with its connection, the error stays what it is.
    A caller who caught ours and went on would lose their rows: Django then ends their block
    without an exception, and without a commit.
    """
    connection = connection or connections[conf.alias()]
    inside = managed(connection)
    try:
        if connection.vendor == "postgresql" and current_plan().emergency:
            with _patience(connection):
                yield
        else:
            yield
    except Error as error:
        name = type(error).__name__
        logger.warning("conversation %s: %s", conversation_id, name)
        if inside and lost_connection():
            raise
        if _cut_off(error):
            raise StorageUnavailable(
                f"The connection was lost in an operation on conversation {conversation_id}"
                f" ({name}): it may have been carried out. Repeat it with the same state or keys,"
                " which adds nothing twice."
            ) from error
        raise StorageUnavailable(
            f"A store that may hold conversation {conversation_id} did not answer"
            f" ({name}): try again, nothing was changed."
        ) from error


def _cut_off(error: Error) -> bool:
    """Whether an error came from the connection, so that the last COMMIT may have arrived.

    The connection itself does not tell: after a COMMIT that failed, Django has made a new one.
    """
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    # psycopg's errors have a state, which is None where the server said nothing.
    state = getattr(error.__cause__, "sqlstate", "")
    return state is None or state.startswith(CONNECTION_STATES)


def managed(connection: BaseDatabaseWrapper) -> bool:
    """Whether the caller commits: in a block of theirs, or where they turned autocommit off."""
    if connection.in_atomic_block:
        return True
    if connection.connection is None:
        return not connection.settings_dict["AUTOCOMMIT"]
    return not connection.autocommit


def attempt(connection: BaseDatabaseWrapper | None = None) -> AbstractContextManager[None]:
    """A savepoint inside a transaction, so that a failure in it breaks nothing else."""
    connection = connection or connections[conf.alias()]
    return transaction.atomic(using=connection.alias) if managed(connection) else _NOTHING


_NOTHING = nullcontext()


@contextmanager
def _patience(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """In an emergency, wait for no lock longer than a moment: the tables may be locked for ever.

    That holds for our own COMMIT as well, where PostgreSQL opens what a foreign key refers to,
    even for a null. Inside the caller's transaction, the caller's own patience is restored.
    """
    ours = not managed(connection)
    with transaction.atomic(using=conf.alias()), connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('lock_timeout')")
        (before,) = cursor.fetchone()
        cursor.execute("SELECT set_config('lock_timeout', %s, true)", [MOMENT])
        yield
        if not ours:
            cursor.execute("SELECT set_config('lock_timeout', %s, true)", [before])


def lost(using: str) -> bool:
    """Whether the connection or its transaction is beyond repair: nothing may be caught then."""
    connection = connections[using]
    if connection.connection is None or getattr(connection.connection, "closed", False):
        return True
    return connection.in_atomic_block and transaction.get_rollback(using=using)


def lost_connection() -> bool:
    """Whether the connection itself is gone, as opposed to one statement having failed."""
    connection = connections[conf.alias()]
    return connection.connection is None or bool(getattr(connection.connection, "closed", False))


def give_back() -> None:
    """Return the connection to the pool of Django's that it comes from, between transactions.

    Whoever awaits a model's reply would keep it all the while; a pool of ten is for thousands
    who wait. A connection without a pool stays open: to make a new one takes longer.
    """
    connection = connections[conf.alias()]
    if not connection.settings_dict["OPTIONS"].get("pool"):
        return
    if not connection.in_atomic_block and connection.get_autocommit():
        connection.close()
