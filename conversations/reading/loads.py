"""What a load is asked for, and what it gives: the content, and what a save must know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from conversations.digests import digest_of, loose_digest, same_values
from conversations.documents import HISTORY, Document, field_digests
from conversations.fieldcodec import decode_fields
from conversations.merge import NOTHING, Given, entries_of
from conversations.models import ConversationState
from conversations.seals import Seal
from conversations.state import Baseline, LoadInfo
from conversations.stores.base import Stored
from conversations.stores.normalized import Head, NormalizedStore, limited_items
from flags.phases import StoreName
from memory.selection import selected


@dataclass(frozen=True, slots=True)
class Selection:
    """What a load is asked for: None means everything."""

    threshold: float | None = None
    max_messages: int | None = None
    max_items: int | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load gives: the content selected, and what a later save must know of it."""

    document: Document
    baseline: Baseline
    info: LoadInfo


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
    """Return what a load gives of a row and its messages; reads the context items.

    `using` names the replica that all of it comes from.

    Raises: Raced.
    """
    expected = row.message_count
    if chosen.max_messages is not None:
        expected = min(expected, chosen.max_messages)
    if len(messages.values) != expected:
        raise Raced
    items = _items(tables, chosen, row, using=using)
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
    )


def _items(
    tables: NormalizedStore,
    chosen: Selection,
    row: ConversationState | Head,
    *,
    using: str | None = None,
) -> Given:
    """Return the context items of a row. Raises: Raced."""
    if not row.context_item_count:
        return NOTHING
    entries, changed = tables.items(
        row, threshold=chosen.threshold, last=chosen.max_items, using=using
    )
    # Of a replica, nothing may mean that it moved on.
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
    """Return what a load gives of what legacy holds."""
    document = stored.document
    left_out = 0
    if chosen.max_messages is not None:
        left_out = max(len(document.messages) - chosen.max_messages, 0)
    messages = document.messages[left_out:]
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
        # What a host's function makes of its own JSON may be anything.
        canonical=False,
    )


def of_both(
    tables: NormalizedStore, conversation_id: str, head: Head, messages: Given, stored: Stored
) -> Loaded:
    """Return what a load gives of all that legacy holds, with the tables' order of keys.

    Raises: Raced where they hold not the same, leaving aside what a JSON column changes.
    """
    items = _items(tables, Selection(), head)
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
    """Whether two lists or mappings hold, place by place, what a JSON column cannot tell apart."""
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
    """Return the identities of what legacy holds: it has none but the places, from 1."""
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
        # The caller's state is made of these very objects.
        message_seal=Seal.of(messages.values, canonical=canonical),
        item_seal=Seal.of(items.values, canonical=canonical),
    )
    document = Document(dict(fields), messages.values, items.values)
    return Loaded(document, baseline, LoadInfo(str(store), revision, stale, *hidden))
