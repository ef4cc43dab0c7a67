"""How changes made from an older view are carried onto what a conversation holds now. Pure.

A list (of messages or of context items) is a sequence of entries. A save says what it was
given and what it wants; the difference is applied to the current entries, so that whatever
the caller never saw stays. Old code says only what it wants; from it, nothing is removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from typing import Any

from conversations.digests import digest_of

# The value of an entry whose content was not read.
UNREAD: Any = object()

Opcode = tuple[str, int, int, int, int]


@dataclass(slots=True, eq=False)
class Entry:
    """One element of a list: a stored version (`row` is its primary key), or a new one.

    `identity` is the sequence of a message or a context item, None until it is stored; items
    have a `position` as well, since their order is not that of their sequences. `supersedes` is
    the row that this version replaces.
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
    """Return new entries of canonical values, numbered by place from 1 if asked."""
    return [
        Entry(digest_of(value), value, identity=place if numbered else None)
        for place, value in enumerate(values, start=1)
    ]


@dataclass(frozen=True, slots=True)
class Given:
    """The elements that a load gives: their identities, their digests joined, their values."""

    identities: Sequence[int]
    digests: bytes
    values: list[Any]

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Given:
        """Return what a load gives of these entries."""
        return cls(
            [entry.identity or 0 for entry in entries],
            b"".join([entry.digest for entry in entries]),
            [entry.value for entry in entries],
        )


NOTHING = Given([], b"", [])


def opcodes(before: Sequence[bytes], after: Sequence[bytes]) -> Iterator[Opcode]:
    """Yield the differences between two sequences of digests, as difflib does, without "equal".

    The common head and tail are cut off first: an append, the usual case, costs one pass.
    """
    head = 0
    shortest = min(len(before), len(after))
    while head < shortest and before[head] == after[head]:
        head += 1
    tail = 0
    while tail < shortest - head and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    middle_before = before[head : len(before) - tail]
    middle_after = after[head : len(after) - tail]
    matcher = SequenceMatcher(None, middle_before, middle_after, autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag != "equal":
            yield tag, head + i1, head + i2, head + j1, head + j2


def located_by_content(given: Sequence[bytes], current: Sequence[Entry]) -> list[Entry | None]:
    """Return the current entry of each given digest, or None where it is gone.

    An equal text is the same entry only at the same aligned place, compared from the end,
    since what a caller holds is usually the tail. A changed text is never guessed to be an
    edit of another: that would supersede a message its writer has not seen.
    """
    located: list[Entry | None] = [None] * len(given)
    backwards = current[::-1]
    digests = [entry.digest for entry in backwards]
    i = j = 0
    end = ("end", len(given), len(given), len(current), len(current))
    for _, i1, i2, _j1, j2 in [*opcodes(given[::-1], digests), end]:
        for step in range(i1 - i):
            located[i + step] = backwards[j + step]
        i, j = i2, j2
    return located[::-1]


@dataclass(slots=True)
class Rebased:
    """The entries after a change, and the current entries whose later edit it superseded."""

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


def edited(old: Entry, *, digest: bytes, value: Any) -> Entry:
    """Return the version that replaces `old`: at its place, with its key and first digest."""
    return Entry(
        digest,
        value,
        identity=old.identity,
        key=old.key,
        key_digest=old.key_digest,
        supersedes=old.row,
        position=old.position,
    )


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
    identity when it was given. What was not given stays. An edit wins over a removal, the
    later edit over the earlier. `token` makes keys for what is inserted, by which a repeated
    save recognises its own entries, among the current ones and those `gone` (key to first
    digest). The first `before` current entries are older than that save.
    """
    edits = _Edits(current)
    rebased = Rebased([])
    own = {entry.key: entry for entry in current if entry.key} if token else {}
    known = {id(entry) for entry in located if entry is not None}
    # Others may have removed some of what stood before.
    before = min([before, *(edits.places[id(entry)] for entry in located if entry is not None)])
    inserts = 0
    for _, i1, i2, j1, j2 in opcodes(given, [entry.digest for entry in wanted]):
        paired = min(i2 - i1, j2 - j1)
        for step in range(paired):
            old, new = located[i1 + step], wanted[j1 + step]
            if old is None and _already_there(new, current[before:], known):
                continue
            if old is None:
                restored = replace(new, identity=places[i1 + step])
                edits.insert(_place_before(edits, located, i1 + step, restored.identity), restored)
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
        place = len(current) if at_end else _place_before(edits, located, i1 + paired, None)
        for entry in added:
            entry.key = f"{token}:{inserts}" if token else None
            entry.key_digest = entry.digest if token else None
            inserts += 1
        start = max(before, _place_after(edits, located, i1 + paired))
        fresh = _not_repeated(added, current[start:], known)
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


def _already_there(new: Entry, current: Sequence[Entry], known: set[int]) -> bool:
    """Whether legacy handed back this very edit, when its save is repeated."""
    return any(
        entry.key is None and id(entry) not in known and entry.digest == new.digest
        for entry in current
    )


def _place_after(edits: _Edits, located: Sequence[Entry | None], index: int) -> int:
    """Return the place behind the last located entry before `index`."""
    for entry in reversed(located[:index]):
        if entry is not None:
            return edits.places[id(entry)] + 1
    return 0


def _place_before(
    edits: _Edits, located: Sequence[Entry | None], index: int, identity: int | None
) -> int:
    """Return the place of what stands before the given entry `index`."""
    if identity is not None:
        for place, entry in enumerate(edits.current):
            if entry.identity is not None and entry.identity > identity:
                return place
        return len(edits.current)
    for earlier in reversed(located[:index]):
        if earlier is not None:
            return edits.places[id(earlier)] + 1
    for later in located[index:]:
        if later is not None:
            return edits.places[id(later)]
    return len(edits.current)


def _not_repeated(added: Sequence[Entry], tail: Sequence[Entry], known: set[int]) -> set[int]:
    """Return the ids of the added entries that legacy did not already hand back.

    A save that went to legacy, where entries have no keys, is recognised when it is repeated
    by equal content in the same order, among what the caller was not given.
    """
    candidates = [e.digest for e in tail if e.key is None and id(e) not in known]
    fresh = {id(entry) for entry in added}
    if candidates:
        wanted = [entry.digest for entry in added]
        matcher = SequenceMatcher(None, candidates, wanted, autojunk=False)
        for _, start, size in matcher.get_matching_blocks():
            fresh -= {id(entry) for entry in added[start : start + size]}
    return fresh


@dataclass(frozen=True, slots=True)
class Merged:
    """The entries after old code's list was taken in; how many it added, and left out."""

    entries: list[Entry]
    added: int
    omitted: int


def merge_foreign(
    *, versions: Sequence[Entry], current: Sequence[Entry], theirs: Sequence[Entry]
) -> Merged:
    """Take in a list that old code wrote: it can add, never remove.

    Old code prunes its lists and saves what it read long ago, so what it leaves out stays,
    and what any version known here already held (`versions`, in order) is not new: a
    removed message stays removed.
    """
    edits = _Edits(current)
    matched: set[int] = {id(entry) for entry in versions}
    added = 0
    known = [entry.digest for entry in versions]
    for _, i1, i2, j1, j2 in opcodes(known, [entry.digest for entry in theirs]):
        matched -= {id(entry) for entry in versions[i1:i2]}
        place = len(current)
        if i2 < len(versions):
            before = [edits.places[id(e)] for e in versions[:i2] if id(e) in edits.places]
            place = max(before) + 1 if before else 0
        for entry in theirs[j1:j2]:
            edits.insert(place, replace(entry, identity=None, row=None))
            added += 1
    omitted = sum(1 for entry in current if id(entry) not in matched)
    return Merged(edits.entries(), added, omitted)


def resequence(entries: Sequence[Entry], *, next_sequence: int) -> int:
    """Give the entries rising sequences, in place. Returns: the next free one.

    A sequence is never used twice, so from an insertion before the end on, everything is
    superseded and added again behind.
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
