"""Loading one conversation: as of one revision, from a store that is current, without a lock.

Mostly in one statement, which sees one moment; where that is not enough, step by step.
"""

from __future__ import annotations

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from conversations import conf
from conversations.fieldcodec import decode_fields
from conversations.owners import check_owner
from conversations.reading.loads import Loaded, Raced, Selection, of_tables
from conversations.reading.steps import Reader, noted, read_in_steps
from conversations.replicas import chosen_replica, replicated
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import Head, NormalizedStore, load_at_once
from conversations.stores.registry import legacy_store
from conversations.transactions import attempt, lost, managed, translated
from conversations.truth import Numbers, Truth, verdict
from flags import breaker
from flags.conf import read_breaker
from flags.phases import StoreName
from flags.switches import current_plan


class _Behind(Exception):
    """The replica does not hold what the primary's row says, or does not answer."""


def read(conversation_id: str, selection: Selection, *, owner: str | None) -> Loaded | None:
    """Return the content of a conversation, or None when no store holds it.

    Raises: ConversationNotFound when it is another owner's, StorageUnavailable when a store
    that may hold it did not answer.
    """
    connection = connections[conf.alias()]
    reader = Reader(conversation_id, selection, owner, legacy_store(), NormalizedStore())
    try:
        return _at_once(reader, connection)
    except Raced:
        pass
    except Error:
        with translated(conversation_id, connection):
            raise
    with translated(conversation_id, connection):
        return read_in_steps(conversation_id, reader)


def _at_once(reader: Reader, connection: BaseDatabaseWrapper) -> Loaded | None:
    """Read the tables where they are current and preferred: one statement, two with items.

    Raises: Raced where that is not so, or cannot be told: then step by step. Error where the
    connection is lost, or the caller's transaction.
    """
    # Where there is no legacy, the switches still say whether to measure, and to be patient.
    plan = current_plan(reader.conversation_id)
    if plan.emergency or (reader.legacy is not None and plan.reads != StoreName.NORMALIZED):
        raise Raced
    if read_breaker() and breaker.reads.opened():
        raise Raced
    try:
        if managed(connection):
            # Callers see there what they wrote, and no error costs them any of it.
            with attempt(connection):
                return _read(reader, connection)
        replica = None if conf.replica() is None else chosen_replica()
        if replica is not None:
            try:
                return _read(reader, connection, replica=replica)
            except _Behind:
                pass
        return _read(reader, connection)
    except Error as error:
        if lost(connection.alias):
            raise
        raise Raced from error


def _read(
    reader: Reader, connection: BaseDatabaseWrapper, *, replica: str | None = None
) -> Loaded | None:
    """Read at once; from a replica, the primary's row alone, and what is behind it from there.

    Raises: Raced, _Behind, Error.
    """
    legacy = reader.legacy
    found = load_at_once(
        connection,
        reader.conversation_id,
        last=reader.selection.max_messages if replica is None else 0,
        probe=None if legacy is None else legacy.probe(),
    )
    if found is None:
        return reader.without_row()
    head, messages = found
    both = _both(head, legacy)
    check_owner(reader.owner, actual=head.owner)
    fields = decode_fields(head.columns)
    if replica is None:
        loaded = of_tables(
            reader.tables, reader.conversation_id, reader.selection, head, fields, messages
        )
    else:
        loaded = _of_replica(reader, replica, head, fields)
    if both:
        noted(tuple(StoreName), StoreName.NORMALIZED)
    return loaded


def _of_replica(reader: Reader, replica: str, head: Head, fields: dict[str, object]) -> Loaded:
    def read_from(using: str) -> Loaded | None:
        last = reader.selection.max_messages
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


def _both(head: Head, legacy: LegacyStore | None) -> bool:
    """Whether legacy is as current as the tables. Raises: Raced when the tables are not."""
    known = head.legacy_token
    matches = legacy is None or legacy.judge(head.probed, known) == known
    truth = verdict(Numbers(head.revision, head.legacy_revision), token_matches=matches)
    if truth not in (Truth.BOTH, Truth.NORMALIZED):
        raise Raced
    return truth == Truth.BOTH and legacy is not None
