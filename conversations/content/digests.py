"""Digests: equal digests mean equal content, type-strictly (1, 1.0 and True all differ).

blake2b-128 over marshal version 2, which writes the same bytes on every CPython we support
(versions 3 and 4 depend on interning and on references). Only canonical values are digested:
results of `json.loads`, so NaN has one bit pattern and lists are never tuples.

A list of digests is rolled by SHA-256, cut to 128 bits, because PostgreSQL can compute that too:
then an append reads nothing. The messages of a conversation are rolled in blocks of `BLOCK`
sequences, and then the blocks are rolled. So an edit needs only the digests of its own block.
"""

from __future__ import annotations

import json
import marshal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b, sha256
from typing import Any

DIGEST_BYTES = 16
EMPTY = bytes(DIGEST_BYTES)
# How many sequences are rolled into one digest. Stored digests depend on it.
BLOCK = 256


def digest_of(value: Any) -> bytes:
    """Return the digest of a canonical JSON value: 16 bytes.

    Raises: ValueError for a value that is no JSON.
    """
    return blake2b(marshal.dumps(value, 2), digest_size=DIGEST_BYTES).digest()


def loosened(value: Any) -> Any:
    """Return a form that is the same for all values that a JSON column cannot tell apart.

    jsonb sorts keys, and keeps numbers as decimals: 1.0 is 1, and 1e23 is exactly 10 ** 23.
    """
    # json's own C code does this: recursion in Python could not go as deep as the parser.
    return json.loads(json.dumps(value, sort_keys=True), parse_float=_loose_number)


def _loose_number(text: str) -> float | int:
    number = float(text)
    return int(Decimal(text)) if number.is_integer() else number


def loose_digest(value: Any) -> bytes:
    """Return a digest that is the same for all values that a JSON column cannot tell apart."""
    return digest_of(loosened(value))


def same_values(ours: Any, theirs: Any) -> bool:
    """Whether two JSON values are the same except for the order of keys; 1 is not True, nor 1.0."""
    try:
        return bool(ours == theirs) and _same_types(ours, theirs)
    except RecursionError:
        return False


def _same_types(ours: Any, theirs: Any) -> bool:
    """Whether two equal values also have equal types, at every depth."""
    kind = type(ours)
    if kind is dict:
        # Only a text equals a text, so texts need no test.
        return all(
            _same_types(value, theirs[name])
            for name, value in ours.items()
            if type(value) is not str
        )
    if kind is list:
        return all(map(_same_types, ours, theirs))
    return kind is type(theirs)


def roll(start: bytes, digests: Iterable[bytes]) -> bytes:
    """Return the digest of a sequence that begins with `start` and continues with `digests`.

    `roll(roll(EMPTY, a), b) == roll(EMPTY, a + b)`: an append needs only the new digests.
    """
    rolled = start
    for digest in digests:
        rolled = sha256(rolled + digest).digest()[:DIGEST_BYTES]
    return rolled


def split(joined: bytes) -> list[bytes]:
    """Return the digests that were joined into one string of bytes."""
    return [joined[i : i + DIGEST_BYTES] for i in range(0, len(joined), DIGEST_BYTES)]


def block_of(sequence: int) -> int:
    """Return the number of the block that holds a sequence, from 0."""
    return (sequence - 1) // BLOCK


def roll_on(digest: bytes, digests: Iterable[bytes]) -> bytes:
    """Return a conversation's `messages_digest` after an append within the open block."""
    return roll(digest[:DIGEST_BYTES], digests) + digest[DIGEST_BYTES:]


@dataclass(frozen=True, slots=True)
class Blocks:
    """The digests of a conversation's current messages, by blocks of their sequences.

    `open` is the digest of the block of the next sequence, `closed` the joined digests of the
    blocks before it. None for `closed` is the older form: all messages are one block.
    """

    open: bytes = EMPTY
    closed: bytes | None = b""

    @classmethod
    def of(cls, places: Iterable[tuple[int, bytes]], *, next_sequence: int) -> Blocks:
        """Return the blocks of messages, given by rising sequences with their digests."""
        by_block: dict[int, list[bytes]] = {}
        for sequence, digest in places:
            by_block.setdefault(block_of(sequence), []).append(digest)
        rolled = [EMPTY] * (max(block_of(next_sequence), *by_block, 0) + 1)
        for number, digests in by_block.items():
            rolled[number] = roll(EMPTY, digests)
        return cls(rolled[-1], b"".join(rolled[:-1]))

    @property
    def digest(self) -> bytes:
        """Return `messages_digest`: the open block's digest, then that of any closed blocks."""
        return self.open + (roll(EMPTY, split(self.closed)) if self.closed else b"")

    def appended(self, digests: list[bytes], *, next_sequence: int) -> Blocks:
        """Return the blocks after an append that begins at `next_sequence`."""
        if self.closed is None:
            return Blocks(roll(self.open, digests), None)
        rolled, closed, start = self.open, self.closed, 0
        room = BLOCK * (block_of(next_sequence) + 1) - next_sequence + 1
        while len(digests) - start >= room:
            closed += roll(rolled, digests[start : start + room])
            rolled, start, room = EMPTY, start + room, BLOCK
        return Blocks(roll(rolled, digests[start:]), closed)

    def replaced(self, digests: Mapping[int, bytes]) -> Blocks:
        """Return the blocks with other digests for those whose numbers are given."""
        blocks = [*split(self.closed or b""), self.open]
        for number, digest in digests.items():
            blocks[number] = digest
        return Blocks(blocks[-1], b"".join(blocks[:-1]))
