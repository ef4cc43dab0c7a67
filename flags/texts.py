"""Texts of callers in messages, logs and terminals: shortened, and on one line. Pure.

`shown` is for a value in a message: at most `MOST` characters of a text, and only the kind and
size of a collection. `escaped` is for the outlets, which pass on any text.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from uuid import UUID

# A message repeats this many characters of an argument: enough for a UUID, a key or a name.
MOST = 50
# Ids often begin alike and differ at their ends, so a long one keeps both.
_BEGINNING, _END = 30, 20

# Characters that control a terminal, begin another line of a log, or reorder a text: C0, DEL and
# C1, the separators of lines and paragraphs, the bidirectional embeddings, overrides and isolates.
# Surrogates cannot be written at all. Joiners and direction marks stay, because ordinary text
# needs them in several scripts.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# NUL, which no text column of PostgreSQL holds, and surrogates, which no database accepts.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_COLLECTIONS = (dict, list, tuple, set, frozenset, bytes, bytearray)


def escaped(text: str) -> str:
    """Return a text with its control characters as Python escapes them: ESC is `\\x1b`.

    An escaped text stays the same, so escaping twice does no harm.
    """
    return _CONTROLS.sub(_escape, text)


def storable(text: str) -> str:
    """Return a text that every database's columns hold, with NUL and surrogates escaped.

    Python makes surrogates of a terminal's bytes that are no UTF-8.
    """
    return _UNSTORABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def shortened(text: str) -> str:
    """Return a text, or its beginning and its end: `MOST` characters of it."""
    return text if len(text) <= MOST else f"{text[:_BEGINNING]}…{text[-_END:]}"


def shown(value: Any) -> str:
    """Return the part of an argument that a message may repeat, on one line.

    A text gives at most `MOST` characters. A collection, such as a mapping, gives its kind and
    size. Any other object gives its kind, because its repr may hold anything.
    """
    # Not isinstance: a lazy object claims the class of its value.
    kind = type(value)
    if issubclass(kind, str):
        # The text itself: a subclass may define another str().
        return escaped(shortened(str.__str__(value)))
    if value is None or issubclass(kind, bool):
        return repr(value)
    if issubclass(kind, float):
        return float.__repr__(value)
    if issubclass(kind, int):
        # Python refuses to write thousands of digits.
        size = value.bit_length()
        return shortened(int.__repr__(value)) if size < 1000 else f"an int of {size} bits"
    if type(value) is UUID:
        return str(value)
    if type(value) is timedelta:
        return repr(value)
    name = escaped(shortened(kind.__name__))
    said = f"{'an' if name[:1] in 'AEIOaeio' else 'a'} {name}"
    return f"{said} of {len(value)}" if issubclass(kind, _COLLECTIONS) else said


def quoted(value: Any) -> str:
    """Return the part of an argument that a message may repeat, with quotes around a text."""
    return f"'{shown(value)}'" if issubclass(type(value), str) else shown(value)
