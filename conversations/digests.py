"""Digests: equal digests mean equal content, type-strictly (1, 1.0 and True all differ).

blake2b-128 over marshal version 2, which writes the same bytes on every CPython we support
(versions 3 and 4 depend on interning and on references). Only canonical values are digested:
what `json.loads` gives, so that NaN has one bit pattern and lists are never tuples.

A list of digests is rolled by SHA-256, cut to 128 bits, because PostgreSQL computes that as well:
an append then needs to read nothing.
"""

from __future__ import annotations

import json
import marshal
from collections.abc import Iterable
from decimal import Decimal
from hashlib import blake2b, sha256
from typing import Any

DIGEST_BYTES = 16
EMPTY = bytes(DIGEST_BYTES)


def digest_of(value: Any) -> bytes:
    """Return the digest of a canonical JSON value: 16 bytes.

    Raises: ValueError for what is no JSON value.
    """
    return blake2b(marshal.dumps(value, 2), digest_size=DIGEST_BYTES).digest()


def loosened(value: Any) -> Any:
    """Return what is equal for all that a JSON column cannot tell apart.

    jsonb sorts keys, and keeps numbers as decimals: 1.0 is 1, and 1e23 is exactly 10 ** 23.
    """
    # By json's own C code: a recursion of ours would not reach as deep as what it has parsed.
    return json.loads(json.dumps(value, sort_keys=True), parse_float=_loose_number)


def _loose_number(text: str) -> float | int:
    number = float(text)
    return int(Decimal(text)) if number.is_integer() else number


def loose_digest(value: Any) -> bytes:
    """Return a digest that is equal for what a JSON column cannot tell apart."""
    return digest_of(loosened(value))


def same_values(ours: Any, theirs: Any) -> bool:
    """Whether two JSON values are the same but for the order of keys; 1 is not True, nor 1.0."""
    try:
        return bool(ours == theirs) and _same_types(ours, theirs)
    except RecursionError:
        return False


def _same_types(ours: Any, theirs: Any) -> bool:
    """Whether values that are equal are so type by type."""
    kind = type(ours)
    if kind is dict:
        # Nothing but a text equals a text.
        return all(
            _same_types(value, theirs[name])
            for name, value in ours.items()
            if type(value) is not str
        )
    if kind is list:
        return all(map(_same_types, ours, theirs))
    return kind is type(theirs)


def roll(start: bytes, digests: Iterable[bytes]) -> bytes:
    """Return the digest of a sequence that begins with `start` and goes on with `digests`.

    `roll(roll(EMPTY, a), b) == roll(EMPTY, a + b)`: an append needs only the new digests.
    """
    rolled = start
    for digest in digests:
        rolled = sha256(rolled + digest).digest()[:DIGEST_BYTES]
    return rolled


def split(joined: bytes) -> list[bytes]:
    """Return the digests that were joined into one string of bytes."""
    return [joined[i : i + DIGEST_BYTES] for i in range(0, len(joined), DIGEST_BYTES)]
