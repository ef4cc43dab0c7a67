"""Writes that only add, where the tables alone are written: in one statement on PostgreSQL.

On SQLite they are three, but without the cost of Django's queries. The long way in `write` stays
the reference; operations that do more go that way.
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

# Errors of the statement, not of the tables: the long way finds their reason.
_TOLD = (IntegrityError, NotSupportedError)


def try_append(
    connection: BaseDatabaseWrapper,
    conversation_id: str,
    operation: Operation,
    decision: Decision,
    *,
    owner: str | None,
) -> Bumped | None:
    """Carry out an operation, if it only adds to a conversation.

    Returns: the row's new numbers; None without a change: then the long way has to run.
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
                # No row was written; the long way begins again.
                transaction.set_rollback(True, using=connection.alias)
            return bumped
    except Error as error:
        # The long way finds the reason. Another writer used the same key, legacy fails, or a
        # prepared plan is older than a change of its columns' types.
        if lost(connection.alias) or not (unchanged or isinstance(error, _TOLD)):
            raise
        return None
