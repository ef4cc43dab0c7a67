"""Walking over every conversation of both stores, in batches and in constant memory.

One conversation that fails never ends such a walk.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

from django.db import connections
from django.db.models import QuerySet

from conversations import conf
from conversations.exceptions import ConversationStoreError
from conversations.models import ConversationState
from conversations.stores.normalized import probed_rows
from conversations.stores.registry import configured_store
from conversations.transactions import lost

logger = logging.getLogger("conversations")

BATCH = 500


def failure(conversation_id: str, error: Exception) -> str:
    """Log that a conversation failed, so that the walk goes on. Returns: why, without content.

    The text of an error that is not ours may quote what it failed on: its type must do.

    Raises: the error, where all that was done so far is lost with it: inside a caller's
    transaction whose connection is gone, or that can only be rolled back.
    """
    connection = connections[conf.alias()]
    if connection.in_atomic_block and lost(conf.alias()):
        raise error
    if not connection.in_atomic_block:
        # Nobody else does this between requests, and a lost connection would fail for ever.
        connection.close_if_unusable_or_obsolete()
    logger.warning("conversation %s: %s", conversation_id, type(error).__name__)
    return str(error) if isinstance(error, ConversationStoreError) else type(error).__name__


def conversation_ids(ids: Iterable[str] | None = None) -> Iterator[str]:
    """Yield conversation ids: those given, or each one that a store holds, once.

    First those with a row in the tables, by primary key, so that a fork comes behind its
    origin; then those that only legacy holds, in its order. What begins to exist meanwhile
    may be left out.
    """
    if ids is not None:
        yield from dict.fromkeys(ids)
        return
    yield from in_batches(ConversationState.rows.using(conf.alias()))
    yield from only_in_legacy()


def in_batches(rows: QuerySet[ConversationState]) -> Iterator[str]:
    """Yield the conversation ids of rows, by primary key."""
    last = 0
    while True:
        behind = rows.filter(pk__gt=last).order_by("pk")
        page = list(behind.values_list("pk", "conversation_id")[:BATCH])
        yield from (conversation_id for _, conversation_id in page)
        if len(page) < BATCH:
            return
        last = page[-1][0]


def out_of_step() -> Iterator[str]:
    """Yield what somebody else wrote into legacy since it was verified, or legacy alone holds."""
    legacy = configured_store()
    if legacy is None:
        return
    last = 0
    while page := probed_rows(legacy.probe(), after=last, limit=BATCH):
        yield from (name for _, name, known, now in page if legacy.judge(now, known) != known)
        last = page[-1][0]
    yield from only_in_legacy()


def only_in_legacy() -> Iterator[str]:
    """Yield what legacy alone holds; ids of deleted conversations among them."""
    legacy = configured_store()
    if legacy is None:
        return
    after = ""
    while True:
        # Compared by the database alone: Python's order of texts is not that of a collation.
        page = legacy.ids(after=after, limit=BATCH)
        in_tables = known(page)
        yield from (found for found in page if found not in in_tables)
        if len(page) < BATCH:
            return
        after = page[-1]


def known(ids: Sequence[str]) -> set[str]:
    """Return those ids that have a row in the tables."""
    rows = ConversationState.rows.using(conf.alias()).filter(conversation_id__in=ids)
    return set(rows.values_list("conversation_id", flat=True))
