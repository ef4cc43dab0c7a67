"""Writes that only add, where the tables alone are written: in one statement on PostgreSQL.

On SQLite they are three, but without the cost of Django's queries. The long way in `write` stays
the reference; an operation that cannot be decided here goes that way.
"""

from __future__ import annotations

from django.db import Error, IntegrityError, NotSupportedError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from conversations.content.changes import Operation
from conversations.routing.locks import lock_database
from conversations.routing.standing import Decision
from conversations.routing.transactions import attempt, lost
from conversations.stores.normalized import Bumped, append_at_once, append_in_steps
from flags.phases import Phase

# Errors that do not mean that the tables fail.
_TOLD = (IntegrityError, NotSupportedError)


def added(
    connection: BaseDatabaseWrapper,
    conversation_id: str,
    operation: Operation,
    decision: Decision,
    *,
    owner: str | None,
) -> Bumped | None:
    """Carry out an operation, if it only adds to a conversation as it is.

    Returns: what the conversation's row says then; None where nothing was changed.
    """
    if decision.plan.phase != Phase.NEW_ONLY:
        return None
    unchanged = "" if decision.legacy is None else decision.legacy.token_unchanged_sql()
    addition = None if unchanged is None else operation.addition()
    if unchanged is None or addition is None:
        return None
    now = timezone.now()
    try:
        if connection.vendor == "postgresql":
            with attempt(connection):
                return append_at_once(
                    connection,
                    conversation_id,
                    addition,
                    owner=owner,
                    unchanged=unchanged,
                    now=now,
                )
        with transaction.atomic(using=connection.alias):
            lock_database(connection)
            bumped = append_in_steps(
                connection,
                conversation_id,
                addition,
                owner=owner,
                unchanged=unchanged,
                now=now,
            )
            if bumped is None:
                # Nothing was written, and the long way begins anew.
                transaction.set_rollback(True, using=connection.alias)
            return bumped
    except Error as error:
        # Another writer may have had the same key, legacy may not answer, and a plan that was
        # prepared may be of columns that have another type now: the long way tells.
        if lost(connection.alias) or not (unchanged or isinstance(error, _TOLD)):
            raise
        return None
