"""The arguments of a load, and its result: the content, and the baseline for a later save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from conversations.content.baseline import Baseline
from conversations.content.digests import digest_of, loose_digest, same_values
from conversations.content.document import HISTORY, Document, field_digests
from conversations.content.entries import NOTHING, Given, entries_of
from conversations.content.field_codec import decode_fields
from conversations.content.fingerprint import Seal
from conversations.content.turns import OVERLAPS, first_of
from conversations.models import ConversationState
from conversations.state import LoadInfo
from conversations.stores.normalized import Head, NormalizedStore, limited_items
from conversations.stores.types import Stored
from flags.phases import StoreName
from memory.selection import selected


@dataclass(frozen=True, slots=True)
class Selection:
    """The limits of a load; None is no limit.

    `overlap` is the number of messages to read before the `max_messages` newest, so that a tool
    call stays with its results; see `conversations.content.turns`.
    """

    threshold: float | None = None
    max_messages: int | None = None
    max_items: int | None = None
    overlap: int = 0

    @property
    def read_messages(self) -> int | None:
        """Return how many of the newest messages are read."""
        return self.max_messages and self.max_messages + self.overlap

    def widened(self) -> list[Selection]:
        """Return this selection, and then with the wider overlaps that a long group needs."""
        return [replace(self, overlap=overlap) for overlap in OVERLAPS] if self.overlap else [self]


EVERYTHING = Selection()


@dataclass(frozen=True, slots=True)
class Loaded:
    """The result of a load: the selected content, and the baseline for a later save."""

    document: Document
    baseline: Baseline
    info: LoadInfo


class Cut(Exception):
    """The messages that were read are all one group of a call and its results: read more."""


class Raced(Exception):
    """The conversation moved on while it was read, or has to be read another way."""


def of_tables(
    tables: NormalizedStore,
    conversation_id: str,
    chosen: Selection,
    row: ConversationState | Head,
    fields: dict[str, object],
    messages: Given,
    *,
    stale: bool = False,
    using: str | None = None,
) -> Loaded:
    """Return the result of a load, from a row and its messages; read the context items.

    `using` names the replica, if all of it comes from one.

    Raises: Raced, Cut.
    """
    expected, beyond = row.message_count, 0
    if chosen.max_messages is not None:
        expected = min(expected, chosen.read_messages or 0)
    if len(messages.values) != expected:
        raise Raced
    if chosen.max_messages is not None:
        first, beyond = _window(chosen, messages.values, more=row.message_count > expected)
        messages = messages.behind(first)
    items = _items(tables, chosen, row, using=using) if row.context_item_count else NOTHING
    return _loaded(
        conversation_id,
        fields=fields,
        messages=messages,
        items=items,
        store=StoreName.NORMALIZED,
        revision=row.revision,
        version=bytes(row.messages_digest).hex(),
        hidden=(
            row.message_count - len(messages.values),
            row.context_item_count - len(items.values),
        ),
        stale=stale,
        canonical=True,
        beyond=beyond,
    )


def _window(chosen: Selection, values: Sequence[Any], *, more: bool) -> tuple[int, int]:
    """Return the index of the first message to give, and how many more than asked that gives.

    Fewer are a negative number. `more`: the store holds earlier messages than these.

    Raises: Cut.
    """
    asked = 0 if chosen.max_messages is None else len(values) - chosen.max_messages
    if asked < 0 or not (asked or more) or not chosen.overlap:
        return max(asked, 0), 0
    first = first_of(values, asked, more=more)
    if first is None:
        raise Cut
    return first, asked - first


def _items(
    tables: NormalizedStore,
    chosen: Selection,
    row: ConversationState | Head,
    *,
    using: str | None = None,
) -> Given:
    """Return the context items of a row that has some. Raises: Raced."""
    entries, changed = tables.items(
        row, threshold=chosen.threshold, last=chosen.max_items, using=using
    )
    # A replica without items may have replayed a later revision.
    if using is not None and not entries:
        raise Raced
    everything = chosen.threshold is None and chosen.max_items is None
    if changed != row.context_items_revision or (
        everything and len(entries) != row.context_item_count
    ):
        raise Raced
    return Given.of(entries)


def of_legacy(
    conversation_id: str,
    chosen: Selection,
    stored: Stored,
    *,
    revision: int,
    stale: bool = False,
) -> Loaded:
    """Return the result of a load, from legacy's content."""
    document = stored.document
    left_out = 0
    if chosen.read_messages is not None:
        left_out = max(len(document.messages) - chosen.read_messages, 0)
    messages = document.messages[left_out:]
    first, beyond = _window(chosen, messages, more=left_out > 0)
    left_out, messages = left_out + first, messages[first:]
    digests = b"".join(map(digest_of, messages))
    items = entries_of(document.items, numbered=True)
    kept = [item for item in items if selected(item.value, threshold=chosen.threshold)]
    kept = limited_items(kept, chosen.max_items)
    return _loaded(
        conversation_id,
        fields=document.fields,
        messages=Given(_places(messages, behind=left_out), digests, messages),
        items=Given.of(kept),
        store=StoreName.LEGACY,
        revision=revision,
        version=stored.version,
        hidden=(left_out, len(items) - len(kept)),
        stale=stale,
        # A host's function may return any value for its own JSON.
        canonical=False,
        beyond=beyond,
    )


def of_both(
    tables: NormalizedStore, conversation_id: str, head: Head, messages: Given, stored: Stored
) -> Loaded:
    """Return the result of a whole load from legacy, with the tables' order of keys.

    Raises: Raced where the stores differ by more than the changes of a JSON column.
    """
    items = _items(tables, EVERYTHING, head) if head.context_item_count else NOTHING
    fields, theirs = decode_fields(head.columns), stored.document
    for ours, held in (
        (messages.values, theirs.messages),
        (items.values, theirs.items),
        (fields, theirs.fields),
    ):
        if not (same_values(ours, held) or _alike(ours, held)):
            raise Raced
    return _loaded(
        conversation_id,
        fields=fields,
        messages=replace(messages, identities=_places(messages.values)),
        items=replace(items, identities=_places(items.values)),
        store=StoreName.LEGACY,
        revision=head.legacy_revision,
        version=stored.version,
        hidden=(0, 0),
        canonical=True,
    )


def _alike(ours: Any, theirs: Any) -> bool:
    """Whether two lists or mappings hold, place by place, values that are equal in JSON columns."""
    if len(ours) != len(theirs):
        return False
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and _alike(
            list(ours.values()), [theirs[name] for name in ours]
        )
    try:
        return all(
            same_values(one, other) or loose_digest(one) == loose_digest(other)
            for one, other in zip(ours, theirs, strict=True)
        )
    except RecursionError:
        return False


def _places(values: Sequence[Any], *, behind: int = 0) -> range:
    """Return the identities of values in legacy: their places, from 1."""
    return range(behind + 1, behind + len(values) + 1)


def _loaded(
    conversation_id: str,
    *,
    fields: dict[str, object],
    messages: Given,
    items: Given,
    store: StoreName,
    revision: int,
    version: str,
    hidden: tuple[int, int],
    canonical: bool,
    stale: bool = False,
    beyond: int = 0,
) -> Loaded:
    """Return the content that was selected, with its baseline; see `Seal.of`."""
    history = fields.get(HISTORY)
    length = len(history) if isinstance(history, list) else 0
    digests = field_digests(fields)
    baseline = Baseline(
        conversation_id=conversation_id,
        store=str(store),
        revision=revision,
        version=version,
        sequences=messages.identities,
        message_digests=messages.digests,
        item_ids=items.identities,
        item_digests=items.digests,
        field_digests=digests,
        history_length=length,
        stored_history_length=length,
        stored_history_digest=digests.get(HISTORY, b""),
        hidden_messages=hidden[0],
        messages_before=hidden[0],
        hidden_items=hidden[1],
        # The caller's state holds these very objects.
        message_seal=Seal.of(messages.values, canonical=canonical),
        item_seal=Seal.of(items.values, canonical=canonical) if items.values else None,
    )
    document = Document(dict(fields), messages.values, items.values)
    return Loaded(document, baseline, LoadInfo(str(store), revision, stale, *hidden, beyond))
