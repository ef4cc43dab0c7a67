"""What a load is asked for, and what it gives: the content, and what a save must know of it."""

from __future__ import annotations

from dataclasses import dataclass

from conversations.documents import HISTORY, Document, field_digests
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
    items = NOTHING
    if row.context_item_count:
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
        items = Given.of(entries)
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
    )


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
    messages = entries_of(document.messages, numbered=True)
    items = entries_of(document.items, numbered=True)
    given = messages
    if chosen.max_messages is not None:
        given = messages[len(messages) - min(chosen.max_messages, len(messages)) :]
    kept = [item for item in items if selected(item.value, threshold=chosen.threshold)]
    kept = limited_items(kept, chosen.max_items)
    return _loaded(
        conversation_id,
        fields=document.fields,
        messages=Given.of(given),
        items=Given.of(kept),
        store=StoreName.LEGACY,
        revision=revision,
        version=stored.version,
        hidden=(len(messages) - len(given), len(items) - len(kept)),
        stale=stale,
    )


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
    stale: bool = False,
) -> Loaded:
    """Return the content that was selected, with its baseline."""
    history = fields.get(HISTORY)
    length = len(history) if isinstance(history, list) else 0
    digests = field_digests(fields)
    # What a host's function makes of its own JSON may be anything.
    own = store == StoreName.NORMALIZED
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
        message_seal=Seal.of(messages.values, canonical=own),
        item_seal=Seal.of(items.values, canonical=own),
    )
    document = Document(dict(fields), messages.values, items.values)
    return Loaded(document, baseline, LoadInfo(str(store), revision, stale, *hidden))
