"""Telling at the speed of C that a list is still what it was, without a digest of each element.

A digest of every message of a long conversation, at every save, takes as long as ten appends.
"""

from __future__ import annotations

import marshal
from collections.abc import Sequence
from itertools import chain
from operator import is_
from typing import Any

_IMMUTABLE = frozenset({str, int, float, bool, type(None)})
_NESTED = frozenset({list, dict})


class Seal:
    """Proof that mappings still hold, object for object, what they held when they were sealed.

    What cannot change is compared by identity, so 1 is not taken for 1.0; what is nested by its
    marshalled bytes. A broken seal proves nothing: then digests have to tell. It stays in the
    process that made it.
    """

    __slots__ = ("_keys", "_leaves", "_lengths", "_nested")

    def __init__(
        self, lengths: list[int], keys: list[str], leaves: list[Any], nested: bytes
    ) -> None:
        self._lengths, self._keys, self._leaves, self._nested = lengths, keys, leaves, nested

    @classmethod
    def of(cls, values: Any) -> Seal | None:
        """Seal a list of mappings; None where that is not possible."""
        if not isinstance(values, list) or not values or set(map(type, values)) != {dict}:
            return None
        keys = list(chain.from_iterable(values))
        leaves = list(chain.from_iterable(map(dict.values, values)))
        if not (set(map(type, keys)) <= {str} and set(map(type, leaves)) <= _IMMUTABLE | _NESTED):
            return None
        try:
            nested = _nested_in(leaves)
        except ValueError:
            return None
        return cls(list(map(len, values)), keys, leaves, nested)

    def __len__(self) -> int:
        return len(self._lengths)

    def unbroken(self, values: Sequence[Any]) -> bool:
        """Whether a list begins with exactly what was sealed."""
        values = values[: len(self)]
        if set(map(type, values)) != {dict} or list(map(len, values)) != self._lengths:
            return False
        leaves = list(chain.from_iterable(map(dict.values, values)))
        try:
            return (
                list(chain.from_iterable(values)) == self._keys
                and all(map(is_, leaves, self._leaves))
                and _nested_in(leaves) == self._nested
            )
        except ValueError:
            return False


def _nested_in(leaves: Sequence[Any]) -> bytes:
    """Return the bytes of what is nested: the same for the same content, type-strictly.

    Raises: ValueError for what is no JSON value.
    """
    nested = [leaf for leaf in leaves if type(leaf) in _NESTED]
    return marshal.dumps(nested, 2) if nested else b""
