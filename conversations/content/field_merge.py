"""Carry changes to a conversation's fields onto their current values. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conversations.content.digests import digest_of
from conversations.content.document import HISTORY

# A length, and the digest of that many entries.
Span = tuple[int, bytes]


def merge_fields(
    *,
    base: Mapping[str, bytes],
    history: tuple[Span, Span],
    current: Mapping[str, Any],
    wanted: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the fields after a save: the caller's changes win, all other fields stay.

    `base` holds the digest of each field that the caller loaded. If the caller and others both
    added to the step log `history`, both tails stay, the caller's last. `history` gives two
    lengths with their digests: of the log that the caller has, and of the stored one, which
    includes entries of others.
    """
    merged: dict[str, Any] = {}
    for name, value in wanted.items():
        digest = digest_of(value)
        if base.get(name) == digest:
            if name in current:
                merged[name] = current[name]
        elif name == HISTORY and name in current:
            merged[name] = _merged_history(*history, current[name], value)
        else:
            merged[name] = value
    for name, value in current.items():
        if name not in wanted and base.get(name) != digest_of(value):
            merged[name] = value
    return merged


def _merged_history(given: Span, stored: Span, current: list[Any], wanted: list[Any]) -> list[Any]:
    theirs, ours = _behind(stored, current), _behind(given, wanted)
    if theirs is not None and ours is not None:
        return [*current, *ours[_repeated(theirs, ours) :]]
    if theirs is not None:
        # The caller may rewrite the entries it loaded; entries that others added stay.
        return [*wanted, *theirs]
    if _begins(current, wanted):
        return current
    # Another writer rewrote the log: append the caller's own new entries.
    return wanted if ours is None or _begins(wanted, current) else [*current, *ours]


def _behind(start: Span, entries: list[Any]) -> list[Any] | None:
    """Return the entries behind a start, or None if the entries begin otherwise."""
    length, digest = start
    return entries[length:] if digest_of(entries[:length]) == digest else None


def _repeated(theirs: list[Any], ours: list[Any]) -> int:
    """Return how many of our first entries already stand among theirs, in one piece.

    A repeated save finds its own entries there, as does one after an unknown outcome.
    """
    there, here = list(map(digest_of, theirs)), list(map(digest_of, ours))
    longest = 0
    for place in range(len(there)):
        length = 0
        while there[place + length : place + length + 1] == here[length : length + 1] != []:
            length += 1
        longest = max(longest, length)
    return longest


def _begins(longer: list[Any], shorter: list[Any]) -> bool:
    return digest_of(longer[: len(shorter)]) == digest_of(shorter)
