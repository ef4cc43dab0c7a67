"""Pages of a conversation's messages, from the store that tells the truth about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from django.db.models import Q
from django.utils import timezone

from conversations.codec import encode_message
from conversations.exceptions import ConversationNotFound
from conversations.merge import Entry, entries_of, resequence
from conversations.models import ConversationState
from conversations.reading import at_truth
from conversations.replicas import chosen_replica, replicated
from conversations.stores.base import Stored
from conversations.stores.normalized import NormalizedStore, replaced
from conversations.transactions import attempt, translated


def transcript(
    conversation_id: str,
    *,
    owner: str | None,
    before: int | None = None,
    after: int | None = None,
    limit: int = 50,
    include_superseded: bool = False,
    wanted: Mapping[str, Sequence[str]] | None = None,
) -> tuple[list[Entry], bool]:
    """Return a page of messages in ascending order, and whether there are more that way.

    `wanted` maps a column to the values it may have.

    Raises: ConversationNotFound, StorageUnavailable.
    """
    with translated(conversation_id), attempt():
        found = at_truth(conversation_id, owner=owner)
        if found is None:
            raise ConversationNotFound
        row, stored = found
        tables = NormalizedStore()
        if stored is None:
            assert row is not None
            query = Q() if include_superseded else Q(superseded_in__isnull=True)
            query &= Q(**{f"{column}__in": values for column, values in (wanted or {}).items()})
            if before is not None:
                query &= Q(sequence__lt=before)
            if after is not None:
                query &= Q(sequence__gt=after)
            asked = partial(tables.page, row, query, limit=limit + 1, backwards=after is None)
            # What is behind the newest message is asked for again and again by whoever waits.
            waits = after is not None and after + 1 >= row.next_sequence
            replica = None if include_superseded or waits else chosen_replica()
            page = None
            if replica is not None:
                # Nothing may mean that the replica is behind.
                page = replicated(
                    replica, conversation_id, lambda using: asked(using=using) or None
                )
            if page is None:
                page = asked()
            if include_superseded:
                return _whole_sequences(tables, row, query, page, limit, backwards=after is None)
        else:
            page = _legacy_page(tables, row, stored, wanted or {}, before, after)
    more = len(page) > limit
    if after is None:
        return page[len(page) - min(limit, len(page)) :], more
    return page[:limit], more


def _whole_sequences(
    tables: NormalizedStore,
    row: ConversationState,
    query: Q,
    page: list[Entry],
    limit: int,
    *,
    backwards: bool,
) -> tuple[list[Entry], bool]:
    """Return a page that ends between two sequences: a cursor cannot tell versions apart."""
    if len(page) <= limit:
        return page, False
    edge = page[0] if backwards else page[-1]
    whole = [entry for entry in page if entry.identity != edge.identity]
    if not whole:
        # One message with more versions than a page holds: all of them, and what is left.
        alone = query & Q(sequence=edge.place)
        count = tables.count(row, alone)
        whole = tables.page(row, alone, limit=count, backwards=backwards)
        return whole, tables.count(row, query) > count
    return whole, True


def _legacy_page(
    tables: NormalizedStore,
    row: ConversationState | None,
    stored: Stored,
    wanted: Mapping[str, Sequence[str]],
    before: int | None,
    after: int | None,
) -> list[Entry]:
    """Return the messages of a blob, with the sequences that they get once they are taken in."""
    entries = entries_of(stored.document.messages)
    if row is not None:
        values = [entry.value for entry in entries]
        entries = list(replaced(tables.messages(row, values=False), entries))
        resequence(entries, next_sequence=row.next_sequence)
        for entry, value in zip(entries, values, strict=True):
            entry.value = value
    else:
        resequence(entries, next_sequence=1)
    now = timezone.now()
    chosen = []
    for entry in entries:
        place = entry.identity or 0
        if (before is not None and place >= before) or (after is not None and place <= after):
            continue
        if wanted:
            columns = encode_message(entry.value, now=now)
            if any(columns[name] not in values for name, values in wanted.items()):
                continue
        chosen.append(entry)
    return chosen
