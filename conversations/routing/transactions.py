"""Database errors become errors of ours; the caller's transaction stays usable."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from django.db import Error, IntegrityError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from conversations import conf
from conversations.exceptions import (
    ConversationStoreError,
    StorageUnavailable,
    UnreadableState,
)
from conversations.stores.sql.cursors import cannot_be_read
from flags.causes import reraise
from flags.connections import (
    close_if_lost,
    closed,
    cut_off,
    leave_block,
    lost as connection_lost,
    managed,
)
from flags.schema import MIGRATE, named, not_migrated
from flags.texts import shown

logger = logging.getLogger("conversations")

# How long a lock is waited for in an emergency.
MOMENT = "500ms"


@contextmanager
def translated(
    conversation_id: str, connection: BaseDatabaseWrapper | None = None, *, emergency: bool
) -> Iterator[None]:
    """Turn database errors into StorageUnavailable: an outage never reads as an empty state.

    In an `emergency`, a lock is waited for a moment only.

    When the caller's own transaction is lost with its connection, the database's error is raised.
    A caller that caught ours and continued would lose its rows: Django would end the block without
    an exception and without a commit. A connection lost elsewhere is replaced, so that the repeat
    which the error asks for gets a new one.

    The causes of every error are made safe to log first: see `flags.causes`.
    """
    connection = connection or connections[conf.alias()]
    inside, in_block = managed(connection), connection.in_atomic_block
    outer = sys.exception()
    try:
        if emergency and connection.vendor == "postgresql":
            with _bounded_locks(connection):
                yield
        else:
            yield
    except Error as error:
        leave_block(connection, inside=in_block)
        logger.warning("conversation %s: %s", shown(conversation_id), named(error))
        if inside and connection_lost(connection, error):
            reraise(error, outer=outer)
        close_if_lost(connection, error)
        reraise(error, outer=outer, instead=_problem(conversation_id, error))
    except ConversationStoreError as error:
        missing = isinstance(error, StorageUnavailable) and not_migrated(error)
        if missing and MIGRATE not in str(error):
            reraise(error, outer=outer, instead=unanswered(conversation_id, error))
        reraise(error, outer=outer)


def _problem(conversation_id: str, error: Error) -> StorageUnavailable:
    """Return our error for an error of the database."""
    if cannot_be_read(error):
        return unreadable(conversation_id)
    if cut_off(error):
        return broken_off(conversation_id, error)
    return unanswered(conversation_id, error)


def unreadable(conversation_id: str) -> UnreadableState:
    """Return the error for a column whose value the driver cannot represent."""
    return UnreadableState(
        f"A store holds a value of conversation {shown(conversation_id)} that cannot be read, such"
        " as a text that is no UTF-8, or an infinite time: repair or remove it first."
    )


def broken_off(conversation_id: str, error: Exception) -> StorageUnavailable:
    """Return the error for a lost connection: the operation may be committed."""
    return StorageUnavailable(
        "The connection was lost in an operation on conversation"
        f" {shown(conversation_id)} ({type(error).__name__}): it may have been carried out. Repeat"
        " it with the same state or keys, which adds nothing twice."
    )


def unanswered(conversation_id: str, error: Exception) -> StorageUnavailable:
    """Return the error for a store that refused or failed; it changed no content."""
    name = type(error).__name__
    if isinstance(error, IntegrityError):
        return StorageUnavailable(
            "The database refused the change of an operation on conversation"
            f" {shown(conversation_id)} ({name}): see its cause. Nothing was changed."
        )
    if not_migrated(error):
        return StorageUnavailable(
            f"A table or a column that conversation {shown(conversation_id)} needs is missing"
            f" ({name}): {MIGRATE}, then try again. Nothing was changed."
        )
    return StorageUnavailable(
        f"A store that may hold conversation {shown(conversation_id)} did not answer"
        f" ({name}): try again, nothing was changed."
    )


def attempt(connection: BaseDatabaseWrapper | None = None) -> AbstractContextManager[None]:
    """Return a savepoint inside a transaction, so that a failure leaves the rest intact."""
    connection = connection or connections[conf.alias()]
    return transaction.atomic(using=connection.alias) if managed(connection) else _NOTHING


_NOTHING = nullcontext()


@contextmanager
def _bounded_locks(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """In an emergency, wait only a moment for each lock: the tables may be locked for ever.

    This covers our own COMMIT too: PostgreSQL opens the table a foreign key refers to, even for a
    null. Inside the caller's transaction, the caller's own timeout is restored.
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
    """Whether the connection or its transaction is beyond repair: then let every error pass."""
    connection = connections[using]
    if closed(connection):
        return True
    return connection.in_atomic_block and transaction.get_rollback(using=using)


def give_back() -> None:
    """Return the connections to Django's pools, between transactions.

    A coroutine would keep its connection while it awaits a model's reply. So a pool of ten serves
    thousands that wait. A connection without a pool stays open: to make a new one takes longer.
    """
    for alias in filter(None, (conf.alias(), conf.replica())):
        connection = connections[alias]
        if connection.settings_dict["OPTIONS"].get("pool") and not managed(connection):
            connection.close()
