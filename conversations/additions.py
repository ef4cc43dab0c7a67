"""Writes that only add, where the tables alone are written: in one statement on PostgreSQL.

On SQLite they are three, but without what Django's queries cost. The long way of `operations`
stays the reference; whatever cannot be told here goes that way.
"""

from __future__ import annotations

from django.db import Error, IntegrityError, NotSupportedError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from conversations.changes import Operation
from conversations.locking import lock_database
from conversations.routing import plan_for
from conversations.stores.normalized import Bumped, append_at_once, append_in_steps
from conversations.stores.registry import legacy_store
from conversations.transactions import attempt, lost
from flags.phases import Phase

# Errors that do not mean that the tables fail.
_TOLD = (IntegrityError, NotSupportedError)


def added(
    connection: BaseDatabaseWrapper,
    conversation_id: str,
    operation: Operation,
    *,
    owner: str | None,
) -> Bumped | None:
    """Carry out an operation, if it only adds to a conversation as it is.

    Returns: what the conversation's row says then; None where nothing was changed.
    """
    legacy = legacy_store()
    if plan_for(conversation_id, has_legacy=legacy is not None).phase != Phase.NEW_ONLY:
        return None
    settled = "" if legacy is None else legacy.settled()
    addition = None if settled is None else operation.addition()
    if settled is None or addition is None:
        return None
    now = timezone.now()
    try:
        if connection.vendor == "postgresql":
            with attempt(connection):
                return append_at_once(
                    connection, conversation_id, addition, owner=owner, settled=settled, now=now
                )
        with transaction.atomic(using=connection.alias):
            lock_database(connection)
            bumped = append_in_steps(
                connection, conversation_id, addition, owner=owner, settled=settled, now=now
            )
            if bumped is None:
                # Nothing was written, and the long way begins anew.
                transaction.set_rollback(True, using=connection.alias)
            return bumped
    except Error as error:
        # Another writer may have had the same key, legacy may not answer, and a plan that was
        # prepared may be of columns that have another type now: the long way tells.
        if lost(connection.alias) or not (settled or isinstance(error, _TOLD)):
            raise
        return None
