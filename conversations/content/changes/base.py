"""The view that a change is computed from, and the operation that computes it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from conversations.content.changes.change import Addition, Change
from conversations.content.entries import Entry
from conversations.content.redaction import Redactions
from flags.phases import StoreName

# Our own keys begin with this prefix; a caller's keys may not.
OWN_KEYS = "~"


def new_token() -> str:
    """Return a random token for the keys of one save."""
    return os.urandom(8).hex()


class View(Protocol):
    """A conversation as one store holds it at one moment, under the lock."""

    store: StoreName
    revision: int
    # Identifies the list of messages: equal versions mean an equal list.
    version: str
    # How many messages and context items there are.
    counts: tuple[int, int]
    # Whether the numbers of all of these are their places, from 1, as legacy's are.
    numbered_by_place: bool

    def fields(self) -> dict[str, Any]:
        """Return the fields."""

    def messages(self) -> list[Entry]:
        """Return the current messages, in order."""

    def items(self) -> list[Entry]:
        """Return the current context items, in order."""

    def versions(self, *, values: bool = False) -> list[Entry]:
        """Return every known version of every message."""

    def keyed(self, keys: Sequence[str]) -> list[Entry]:
        """Return every version of the messages with these keys."""


class RowsView(View, Protocol):
    """A conversation in the tables, for operations that need its rows: messages one by one."""

    def found(self, references: Sequence[int | str]) -> list[Entry]:
        """Return the current messages with these sequences (integers) or keys, in order."""

    def newest(self, count: int) -> list[Entry]:
        """Return the last `count` messages, in order."""

    def history(self, reference: int | str) -> list[Entry]:
        """Return every version, current or not, with this sequence or key."""

    def successor(self, entry: Entry) -> Entry | None:
        """Return the current version of a superseded one, None if it was removed."""


class Operation(Protocol):
    """One mutation of one conversation."""

    # The name under which flags.metrics counts it.
    name: ClassVar[str]
    # Whether it needs data that only the tables hold: keys, sequences, versions.
    needs_rows: bool
    # Whether it needs the content of the messages, not only their digests.
    needs_values: bool
    # Whether it creates a conversation that does not exist.
    creates: bool

    def redact(self, redactions: Redactions) -> None:
        """Replace this conversation's redacted texts by their redacted form."""

    def addition(self) -> Addition | None:
        """Return a change that only adds and needs no view, or None for any other change."""

    def apply(self, view: View) -> Change:
        """Return the change."""


def differ(before: Sequence[Entry], after: Sequence[Entry]) -> bool:
    """Whether two lists of entries differ."""
    return len(before) != len(after) or any(
        old is not new for old, new in zip(before, after, strict=True)
    )
