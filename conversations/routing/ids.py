"""Walking over every conversation of both stores, in batches and in constant memory.

One conversation that fails never ends such a walk.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from django.db import connections
from django.db.models import QuerySet

from conversations import conf
from conversations.exceptions import ConversationStoreError
from conversations.models import ConversationState
from conversations.routing.standing import truth_by_token_value
from conversations.routing.transactions import lost
from conversations.routing.truth import Truth
from conversations.stores.normalized import find_rows_with_token, find_rows_with_token_of
from conversations.stores.registry import configured_store
from conversations.stores.sql.expressions import EVERY_KEY
from flags.connections import close_if_lost, managed, reconnecting
from flags.schema import named
from flags.texts import shown

logger = logging.getLogger("conversations")

BATCH = 500
# The limits of one read: conversations and bytes in memory. A larger conversation is read alone.
TOGETHER, TOGETHER_BYTES = 100, 2**21


def failure(conversation_id: str, error: Exception) -> str:
    """Log that a conversation failed, so that the walk continues. Returns: why, without content.

    Another package's error may quote content, so only its type is returned.

    Raises: the error, where `recover` does.
    """
    recover(error)
    logger.warning("conversation %s: %s", shown(conversation_id), named(error))
    return str(error) if isinstance(error, ConversationStoreError) else named(error)


def recover(error: Exception) -> None:
    """Let a walk continue after an error.

    Raises: the error, where it took the earlier work of the walk with it. That is inside a
    caller's transaction whose connection is gone, or that can only be rolled back.
    """
    connection = connections[conf.alias()]
    if managed(connection) and lost(conf.alias()):
        raise error
    # A host's function may have lost it. Our own operations close the connections they lose.
    close_if_lost(connection, error)


@reconnecting
def conversation_ids(ids: Iterable[str] | None = None) -> Iterator[str]:
    """Yield conversation ids: those given, or each one that a store holds, once.

    Conversations with a row in the tables come first, by primary key, so that a fork comes behind
    its origin. Those that only legacy holds follow, in its order. Conversations created meanwhile
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
        behind = rows.filter(pk__gt=last, pk__lte=EVERY_KEY).order_by("pk")
        page = list(behind.values_list("pk", "conversation_id")[:BATCH])
        yield from (conversation_id for _, conversation_id in page)
        if len(page) < BATCH:
            return
        last = page[-1][0]


@reconnecting
def out_of_step() -> Iterator[str]:
    """Yield conversations that old code wrote since their verification, or legacy alone holds."""
    legacy = configured_store()
    if legacy is None:
        return
    last = 0
    while page := find_rows_with_token(legacy.token_sql(), after=last, limit=BATCH, verified=True):
        for row in page:
            if truth_by_token_value(row, legacy, row.token_value) == Truth.MERGE:
                yield row.conversation_id
        last = page[-1].pk
    yield from only_in_legacy()


def changed_since(mark: str) -> Iterator[str]:
    """Yield conversations that old code wrote into legacy since `LegacyStore.mark` gave a mark.

    Conversations whose legacy content the tables know are left out: our own writes, and in a host's
    table without times, everything old.
    """
    legacy = configured_store()
    if legacy is None:
        return
    for page in pages_of(legacy.ids_written_since(mark)):
        rows = find_rows_with_token_of(legacy.token_sql(), page)
        current = {
            row.conversation_id
            for row in rows
            if truth_by_token_value(row, legacy, row.token_value) != Truth.MERGE
        }
        yield from (name for name in page if name not in current)


def only_in_legacy() -> Iterator[str]:
    """Yield the conversations that only legacy holds, also deleted ones."""
    legacy = configured_store()
    if legacy is None:
        return
    after = ""
    while True:
        # Only the database compares ids: Python sorts texts differently than a collation.
        page = legacy.ids(after=after, limit=BATCH)
        in_tables = known(page)
        yield from (found for found in page if found not in in_tables)
        if len(page) < BATCH:
            return
        after = page[-1]


def pages_of(ids: Iterable[str]) -> Iterator[list[str]]:
    """Yield ids in pages of `BATCH`."""
    rest = iter(ids)
    while page := list(islice(rest, BATCH)):
        yield page


def in_portions(ids: Sequence[str], sizes: Mapping[str, int]) -> Iterator[Sequence[str]]:
    """Yield ids in portions for one read: up to `TOGETHER` ids and `TOGETHER_BYTES` bytes."""
    portion: list[str] = []
    size = 0
    for name in ids:
        size += sizes.get(name, 0)
        if portion and (len(portion) == TOGETHER or size > TOGETHER_BYTES):
            yield portion
            portion, size = [], sizes.get(name, 0)
        portion.append(name)
    if portion:
        yield portion


def known(ids: Sequence[str]) -> set[str]:
    """Return those ids that have a row in the tables."""
    rows = ConversationState.rows.using(conf.alias()).filter(conversation_id__in=ids)
    return set(rows.values_list("conversation_id", flat=True))
