"""Tell at the speed of C that a list is unchanged, without a digest of each element.

Digesting every message of a long conversation at every save takes as long as ten appends.
"""

from __future__ import annotations

import marshal
from hashlib import sha256
from itertools import chain, compress
from operator import is_
from typing import Any

_IMMUTABLE = frozenset({str, int, float, bool, type(None)})
_NESTED = frozenset({list, dict})


class Seal:
    """Proof that mappings still hold the same objects as when they were sealed.

    Immutable values are compared by identity, so 1 is not taken for 1.0; nested values by the
    digest of their marshalled bytes. A broken seal proves nothing: then digests must decide. A
    seal stays in the process that made it.
    """

    __slots__ = ("_digest", "_keys", "_leaves", "_lengths", "_nested")

    def __init__(
        self, lengths: list[int], keys: list[str], leaves: list[Any], nested: list[Any]
    ) -> None:
        """Raises: ValueError for a value that is no JSON."""
        self._lengths, self._keys, self._leaves, self._nested = lengths, keys, leaves, nested
        self._digest = _digest(nested)

    @classmethod
    def of(cls, values: Any, *, canonical: bool = False) -> Seal | None:
        """Seal a list of mappings; None if it cannot be sealed.

        `canonical` lists (see `conversations.content.validation`) need no test of their types.
        """
        if not values or not isinstance(values, list) or set(map(type, values)) != {dict}:
            return None
        keys = list(chain.from_iterable(values))
        leaves = list(chain.from_iterable(map(dict.values, values)))
        if not canonical and not (
            set(map(type, keys)) <= {str} and set(map(type, leaves)) <= _IMMUTABLE | _NESTED
        ):
            return None
        nested = list(compress(leaves, map(_NESTED.__contains__, map(type, leaves))))
        try:
            return cls(list(map(len, values)), keys, leaves, nested)
        except ValueError:
            return None

    def __len__(self) -> int:
        return len(self._lengths)

    def unbroken(self, values: Any) -> bool:
        """Whether a list begins with exactly what was sealed."""
        length = len(self._lengths)
        if not isinstance(values, list) or len(values) < length:
            return False
        values = values[:length]
        if set(map(type, values)) != {dict} or list(map(len, values)) != self._lengths:
            return False
        if list(chain.from_iterable(values)) != self._keys:
            return False
        if not all(map(is_, chain.from_iterable(map(dict.values, values)), self._leaves)):
            return False
        try:
            # The objects are the same ones, but their contents may have changed.
            return _digest(self._nested) == self._digest
        except ValueError:
            return False


# Marshalled in batches: all at once would take as much memory as the whole conversation.
_AT_ONCE = 100


def _digest(nested: list[Any]) -> bytes:
    """Return the digest of nested values. SHA-256, because processors have instructions for it."""
    digest = sha256()
    for start in range(0, len(nested), _AT_ONCE):
        digest.update(marshal.dumps(nested[start : start + _AT_ONCE], 2))
    return digest.digest()
