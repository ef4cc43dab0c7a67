"""Stored text for an operator: printable, bounded, JSON indented. Pure.

Templates escape for HTML; the functions here do not. Nothing here is ever written back. A limit
bounds the layout of a value of any size, so that hidden characters cost no time and no memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# A page of messages may hold many texts: one of 10 MB must not make it unusable.
LONGEST_SHOWN = 20_000
LONGEST_INDENTED = 200_000
# A name, a role or an id beside a text.
LONGEST_LABEL = 200
# JSON that is nested deeper is indented no further: a line would be nothing but blanks.
DEEPEST_INDENT = 24

# Characters that HTML or UTF-8 cannot carry: control characters and lone surrogates. Also the two
# characters that reverse a text, which no honest text needs.
_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202d\u202e\ud800-\udfff]")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+')
_INDENT = "  "


@dataclass(frozen=True, slots=True)
class Shown:
    """A text ready to be shown.

    `hidden` is the number of characters that were cut off, None if they were not counted.
    """

    text: str
    hidden: int | None = 0
    is_json: bool = False

    def __bool__(self) -> bool:
        return bool(self.text)

    @property
    def more(self) -> str:
        """Return the note about the hidden rest, "" if all is shown."""
        if self.hidden is None:
            return "… and more"
        return f"… {self.hidden:,} more characters" if self.hidden else ""


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code > 0x7F:
        return f"\\u{code:04x}"
    return "\u2421" if code == 0x7F else chr(0x2400 + code)


def visible(text: str) -> str:
    """Return a text with its control characters as symbols: NUL is shown as U+2400."""
    return _INVISIBLE.sub(_symbol, text)


def label(text: str, *, limit: int = LONGEST_LABEL) -> str:
    """Return the beginning of a name or an id, with an ellipsis if it is cut off."""
    return visible(text[:limit]) + ("…" if len(text) > limit else "")


def shown(text: str, *, limit: int = LONGEST_SHOWN) -> Shown:
    """Return the beginning of a text, with the number of characters cut off."""
    return Shown(visible(text[:limit]), hidden=max(len(text) - limit, 0))


def shown_json(text: str, *, limit: int = LONGEST_SHOWN) -> Shown:
    """Return JSON text with indentation; other text is shown unchanged.

    Numbers, the order of keys and repeated keys stay as written, because the text is laid out
    anew, not parsed and dumped.
    """
    if len(text) > LONGEST_INDENTED or not _is_json(text):
        return shown(text, limit=limit)
    layout = _Layout(limit)
    for found in _TOKEN.finditer(text):
        if not layout.add(_unescaped(found[0])):
            return Shown(layout.text, hidden=len(text) - found.start(), is_json=True)
    return Shown(layout.text, hidden=layout.cut, is_json=True)


def shown_value(value: Any, *, limit: int = LONGEST_SHOWN) -> Shown:
    """Return any JSON value: a string as its text, everything else indented."""
    if isinstance(value, str):
        return shown(value, limit=limit)
    layout = _Layout(limit)
    whole = all(map(layout.add, _tokens(value, limit)))
    return Shown(layout.text, hidden=layout.cut if whole else None, is_json=True)


def compact_json(value: Any, *, limit: int) -> str:
    """Return a JSON value on one line, at most `limit` characters of it."""
    pieces: list[str] = []
    size = 0
    for token in _tokens(value, limit):
        pieces.append(f"{token} " if token in ",:" else token)
        size += len(pieces[-1])
        if size >= limit:
            break
    return "".join(pieces)[:limit]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _unescaped(token: str) -> str:
    """Return a string's token with printable characters in place of their escapes."""
    return json.dumps(json.loads(token), ensure_ascii=False) if token[0] == '"' else token


def _tokens(value: Any, limit: int) -> Iterator[str]:
    """Yield the tokens of a value's JSON. A string longer than `limit` ends there."""
    # The open lists and mappings: the remaining entries of each, and its closing token.
    entries: Iterator[tuple[str | None, Any]] = iter([(None, value)])
    stack = [(entries, "")]
    first = True
    while stack:
        entries, closing = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
            if closing:
                yield closing
            first = False
            continue
        key, inner = entry
        if not first:
            yield ","
        if key is not None:
            yield json.dumps(key[:limit], ensure_ascii=False)
            yield ":"
        first = isinstance(inner, dict | list)
        if isinstance(inner, dict):
            yield "{"
            stack.append((iter(inner.items()), "}"))
        elif isinstance(inner, list):
            yield "["
            stack.append((((None, each) for each in inner), "]"))
        else:
            yield json.dumps(inner[:limit] if isinstance(inner, str) else inner, ensure_ascii=False)


class _Layout:
    """JSON with line breaks, token by token, until it has `limit` characters."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._pieces: list[str] = []
        self._size = 0
        self._depth = 0
        self._before = ""

    @property
    def text(self) -> str:
        """Return the text up to the limit."""
        return visible("".join(self._pieces)[: self.limit])

    @property
    def cut(self) -> int:
        """Return the number of hidden characters of the last token."""
        return max(self._size - self.limit, 0)

    def add(self, token: str) -> bool:
        """Take one more token. Returns: False without taking it, if there is no room."""
        if self._size >= self.limit:
            return False
        if token in "]}":
            self._depth -= 1
            if self._before not in "[{":
                self._add(self._line())
        elif self._before and self._before in "[{,":
            self._add(self._line())
        if token in "[{":
            self._depth += 1
        self._add(f"{token} " if token == ":" else token)
        self._before = token
        return True

    def _line(self) -> str:
        return "\n" + _INDENT * min(self._depth, DEEPEST_INDENT)

    def _add(self, piece: str) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
