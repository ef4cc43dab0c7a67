"""What becomes of database errors, and of the caller's transaction."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from django.db import Error, connections, transaction

from conversations import conf
from conversations.exceptions import StorageUnavailable

logger = logging.getLogger("conversations")


@contextmanager
def translated(conversation_id: str) -> Iterator[None]:
    """Turn database errors into StorageUnavailable: never into an empty state."""
    try:
        yield
    except Error as error:
        logger.warning("conversation %s: %s", conversation_id, type(error).__name__)
        raise StorageUnavailable(
            f"A store that may hold conversation {conversation_id} did not answer"
            f" ({type(error).__name__}): try again, nothing was changed."
        ) from error


def attempt() -> AbstractContextManager[None]:
    """A savepoint inside a transaction, so that a failure in it breaks nothing else."""
    using = conf.alias()
    if connections[using].in_atomic_block:
        return transaction.atomic(using=using)
    return nullcontext()


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
