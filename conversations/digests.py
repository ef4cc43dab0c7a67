"""Digests: equal digests mean equal content, type-strictly (1, 1.0 and True all differ).

blake2b-128 over marshal version 2, which writes the same bytes on every CPython we support
(versions 3 and 4 depend on interning and on references). Only canonical values are digested:
what `json.loads` gives, so that NaN has one bit pattern and lists are never tuples.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

DIGEST_BYTES = 16
EMPTY = bytes(DIGEST_BYTES)


def digest_of(value: Any) -> bytes:
    """Return the digest of a canonical JSON value: 16 bytes.

    Raises: ValueError for what is no JSON value.
    """
    return blake2b(marshal.dumps(value, 2), digest_size=DIGEST_BYTES).digest()


def roll(start: bytes, digests: Iterable[bytes]) -> bytes:
    """Return the digest of a sequence that begins with `start` and goes on with `digests`.

    `roll(roll(EMPTY, a), b) == roll(EMPTY, a + b)`: an append needs only the new digests.
    """
    rolled = start
    for digest in digests:
        rolled = blake2b(rolled + digest, digest_size=DIGEST_BYTES).digest()
    return rolled


def split(joined: bytes) -> list[bytes]:
    """Return the digests that were joined into one string of bytes."""
    return [joined[i : i + DIGEST_BYTES] for i in range(0, len(joined), DIGEST_BYTES)]
