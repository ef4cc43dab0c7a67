"""Where two sequences of digests are the same, in about linear time. Pure.

difflib's time grows with the square of the length if texts repeat ("ok"), or if every second
element is removed. The conversation is locked meanwhile. So long sequences are cut at digests that
occur once in each; difflib compares the pieces, and short sequences whole.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

Opcode = tuple[str, int, int, int, int]
Pair = tuple[int, int]

# Up to this many comparisons are left to difflib: some milliseconds at worst.
COMPARED = 2**14
# How often the pieces between cuts are cut again.
DEPTH = 16


def opcodes(before: Sequence[bytes], after: Sequence[bytes]) -> Iterator[Opcode]:
    """Yield the differences between two sequences of digests, as difflib does, without "equal"."""
    i = j = 0
    for left, right in (*_pairs(before, after), (len(before), len(after))):
        if left > i and right > j:
            yield "replace", i, left, j, right
        elif left > i:
            yield "delete", i, left, j, right
        elif right > j:
            yield "insert", i, left, j, right
        i, j = left + 1, right + 1


def matched(before: Sequence[bytes], after: Sequence[bytes]) -> list[Pair]:
    """Return the places that hold the same digest in both sequences, rising in both."""
    return list(_pairs(before, after))


def _pairs(before: Sequence[bytes], after: Sequence[bytes], depth: int = 0) -> Iterator[Pair]:
    """Yield the matching places. The common head and tail come first: an append is one pass."""
    head, tail = _ends(before, after)
    yield from ((place, place) for place in range(head))
    ends = len(before) - tail, len(after) - tail
    for i, j in _between(before[head : ends[0]], after[head : ends[1]], depth):
        yield head + i, head + j
    yield from ((ends[0] + step, ends[1] + step) for step in range(tail))


def _ends(before: Sequence[bytes], after: Sequence[bytes]) -> Pair:
    head = 0
    shortest = min(len(before), len(after))
    while head < shortest and before[head] == after[head]:
        head += 1
    tail = 0
    while tail < shortest - head and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    return head, tail


def _between(before: Sequence[bytes], after: Sequence[bytes], depth: int) -> Iterator[Pair]:
    if len(before) * len(after) <= COMPARED:
        matcher = SequenceMatcher(None, before, after, autojunk=False)
        for i, j, size in matcher.get_matching_blocks():
            yield from ((i + step, j + step) for step in range(size))
        return
    anchors = _anchors(before, after) if depth < DEPTH else ()
    if not anchors:
        yield from _by_turns(before, after)
        return
    i = j = 0
    for left, right in (*anchors, (len(before), len(after))):
        for inner_i, inner_j in _pairs(before[i:left], after[j:right], depth + 1):
            yield i + inner_i, j + inner_j
        if left < len(before):
            yield left, right
        i, j = left + 1, right + 1


def _anchors(before: Sequence[bytes], after: Sequence[bytes]) -> list[Pair]:
    """Return the longest rising run of places of the digests that occur once in each sequence."""
    once = {digest for digest, count in Counter(after).items() if count == 1}
    once &= {digest for digest, count in Counter(before).items() if count == 1}
    places = {digest: place for place, digest in enumerate(after) if digest in once}
    return _rising([(i, places[digest]) for i, digest in enumerate(before) if digest in once])


def _by_turns(before: Sequence[bytes], after: Sequence[bytes]) -> list[Pair]:
    """Match the n-th of equal elements with the n-th, where no digest occurs only once."""
    places: dict[bytes, list[int]] = defaultdict(list)
    for place, digest in enumerate(after):
        places[digest].append(place)
    turns: Counter[bytes] = Counter()
    pairs = []
    for i, digest in enumerate(before):
        turn = turns[digest]
        if turn < len(places.get(digest, ())):
            pairs.append((i, places[digest][turn]))
            turns[digest] = turn + 1
    return _rising(pairs)


def _rising(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the longest subsequence that rises in both parts; the pairs rise in their first."""
    ends: list[int] = []
    chain: list[int] = []
    earlier: list[int] = []
    for index, (_, place) in enumerate(pairs):
        at = bisect_left(ends, place)
        earlier.append(chain[at - 1] if at else -1)
        if at == len(ends):
            ends.append(place)
            chain.append(index)
        else:
            ends[at], chain[at] = place, index
    run = []
    index = chain[-1] if chain else -1
    while index >= 0:
        run.append(pairs[index])
        index = earlier[index]
    return run[::-1]
