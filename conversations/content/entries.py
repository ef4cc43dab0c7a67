"""The entries of a list of messages or of context items: stored versions, and new ones. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from conversations.content.digests import DIGEST_BYTES, digest_of

# The value of an entry whose content was not read.
UNREAD: Any = object()


@dataclass(slots=True, eq=False)
class Entry:
    """One element of a list: a stored version (`row` is its primary key), or a new one.

    `identity` is the sequence of a message or a context item, None until it is stored. Items also
    have a `position`, since their order is not that of their sequences. `supersedes` is the row
    that this version replaces.
    """

    digest: bytes
    value: Any = UNREAD
    identity: int | None = None
    row: int | None = None
    key: str | None = None
    key_digest: bytes | None = None
    supersedes: int | None = None
    superseded_in: int | None = None
    added_in: int = 0
    has_metadata: bool = False
    position: int | None = None

    @property
    def place(self) -> int:
        """Return the identity of an entry that has one."""
        if self.identity is None:
            raise ValueError("this entry has no place yet")
        return self.identity

    @property
    def stored_row(self) -> int:
        """Return the primary key of an entry that is stored."""
        if self.row is None:
            raise ValueError("this entry is not stored yet")
        return self.row


def entries_of(values: Sequence[Any], *, numbered: bool = False) -> list[Entry]:
    """Return new entries of canonical values, numbered from 1 by place if asked."""
    return [
        Entry(digest_of(value), value, identity=place if numbered else None)
        for place, value in enumerate(values, start=1)
    ]


@dataclass(frozen=True, slots=True)
class Given:
    """The elements that a load returns: their identities, their digests joined, their values."""

    identities: Sequence[int]
    digests: bytes
    values: list[Any]

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Given:
        """Return these entries as a load returns them."""
        return cls(
            [entry.identity or 0 for entry in entries],
            b"".join([entry.digest for entry in entries]),
            [entry.value for entry in entries],
        )

    def behind(self, first: int) -> Given:
        """Return the elements from the place `first` on."""
        if not first:
            return self
        digests = self.digests[first * DIGEST_BYTES :]
        return Given(self.identities[first:], digests, self.values[first:])


NOTHING = Given([], b"", [])


def edited(old: Entry, *, digest: bytes, value: Any) -> Entry:
    """Return the version that replaces `old`: same place, same key, same first digest."""
    return Entry(
        digest,
        value,
        identity=old.identity,
        key=old.key,
        key_digest=old.key_digest,
        supersedes=old.row,
        position=old.position,
    )


def resequence(entries: Sequence[Entry], *, next_sequence: int) -> int:
    """Give the entries rising sequences, in place. Returns: the next free one.

    A sequence is never used twice. So all entries from an insertion before the end on are
    superseded, and added again with new sequences.
    """
    previous, keep = 0, True
    for entry in entries:
        keep = keep and entry.identity is not None and entry.identity > previous
        if keep and entry.identity is not None:
            previous = entry.identity
            continue
        if entry.row is not None:
            entry.supersedes, entry.row = entry.row, None
        entry.identity = next_sequence
        next_sequence += 1
    return next_sequence
