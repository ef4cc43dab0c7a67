"""Carrying many conversations over at once, to the tables, in the transaction of a batch.

That is for the plain case alone: what is in order already, and what the tables do not know and
legacy holds readably. Everything else, and whatever fails here, is carried over one by one, by
the code that this must agree with: see `carrying`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from django.db import InterfaceError, OperationalError, transaction
from django.utils import timezone

from conversations import conf
from conversations.exceptions import StorageUnavailable
from conversations.locking import new_among, try_lock
from conversations.merge import entries_of
from conversations.owners import columns_of_owners
from conversations.stores.base import LegacyStore, Look, Stored
from conversations.stores.normalized import (
    FIRST_REVISION,
    Creation,
    create_all,
    new_row,
    probed_named,
)
from conversations.sync.carrying import Action, Synced, Target, carry
from conversations.transactions import lost
from conversations.truth import Numbers, Truth, verdict

logger = logging.getLogger("conversations")

# What a batch may hold locked: at some 5 MB a second, its locks are held for two seconds at most.
# PostgreSQL's table of locks has room for 6,400 by default, of everybody.
MOST_CONVERSATIONS, MOST_BYTES = 500, 8 * 2**20
# What is read, and is in memory, at once; a larger conversation is read alone.
TOGETHER, TOGETHER_BYTES = 100, 2**21


def share(legacy: LegacyStore, ids: Sequence[str]) -> float:
    """Return how much of what one transaction may hold locked these conversations are."""
    count = len(ids) / MOST_CONVERSATIONS
    return count if count > 1 else max(count, sum(legacy.sizes(ids).values()) / MOST_BYTES)


def carry_all(legacy: LegacyStore, ids: Sequence[str]) -> list[Synced]:
    """Bring the tables to the truth of these conversations, in the caller's transaction.

    Returns: what became of each, in order; one that fails takes no other with it.

    Raises: StorageUnavailable, OperationalError when a store does not answer.
    """
    actions: dict[str, Action] = {}
    if len(ids) > 1:
        new = _new_and_locked(legacy, ids, actions)
        for chunk in _chunks(new, legacy.sizes(new)):
            actions |= dict.fromkeys(_taken_in(legacy, chunk), Action.TAKEN_IN)
    return [
        Synced(name, actions[name]) if name in actions else carry(legacy, Target.TABLES, name)
        for name in ids
    ]


def _new_and_locked(
    legacy: LegacyStore, ids: Sequence[str], actions: dict[str, Action]
) -> Sequence[str]:
    """Lock what the tables do not know; note in `actions` what they are current in."""
    locked = try_lock(ids)
    # Under the locks, in later statements.
    for name, revision, legacy_revision, known, probed in probed_named(legacy.probe(), ids):
        matches = legacy.judge(probed, known) == known
        truth = verdict(Numbers(revision, legacy_revision), token_matches=matches)
        if truth in (Truth.BOTH, Truth.NORMALIZED):
            actions[name] = Action.UNCHANGED
    return new_among(locked)


def _chunks(ids: Sequence[str], sizes: Mapping[str, int]) -> Iterator[Sequence[str]]:
    """Yield what may be read at once: so many conversations, and so many bytes."""
    chunk: list[str] = []
    size = 0
    for name in ids:
        size += sizes.get(name, 0)
        if chunk and (len(chunk) == TOGETHER or size > TOGETHER_BYTES):
            yield chunk
            chunk, size = [], sizes.get(name, 0)
        chunk.append(name)
    if chunk:
        yield chunk


def _taken_in(legacy: LegacyStore, ids: Sequence[str]) -> Sequence[str]:
    """Take in conversations that the tables do not know. Returns: those that were.

    Where one fails, the halves are tried by themselves, until it is alone, and left.
    """
    try:
        with transaction.atomic(using=conf.alias()):
            return _take_in(legacy, ids)
    except (OperationalError, InterfaceError, StorageUnavailable):
        raise
    except Exception as error:
        if lost(conf.alias()):
            raise
        logger.info("%s conversations at once: %s", len(ids), type(error).__name__)
    if len(ids) == 1:
        return ()
    middle = len(ids) // 2
    return [*_taken_in(legacy, ids[:middle]), *_taken_in(legacy, ids[middle:])]


def _take_in(legacy: LegacyStore, ids: Sequence[str]) -> Sequence[str]:
    readable = [(look, look.stored) for look in legacy.looks(ids) if look.stored is not None]
    owners = columns_of_owners(stored.owner for _, stored in readable)
    known = [(look, stored) for look, stored in readable if stored.owner in owners]
    now = timezone.now()
    legacy.settle_looks([look for look, _ in known], revision=FIRST_REVISION)
    create_all([_creation(look, stored, owners[stored.owner], now) for look, stored in known])
    return [look.conversation_id for look, _ in known]


def _creation(
    look: Look, stored: Stored, owner: Mapping[str, str | None], now: datetime
) -> Creation:
    """Return what `operations` makes of a conversation that only legacy holds."""
    # Taking in is no activity of the user: it has the time of what is taken in.
    written = min(stored.updated_at or now, now)
    row = new_row(look.conversation_id, now=written, **owner)
    row.foreign_written_at = written
    row.legacy_revision, row.legacy_token = FIRST_REVISION, look.token
    return Creation(row, stored.document, entries_of(stored.document.messages), written)
