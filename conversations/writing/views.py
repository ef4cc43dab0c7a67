"""Conversations as the stores show them to `changes`: a row of the tables, or a legacy blob."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from conversations.content.changes.change import Change
from conversations.content.document import Document
from conversations.content.entries import Entry, entries_of
from conversations.models import ConversationState
from conversations.stores.normalized import NormalizedStore
from conversations.stores.types import Stored
from flags.phases import StoreName


class TablesView:
    """A conversation in the tables. Lists are read when they are asked for, once."""

    store = StoreName.NORMALIZED

    def __init__(self, tables: NormalizedStore, row: ConversationState, *, values: bool) -> None:
        self._tables, self._row, self._values = tables, row, values
        self.revision = row.revision
        self.version = bytes(row.messages_digest).hex()
        self.counts = (row.message_count, row.context_item_count)
        # Without a removal, every number is a place.
        places = (row.next_sequence - 1, row.next_item_sequence - 1)
        self.numbered_by_place = places == self.counts

    def fields(self) -> dict[str, Any]:
        return self._tables.fields(self._row)

    @cached_property
    def _messages(self) -> list[Entry]:
        if self._row.pk is None:
            return []
        return self._tables.messages(self._row, values=self._values)

    def messages(self) -> list[Entry]:
        return self._messages

    @cached_property
    def _items(self) -> list[Entry]:
        if self._row.pk is None or not self._row.context_item_count:
            return []
        return self._tables.items(self._row)[0]

    def items(self) -> list[Entry]:
        return self._items

    def versions(self, *, values: bool = False) -> list[Entry]:
        return self._tables.versions(self._row, values=values) if self._row.pk else []

    def keyed(self, keys: Sequence[str]) -> list[Entry]:
        return self._tables.keyed(self._row, keys) if self._row.pk else []

    def found(self, references: Sequence[int | str]) -> list[Entry]:
        return self._tables.found(self._row, references)

    def newest(self, count: int) -> list[Entry]:
        return self._tables.newest(self._row, count)

    def history(self, reference: int | str) -> list[Entry]:
        return self._tables.history(self._row, reference)

    def successor(self, entry: Entry) -> Entry | None:
        return self._tables.successor(self._row, entry)


class LegacyView:
    """A conversation in a legacy blob. Messages have places instead of sequences, and no keys."""

    store = StoreName.LEGACY

    def __init__(self, stored: Stored, *, revision: int) -> None:
        self._document = stored.document
        self._lists = (
            entries_of(stored.document.messages, numbered=True),
            entries_of(stored.document.items, numbered=True),
        )
        self.revision = revision
        self.version = stored.version
        self.counts = (len(stored.document.messages), len(stored.document.items))
        self.numbered_by_place = True

    def fields(self) -> dict[str, Any]:
        return self._document.fields

    def messages(self) -> list[Entry]:
        return self._lists[0]

    def items(self) -> list[Entry]:
        return self._lists[1]

    def versions(self, *, values: bool = False) -> list[Entry]:
        return self._lists[0]

    def keyed(self, keys: Sequence[str]) -> list[Entry]:
        return []


def changed_document(view: TablesView | LegacyView, change: Change) -> Document:
    """Return the whole document that a change makes of a view (read with values)."""
    if change.document is not None:
        return change.document
    messages = [*view.messages(), *change.appended]
    if change.messages is not None:
        messages = list(change.messages[1])
    elif change.edits:
        by_place = {entry.place: entry for entry in messages}
        for old, new in change.edits:
            if old is not None:
                del by_place[old.place]
            if new is not None:
                by_place[new.place] = new
        messages = [by_place[place] for place in sorted(by_place)]
    items = list(change.items[1]) if change.items is not None else view.items()
    return Document(
        dict(view.fields() if change.fields is None else change.fields),
        [entry.value for entry in messages],
        [entry.value for entry in items],
    )
