"""Carry many conversations over at once, to the tables, in the transaction of a batch.

Only the plain cases are handled here: conversations in order already, and readable ones that the
tables do not know. All others, and all that fail here, are carried over one by one. Both ways must
agree: see `one`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime

from django.db import InterfaceError, OperationalError, transaction
from django.utils import timezone

from conversations import conf
from conversations.content.entries import entries_of
from conversations.exceptions import StorageUnavailable
from conversations.rollout.sync.one import Action, Synced, Target, carry, fits
from conversations.routing.ids import in_portions
from conversations.routing.locks import new_among, try_lock
from conversations.routing.owners import columns_of_owners
from conversations.routing.standing import truth_by_token_value
from conversations.routing.transactions import lost
from conversations.routing.truth import Truth
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import (
    FIRST_REVISION,
    Creation,
    create_all,
    find_rows_with_token_of,
    new_row,
)
from conversations.stores.sql.cursors import cannot_be_read
from conversations.stores.types import BlobState, Stored
from conversations.writing.ingest import Newcomers, appeared_at

logger = logging.getLogger("conversations")

# The most that a batch may hold locked: at some 5 MB a second, for two seconds at most.
# PostgreSQL's table of locks has room for 6,400 by default, for all sessions.
MOST_CONVERSATIONS, MOST_BYTES = 500, 8 * 2**20


def share(legacy: LegacyStore, ids: Sequence[str]) -> float:
    """Return how much of one transaction's limit of locks these conversations use."""
    count = len(ids) / MOST_CONVERSATIONS
    return count if count > 1 else max(count, sum(legacy.sizes(ids).values()) / MOST_BYTES)


def carry_all(legacy: LegacyStore, ids: Sequence[str]) -> list[Synced]:
    """Bring the tables to the truth of these conversations, in the caller's transaction.

    Returns: the results, in order; a failure of one does not spoil the others.

    Raises: StorageUnavailable, OperationalError if a store does not answer.
    """
    actions: dict[str, Action] = {}
    if len(ids) > 1:
        new = _new_and_locked(legacy, ids, actions)
        for chunk in in_portions(new, legacy.sizes(new)):
            actions |= dict.fromkeys(_taken_in(legacy, chunk), Action.TAKEN_IN)
    return [
        Synced(name, actions[name]) if name in actions else carry(legacy, Target.TABLES, name)
        for name in ids
    ]


def _new_and_locked(
    legacy: LegacyStore, ids: Sequence[str], actions: dict[str, Action]
) -> Sequence[str]:
    """Lock conversations unknown to the tables; note in `actions` those already current."""
    locked = try_lock(ids)
    # Under the locks, in later statements.
    for row in find_rows_with_token_of(legacy.token_sql(), ids):
        if truth_by_token_value(row, legacy, row.token_value) in (Truth.BOTH, Truth.NORMALIZED):
            actions[row.conversation_id] = Action.UNCHANGED
    return [name for name in new_among(locked) if fits(name)]


def _taken_in(legacy: LegacyStore, ids: Sequence[str]) -> Sequence[str]:
    """Ingest conversations that the tables do not know. Returns: the ingested ones.

    If one fails, each half is tried by itself, until the failing one is alone, and left.
    """
    try:
        with transaction.atomic(using=conf.alias()):
            return _take_in(legacy, ids)
    except Exception as error:
        unanswered = isinstance(error, OperationalError | InterfaceError | StorageUnavailable)
        if (unanswered and not cannot_be_read(error)) or lost(conf.alias()):
            raise
        logger.info("%s conversations at once: %s", len(ids), type(error).__name__)
    if len(ids) == 1:
        return ()
    middle = len(ids) // 2
    return [*_taken_in(legacy, ids[:middle]), *_taken_in(legacy, ids[middle:])]


def _take_in(legacy: LegacyStore, ids: Sequence[str]) -> Sequence[str]:
    readable = [(look, look.stored) for look in legacy.read_many(ids) if look.stored is not None]
    owners = columns_of_owners(stored.owner for _, stored in readable)
    known = [(look, stored) for look, stored in readable if stored.owner in owners]
    now = timezone.now()
    legacy.mark_many_ingested([look for look, _ in known], revision=FIRST_REVISION)
    newcomers = Newcomers()
    create_all(
        [_creation(look, stored, owners[stored.owner], newcomers, now) for look, stored in known]
    )
    return [look.conversation_id for look, _ in known]


def _creation(
    look: BlobState,
    stored: Stored,
    owner: Mapping[str, str | None],
    newcomers: Newcomers,
    now: datetime,
) -> Creation:
    """Return the conversation that a write would create from legacy's."""
    # An ingest is no activity of the user: the row gets the time of legacy's write.
    written = min(stored.updated_at or now, now)
    row = new_row(look.conversation_id, now=written, **owner)
    row.foreign_written_at = appeared_at(look.conversation_id, stored, newcomers, now=now)
    row.legacy_revision, row.legacy_token = FIRST_REVISION, look.token
    return Creation(row, stored.document, entries_of(stored.document.messages), written)
