"""The change that one operation makes to a conversation, and the conditions it depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conversations.content.document import Document
from conversations.content.entries import Entry

Edit = tuple[Entry | None, Entry | None]


@dataclass(slots=True)
class Change:
    """The changes of one revision. None means: that part stays as it is.

    `appended` holds messages behind the last one. `edits` changes single messages: each is a pair
    of the current version and its successor, which takes its place. Without a first the message
    is restored; without a second it is removed. `messages` is the pair of all entries before and
    after; `items` the same for context items. `document` is the whole conversation afterwards, if
    the caller gave it.
    """

    fields: Mapping[str, Any] | None = None
    appended: Sequence[Entry] = ()
    edits: Sequence[Edit] = ()
    messages: tuple[Sequence[Entry], Sequence[Entry]] | None = None
    items: tuple[Sequence[Entry], Sequence[Entry]] | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    document: Document | None = None

    @property
    def nothing(self) -> bool:
        """Whether nothing changes."""
        return (
            self.fields is None
            and not self.appended
            and not self.edits
            and self.messages is None
            and self.items is None
            and not self.columns
        )


@dataclass(frozen=True, slots=True)
class At:
    """The state of a row that an addition was computed for; `version` is `messages_digest`."""

    revision: int
    version: bytes
    fields_digest: bytes


@dataclass(frozen=True, slots=True)
class Addition:
    """Messages behind the last one, and new values of the fields in `changed`.

    With a `baseline` it is valid only for that state of the conversation, and `rolled` is the
    digest of all messages afterwards. `keys` are the caller's own; no earlier message may have
    one.
    """

    messages: Sequence[Entry]
    rolled: bytes | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    changed: frozenset[str] = frozenset()
    fields_digest: bytes = b""
    baseline: At | None = None
    keys: Sequence[str] = ()
