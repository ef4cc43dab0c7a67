"""Whether a conversation exists: the answer of a load, without reading content."""

from __future__ import annotations

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from conversations import conf
from conversations.exceptions import ConversationNotFound
from conversations.reading.load_stepwise import at_truth
from conversations.routing.owners import may_read
from conversations.routing.standing import Decision, decide
from conversations.routing.transactions import attempt, lost, translated, unanswered
from conversations.stores.normalized import load_owner
from flags.phases import StoreName


def exists(conversation_id: str, *, owner: str | None) -> bool:
    """Return whether a store holds a conversation that `owner` (None: any caller) may read.

    One statement where the tables know it, a second one where only legacy may.

    Raises: StorageUnavailable when a store that may hold it did not answer.
    """
    connection, decision = connections[conf.alias()], decide(conversation_id)
    with translated(conversation_id, connection, emergency=decision.emergency):
        try:
            return _exists(connection, conversation_id, owner, decision)
        except ConversationNotFound:
            return False


def _exists(
    connection: BaseDatabaseWrapper,
    conversation_id: str,
    owner: str | None,
    decision: Decision,
) -> bool:
    legacy = decision.legacy
    try:
        with attempt(connection):
            found = load_owner(connection, conversation_id)
    except Error as error:
        if legacy is None or lost(connection.alias):
            raise
        if decision.plan.reads != StoreName.LEGACY:
            raise
        # As a load does: a conversation in legacy exists; any other may exist in the tables.
        with attempt(connection):
            held, actual = legacy.owner(conversation_id)
        if not held or not may_read(owner, actual=actual):
            raise unanswered(conversation_id, error) from error
        return True
    if found is None:
        if legacy is None:
            return False
        with attempt(connection):
            held, actual = legacy.owner(conversation_id)
        return held and may_read(owner, actual=actual)
    if found.deleted or owner is None:
        return not found.deleted
    if found.owner is None and legacy is not None:
        # Old code may have given the conversation to a user; a merge finds out.
        return at_truth(conversation_id, decision, owner=owner) is not None
    return may_read(owner, actual=found.owner)
