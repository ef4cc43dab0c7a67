"""Find the messages and items that a caller loaded among the current ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from conversations.content.baseline import Baseline
from conversations.content.changes.base import OWN_KEYS, View
from conversations.content.entries import Entry
from conversations.content.merge import locate_by_content
from flags.phases import StoreName


def locate_messages(
    base: Baseline | None, view: View, current: Sequence[Entry]
) -> tuple[list[Entry | None], dict[str, bytes]]:
    """Return the current entry of each loaded message, and own keys whose message is gone."""
    if base is None:
        return [], {}
    given = base.given_messages
    if base.store == view.store and (base.revision, base.version) == (view.revision, view.version):
        by_identity = {entry.identity: entry for entry in current}
        return [by_identity.get(place) for place in base.sequences], {}
    if view.store == StoreName.LEGACY:
        return locate_by_content(given, current), {}
    versions = view.versions()
    held = {entry.key for entry in current}
    prefix = OWN_KEYS + base.token
    gone = {
        entry.key: entry.key_digest
        for entry in versions
        if entry.key and entry.key.startswith(prefix) and entry.key not in held
    }
    starts = _given_versions(base, versions)
    located = descendants(starts, versions, current)
    if None in starts:
        located = _completed(located, starts, locate_by_content(given, current))
    return located, {key: digest for key, digest in gone.items() if digest is not None}


def _given_versions(base: Baseline, versions: Sequence[Entry]) -> list[Entry | None]:
    """Return the version of each loaded message, None where it cannot be found."""
    as_of = [
        entry
        for entry in versions
        if entry.added_in <= base.revision
        and (entry.superseded_in is None or entry.superseded_in > base.revision)
    ]
    given = base.given_messages
    if base.store == StoreName.NORMALIZED:
        # If retention deleted that version, its successor stands at the same sequence.
        later = [entry for entry in versions if entry.added_in > base.revision]
        by_sequence = {entry.identity: entry for entry in [*later[::-1], *as_of]}
        return [by_sequence.get(place) for place in base.sequences]
    # Legacy numbers its messages by place: at an equal revision, the places are the same here.
    # After a save the places are unknown, so the content must decide.
    known = all(
        0 < place <= len(as_of) and as_of[place - 1].digest == digest
        for place, digest in zip(base.sequences, given, strict=True)
    )
    if known:
        return [as_of[place - 1] for place in base.sequences]
    return locate_by_content(given, as_of)


def _completed(
    located: Sequence[Entry | None],
    starts: Sequence[Entry | None],
    by_content: Sequence[Entry | None],
) -> list[Entry | None]:
    """Find by content the entries of messages whose loaded version was not found."""
    taken = {id(entry) for entry in located if entry is not None}
    return [
        found if start is None and found is not None and id(found) not in taken else entry
        for entry, start, found in zip(located, starts, by_content, strict=True)
    ]


def descendants(
    starts: Sequence[Entry | None], versions: Sequence[Entry], current: Sequence[Entry]
) -> list[Entry | None]:
    """Return the current successor of each version, or None if it was removed."""
    # A version may have two successors: a message was moved and removed, and then restored.
    successors: dict[int, list[Entry]] = defaultdict(list)
    for entry in versions:
        if entry.supersedes is not None:
            successors[entry.supersedes].append(entry)
    by_row = {entry.row: entry for entry in current}
    located: list[Entry | None] = []
    for start in starts:
        pending = [] if start is None else [start]
        while pending and pending[-1].row not in by_row:
            pending += successors[pending.pop().stored_row]
        located.append(by_row[pending[-1].row] if pending else None)
    return located


def locate_items(base: Baseline | None, view: View, current: Sequence[Entry]) -> list[Entry | None]:
    """Return the current entry of each loaded context item."""
    if base is None:
        return []
    same = base.store == view.store
    if same and (view.store == StoreName.NORMALIZED or base.version == view.version):
        by_identity = {entry.identity: entry for entry in current}
        return [by_identity.get(place) for place in base.item_ids]
    return locate_by_content(base.given_items, current)
