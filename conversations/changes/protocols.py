"""What a change is computed from, and what computes it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from conversations.merge import Entry
from conversations.redactions import Redactions
from conversations.stores.normalized import Addition, Change
from flags.phases import StoreName

# Keys that we give begin so; a caller's may not.
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

    def fields(self) -> dict[str, Any]:
        """Return the fields."""

    def messages(self) -> list[Entry]:
        """Return the current messages, in order."""

    def items(self) -> list[Entry]:
        """Return the current context items, in order."""

    def versions(self, *, values: bool = False) -> list[Entry]:
        """Return every version of every message that is known here."""

    def keyed(self, keys: Sequence[str]) -> list[Entry]:
        """Return every version of the messages with these keys."""


class Operation(Protocol):
    """One mutation of one conversation."""

    # What it is counted as; see flags.metrics.
    name: ClassVar[str]
    # Whether it needs what only the tables hold: keys, sequences, versions.
    needs_rows: bool
    # Whether it needs the content of the messages, not only their digests.
    needs_values: bool
    # Whether it makes a conversation that does not exist.
    creates: bool

    def redact(self, redactions: Redactions) -> None:
        """Put what was redacted in this conversation into its redacted form."""

    def addition(self) -> Addition | None:
        """Return the change where it can be told without a view: it only adds. None elsewhere."""

    def apply(self, view: View) -> Change:
        """Return the change."""


def differ(before: Sequence[Entry], after: Sequence[Entry]) -> bool:
    """Whether a list of entries is another one afterwards."""
    return len(before) != len(after) or any(
        old is not new for old, new in zip(before, after, strict=True)
    )
