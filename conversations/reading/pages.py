"""Pages of a conversation's messages, from the store that holds the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from django.db.models import Q
from django.utils import timezone

from conversations.content.codec import encode_message
from conversations.content.entries import Entry, entries_of, resequence
from conversations.content.turns import OVERLAPS, end_of, first_of
from conversations.exceptions import ConversationNotFound
from conversations.models import ConversationState
from conversations.reading.load_stepwise import at_truth
from conversations.routing.replicas import chosen_replica, replicated
from conversations.routing.standing import decide
from conversations.routing.transactions import attempt, translated
from conversations.stores.normalized import NormalizedStore, replaced
from conversations.stores.types import Stored


def transcript(
    conversation_id: str,
    *,
    owner: str | None,
    before: int | None = None,
    after: int | None = None,
    limit: int = 50,
    include_superseded: bool = False,
    wanted: Mapping[str, Sequence[str]] | None = None,
    whole_turns: bool = False,
) -> tuple[list[Entry], bool]:
    """Return a page of messages in ascending order, and whether there are more that way.

    `wanted` maps a column to the values it may have. With `whole_turns`, the page is a little
    longer or shorter, so that a tool call stays with its results; see `content.turns`.

    Raises: ConversationNotFound, StorageUnavailable.
    """
    backwards = after is None
    decision = decide(conversation_id)
    with translated(conversation_id, emergency=decision.emergency), attempt():
        found = at_truth(conversation_id, decision, owner=owner)
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
            read: Callable[..., list[Entry]] = partial(
                _read_page, tables, row, query, backwards=backwards
            )
            # Callers that wait for a reply poll for messages behind the newest: ask the primary.
            waits = after is not None and after + 1 >= row.next_sequence
            replica = None if include_superseded or waits else chosen_replica()
            if include_superseded:
                page = read(limit + 1, replica)
                return _whole_sequences(tables, row, query, page, limit, backwards=backwards)
        else:
            replica = None
            entries = _legacy_page(tables, row, stored, wanted or {}, before, after)

            read = partial(_slice, entries, backwards=backwards)
        if whole_turns:
            return _whole_turns(partial(read, replica=replica), limit, backwards=backwards)
        page = read(limit + 1, replica)
    return _slice(page, limit, backwards=backwards), len(page) > limit


def _slice(
    entries: list[Entry], limit: int, replica: str | None = None, *, backwards: bool
) -> list[Entry]:
    """Return up to `limit` entries: the last ones, or the first. No replica holds a list."""
    return entries[max(len(entries) - limit, 0) :] if backwards else entries[:limit]


def _read_page(
    tables: NormalizedStore,
    row: ConversationState,
    query: Q,
    limit: int,
    replica: str | None,
    *,
    backwards: bool,
) -> list[Entry]:
    """Return up to `limit` versions in ascending order: the last ones, or the first."""
    page = None
    if replica is not None:
        asked = partial(tables.page, row, query, limit=limit, backwards=backwards)
        # An empty page may mean that the replica is behind.
        page = replicated(replica, row.conversation_id, lambda using: asked(using=using) or None)
    if page is None:
        page = tables.page(row, query, limit=limit, backwards=backwards)
    return page


def _whole_turns(
    read: Callable[[int], list[Entry]], limit: int, *, backwards: bool
) -> tuple[list[Entry], bool]:
    """Return a page of about `limit` messages that keeps tool calls with their results."""
    for overlap in OVERLAPS:
        page = read(limit + overlap + 1)
        if len(page) <= limit:
            return page, False
        more = len(page) > limit + overlap
        page = _slice(page, limit + overlap, backwards=backwards)
        values = [entry.value for entry in page]
        if backwards:
            first = first_of(values, len(page) - limit, more=more)
            if first is not None:
                return page[first:], more or first > 0
        else:
            end = end_of(values, limit, more=more)
            if end is not None:
                return page[:end], more or end < len(page)
    raise AssertionError("everything was read")


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
        # One message has more versions than a page holds: return all of them.
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
    """Return the messages of a blob, with the sequences that an ingest will give them."""
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
