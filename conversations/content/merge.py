"""Carry changes made from an older view onto a conversation's current content. Pure.

A save names the list it loaded and the list it wants. The difference is applied to the current
entries, so entries that the caller never saw stay. Old code names only the list it wants, so it
removes nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from conversations.content.alignment import matched, opcodes
from conversations.content.entries import Entry, edited


def locate_by_content(given: Sequence[bytes], current: Sequence[Entry]) -> list[Entry | None]:
    """Return the current entry of each given digest, or None where it is gone.

    An equal text is the same entry only at the same aligned place. Places are compared from the
    end, since a caller usually holds the tail. A changed text is never taken for an edit of
    another: that could supersede a message its writer has not seen.
    """
    located: list[Entry | None] = [None] * len(given)
    backwards = current[::-1]
    for i, j in matched(given[::-1], [entry.digest for entry in backwards]):
        located[i] = backwards[j]
    return located[::-1]


@dataclass(slots=True)
class Rebased:
    """The entries after a change, and the current entries whose later edits it superseded."""

    entries: list[Entry]
    overwritten: list[Entry] = field(default_factory=list)


class _Edits:
    """The changes collected against a list of current entries."""

    def __init__(self, current: Sequence[Entry]) -> None:
        self.current = current
        self.places = {id(entry): place for place, entry in enumerate(current)}
        self.removed: set[int] = set()
        self.replaced: dict[int, Entry] = {}
        self.inserted: dict[int, list[Entry]] = {}

    def insert(self, place: int, entry: Entry) -> None:
        self.inserted.setdefault(place, []).append(entry)

    def replace(self, old: Entry, value: Entry) -> None:
        self.replaced[id(old)] = edited(old, digest=value.digest, value=value.value)

    def entries(self) -> list[Entry]:
        result: list[Entry] = []
        for place, entry in enumerate(self.current):
            result += self.inserted.get(place, ())
            if id(entry) not in self.removed:
                result.append(self.replaced.get(id(entry), entry))
        return result + self.inserted.get(len(self.current), [])


def rebase(
    *,
    given: Sequence[bytes],
    located: Sequence[Entry | None],
    places: Sequence[int | None],
    wanted: Sequence[Entry],
    current: Sequence[Entry],
    token: str = "",
    gone: Mapping[str, bytes] | None = None,
    before: int = 0,
) -> Rebased:
    """Apply the difference between `given` and `wanted` to the current entries.

    `located` holds the current entry of each given one (None: removed since), `places` its
    identity in the load. Entries that were not given stay. An edit wins over a removal, and the
    later edit over the earlier. `token` makes the keys of inserted entries. A repeated save
    recognises its own entries by them, among the current ones and those `gone` (key to first
    digest). The first `before` current entries are older than that save.
    """
    edits = _Edits(current)
    rebased = Rebased([])
    own = {entry.key: entry for entry in current if entry.key} if token else {}
    spots = _Spots(edits, located)
    # Others may have removed some of the entries before the first given one.
    before = min([before, *spots.places])
    handed_back = _HandedBack(current, known={id(e) for e in located if e is not None})
    inserts = 0
    for _, i1, i2, j1, j2 in opcodes(given, [entry.digest for entry in wanted]):
        paired = min(i2 - i1, j2 - j1)
        for step in range(paired):
            old, new = located[i1 + step], wanted[j1 + step]
            if old is None and handed_back.holds(new, start=before):
                continue
            if old is None:
                restored = replace(new, identity=places[i1 + step])
                edits.insert(spots.before(i1 + step, restored.identity), restored)
            elif old.digest != new.digest:
                if old.digest != given[i1 + step]:
                    rebased.overwritten.append(old)
                edits.replace(old, new)
        for index in range(i1 + paired, i2):
            old = located[index]
            if old is not None and old.digest == given[index]:
                edits.removed.add(id(old))
        added = [replace(entry) for entry in wanted[j1 + paired : j2]]
        if not added:
            continue
        at_end = i2 == len(given)
        place = len(current) if at_end else spots.before(i1 + paired, None)
        for entry in added:
            entry.key = f"{token}:{inserts}" if token else None
            entry.key_digest = entry.digest if token else None
            inserts += 1
        fresh = handed_back.fresh(added, start=max(before, spots.behind(i1 + paired)))
        for entry in added:
            mine = own.get(entry.key or "")
            if mine is not None:
                if entry.digest not in (mine.digest, mine.key_digest):
                    rebased.overwritten.append(mine)
                    edits.replace(mine, entry)
            elif gone and entry.key is not None and gone.get(entry.key) == entry.digest:
                continue
            elif id(entry) in fresh:
                edits.insert(place, entry)
    rebased.entries = edits.entries()
    return rebased


class _HandedBack:
    """Entries that a repeated save may have written itself, and legacy handed back.

    Legacy keeps no keys. So entries that the caller did not load are recognised by equal content
    in the same order.
    """

    def __init__(self, current: Sequence[Entry], *, known: set[int]) -> None:
        self._found: dict[bytes, list[int]] = {}
        for place, entry in enumerate(current):
            if entry.key is None and id(entry) not in known:
                self._found.setdefault(entry.digest, []).append(place)

    def holds(self, new: Entry, *, start: int) -> bool:
        """Whether legacy handed back this very edit, at or behind the place `start`."""
        return self._found.get(new.digest, [-1])[-1] >= start

    def fresh(self, added: Sequence[Entry], *, start: int) -> set[int]:
        """Return the ids of the added entries that were not handed back at or behind `start`."""
        wanted = [entry.digest for entry in added]
        alike = [
            (place, d) for d in {*wanted} for place in self._found.get(d, ()) if place >= start
        ]
        fresh = {id(entry) for entry in added}
        for _, place in matched([digest for _, digest in sorted(alike)], wanted) if alike else ():
            fresh.discard(id(added[place]))
        return fresh


class _Spots:
    """The places where the entries that a caller loaded stand now."""

    def __init__(self, edits: _Edits, located: Sequence[Entry | None]) -> None:
        self._edits = edits
        self._known = [index for index, entry in enumerate(located) if entry is not None]
        self.places = [edits.places[id(entry)] for entry in located if entry is not None]
        self._identities = [entry.identity or 0 for entry in edits.current]

    def behind(self, index: int) -> int:
        """Return the place behind the last located entry before `index`."""
        at = bisect_left(self._known, index)
        return self.places[at - 1] + 1 if at else 0

    def before(self, index: int, identity: int | None) -> int:
        """Return the place before the given entry `index`."""
        if identity is not None:
            return bisect_right(self._identities, identity)
        at = bisect_left(self._known, index)
        if at:
            return self.places[at - 1] + 1
        return self.places[0] if self.places else len(self._edits.current)


@dataclass(frozen=True, slots=True)
class Merged:
    """The entries after merging old code's list, and how many it added and left out."""

    entries: list[Entry]
    added: int
    omitted: int


def merge_foreign(
    *, versions: Sequence[Entry], current: Sequence[Entry], theirs: Sequence[Entry]
) -> Merged:
    """Merge a list that old code wrote: it can add entries, never remove one.

    Old code prunes its lists and saves lists that it read long ago, so entries that it leaves out
    stay. Content that any version known here already held (`versions`, in order) is not new: a
    removed message stays removed.
    """
    edits = _Edits(current)
    held = {id(entry) for entry in versions}
    added = 0
    known = [entry.digest for entry in versions]
    places = (edits.places.get(id(entry), -1) + 1 for entry in versions)
    behind = [0, *accumulate(places, max)]
    for _, i1, i2, j1, j2 in opcodes(known, [entry.digest for entry in theirs]):
        held -= {id(entry) for entry in versions[i1:i2]}
        place = len(current) if i2 == len(versions) else behind[i2]
        for entry in theirs[j1:j2]:
            edits.insert(place, replace(entry, identity=None, row=None))
            added += 1
    omitted = sum(1 for entry in current if id(entry) not in held)
    return Merged(edits.entries(), added, omitted)
