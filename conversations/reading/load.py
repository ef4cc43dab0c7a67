"""Load one conversation: as of one revision, from a store that is current, without a lock.

Mostly one statement suffices, which sees one moment. Otherwise the load goes step by step.
"""

from __future__ import annotations

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from conversations import conf
from conversations.content.entries import NOTHING
from conversations.content.field_codec import decode_fields
from conversations.exceptions import ConversationStoreError, UnreadableState
from conversations.reading.load_stepwise import Reader, noted, read_in_steps
from conversations.reading.loaded import (
    EVERYTHING,
    Cut,
    Loaded,
    Raced,
    Selection,
    of_both,
    of_legacy,
    of_tables,
)
from conversations.routing.owners import check_owner
from conversations.routing.replicas import chosen_replica, replicated
from conversations.routing.standing import Decision, truth_by_numbers, truth_by_token_value
from conversations.routing.transactions import attempt, lost, translated
from conversations.routing.truth import Truth
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import (
    Head,
    load_at_once,
    load_row_at_once,
)
from flags import breaker, metrics
from flags.conf import read_breaker
from flags.connections import leave_block, managed
from flags.phases import StoreName


class _Behind(Exception):
    """The replica does not hold the revision of the primary's row, or does not answer."""


def read(
    conversation_id: str, selection: Selection, decision: Decision, *, owner: str | None
) -> Loaded | None:
    """Return the content of a conversation, or None when no store holds it.

    Raises: ConversationNotFound when it is another owner's, StorageUnavailable when a store
    that may hold it did not answer.
    """
    for wider in selection.widened():
        try:
            return _read(Reader(conversation_id, wider, owner, decision, decision.legacy))
        except Cut:
            continue
    raise AssertionError("everything was read")


def _read(reader: Reader) -> Loaded | None:
    conversation_id, connection = reader.conversation_id, connections[conf.alias()]
    in_block = connection.in_atomic_block
    failure: Exception | None = None
    try:
        return _at_once(reader, connection)
    except Raced:
        pass
    except (Error, ConversationStoreError) as error:
        leave_block(connection, inside=in_block)
        failure = error
    with translated(conversation_id, connection, emergency=reader.decision.emergency):
        if failure is not None:
            raise failure
        return read_in_steps(conversation_id, reader)


def _at_once(reader: Reader, connection: BaseDatabaseWrapper) -> Loaded | None:
    """Read the preferred store where it is current: one statement, two with items of the tables.

    Raises: Raced where it may not be current; the load then goes step by step. Error where the
    connection is lost, or the caller's transaction.
    """
    decision = reader.decision
    if decision.emergency:
        raise Raced
    if read_breaker() and breaker.reads.opened():
        raise Raced
    legacy, plan = decision.legacy, decision.plan
    from_legacy = legacy is not None and plan.reads == StoreName.LEGACY
    if legacy and from_legacy and not (legacy.exact or plan.writes_normalized):
        # A jsonb column needs superseded versions to restore key order; the one-statement load
        # does not read them.
        raise Raced
    preferred = _read_legacy if from_legacy else _read_tables
    try:
        if managed(connection):
            # Callers see their own writes there. The savepoint keeps these through an error.
            with attempt(connection):
                return preferred(reader, connection)
        replica = None if from_legacy or conf.replica() is None else chosen_replica()
        if replica is not None:
            try:
                return _read_replica(reader, connection, replica)
            except _Behind:
                pass
        return preferred(reader, connection)
    except Error as error:
        if lost(connection.alias):
            raise
        raise Raced from error


def _read_tables(reader: Reader, connection: BaseDatabaseWrapper) -> Loaded | None:
    found = load_at_once(
        connection,
        reader.conversation_id,
        last=reader.selection.read_messages,
        beside=_probe(reader.legacy),
    )
    if found is None:
        return reader.without_row()
    head, messages = found
    truth = _truth(reader, head)
    if truth == Truth.LEGACY:
        raise Raced
    fields = decode_fields(head.columns)
    loaded = of_tables(
        reader.tables, reader.conversation_id, reader.selection, head, fields, messages
    )
    return _noted(loaded, reader, truth)


def _read_replica(reader: Reader, connection: BaseDatabaseWrapper, replica: str) -> Loaded | None:
    """Read the row from the primary, and its content from a replica. Raises: _Behind, too."""
    head = load_row_at_once(connection, reader.conversation_id, beside=_probe(reader.legacy))
    if head is None:
        return reader.without_row()
    truth = _truth(reader, head)
    if truth == Truth.LEGACY:
        raise Raced
    loaded = _of_replica(reader, replica, head, decode_fields(head.columns))
    return _noted(loaded, reader, truth)


def _read_legacy(reader: Reader, connection: BaseDatabaseWrapper) -> Loaded | None:
    legacy, chosen = reader.legacy, reader.selection
    beside = None if legacy is None else legacy.last_ours_sql()
    # To undo the changes of a JSON column, all of the tables' content is needed.
    if legacy is None or beside is None or not (legacy.exact or chosen == EVERYTHING):
        raise Raced
    if legacy.exact:
        found = load_row_at_once(connection, reader.conversation_id, beside=beside), NOTHING
    else:
        found = load_at_once(connection, reader.conversation_id, beside=beside) or (None, NOTHING)
    head, messages = found
    if head is None:
        return reader.without_row()
    truth = _truth(reader, head)
    if truth == Truth.NORMALIZED:
        loaded = _read_tables(reader, connection)
        metrics.observe("load", StoreName.LEGACY, None, fallback=True)
        return loaded
    try:
        stored = legacy.last_ours_from(head.beside[-1], known=head.legacy_token)
    except UnreadableState as error:
        raise Raced from error
    if stored is None:
        raise Raced
    if legacy.exact:
        loaded = of_legacy(reader.conversation_id, chosen, stored, revision=head.legacy_revision)
    elif truth == Truth.BOTH:
        loaded = of_both(reader.tables, reader.conversation_id, head, messages, stored)
    else:
        raise Raced
    return _noted(loaded, reader, truth)


def _of_replica(reader: Reader, replica: str, head: Head, fields: dict[str, object]) -> Loaded:
    def read_from(using: str) -> Loaded | None:
        last = reader.selection.read_messages
        found = load_at_once(connections[using], reader.conversation_id, last=last)
        if found is None or not found[0].holds_as_much_as(head):
            return None
        try:
            return of_tables(
                reader.tables,
                reader.conversation_id,
                reader.selection,
                head,
                fields,
                found[1],
                using=using,
            )
        except Raced:
            return None

    found = replicated(replica, reader.conversation_id, read_from)
    if found is None:
        raise _Behind
    return found


def _probe(legacy: LegacyStore | None) -> tuple[str, ...]:
    return () if legacy is None else (legacy.token_sql(),)


def _truth(reader: Reader, head: Head) -> Truth:
    """Return where the truth is.

    Raises: Raced where old code has written, ConversationNotFound.
    """
    legacy = reader.legacy
    if legacy is None:
        truth = truth_by_numbers(head)
    else:
        truth = truth_by_token_value(head, legacy, head.beside[0])
    if truth == Truth.MERGE:
        raise Raced
    check_owner(reader.owner, actual=head.owner)
    return truth


def _noted(loaded: Loaded, reader: Reader, truth: Truth) -> Loaded:
    """Report the read to the breaker, if another store was current as well."""
    if truth == Truth.BOTH and reader.legacy is not None:
        noted(tuple(StoreName), StoreName(loaded.info.store))
    return loaded
