"""Writes that only add, in one statement: where the tables alone are written, on PostgreSQL.

The long way of `operations` stays the reference. Whatever cannot be told here goes that way.
"""

from __future__ import annotations

from django.db import Error, connections
from django.utils import timezone

from conversations import conf
from conversations.changes import Operation
from conversations.routing import plan_for
from conversations.stores.normalized import Bumped, append_at_once
from conversations.stores.registry import legacy_store
from conversations.transactions import attempt, lost
from flags.phases import Phase


def added(conversation_id: str, operation: Operation, *, owner: str | None) -> Bumped | None:
    """Carry out an operation, if it only adds to a conversation as it is, in one statement.

    Returns: what the conversation's row says then; None where nothing was changed.
    """
    if connections[conf.alias()].vendor != "postgresql":
        return None
    legacy = legacy_store()
    if plan_for(conversation_id, has_legacy=legacy is not None).phase != Phase.NEW_ONLY:
        return None
    settled = "" if legacy is None else legacy.settled()
    addition = None if settled is None else operation.addition()
    if settled is None or addition is None:
        return None
    now = timezone.now()
    try:
        with attempt():
            return append_at_once(conversation_id, addition, owner=owner, settled=settled, now=now)
    except Error:
        # Legacy did not answer, or another writer had the same key: the long way tells.
        if lost(conf.alias()):
            raise
        return None
