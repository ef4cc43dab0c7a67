"""Stored text as an operator sees it: printable, bounded, JSON indented. Pure.

Nothing here escapes for HTML, the templates do; and nothing here is ever written back.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

# A page of messages may hold many texts: one of 10 MB must not make it unusable.
LONGEST_SHOWN = 20_000
LONGEST_INDENTED = 200_000

# What HTML or UTF-8 cannot carry: control characters and lone surrogates. And the two
# characters that make a text read backwards, as no honest text needs them.
_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202d\u202e\ud800-\udfff]")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+')
_INDENT = "  "


@dataclass(frozen=True, slots=True)
class Shown:
    """A text ready to be shown. `hidden` is the number of characters that were cut off."""

    text: str
    hidden: int = 0
    is_json: bool = False

    def __bool__(self) -> bool:
        return bool(self.text)


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code > 0x7F:
        return f"\\u{code:04x}"
    return "\u2421" if code == 0x7F else chr(0x2400 + code)


def visible(text: str) -> str:
    """Return a text with its control characters as symbols: NUL is shown as U+2400."""
    return _INVISIBLE.sub(_symbol, text)


def shown(text: str, *, limit: int = LONGEST_SHOWN) -> Shown:
    """Return the beginning of a text, and how much was cut off."""
    return Shown(visible(text[:limit]), hidden=max(len(text) - limit, 0))


def shown_json(text: str, *, limit: int = LONGEST_SHOWN) -> Shown:
    """Return JSON text with indentation; what is no JSON is shown as it is.

    Numbers, the order of keys and keys given twice stay as they were written: the text is
    laid out anew, not parsed and dumped.
    """
    if len(text) > LONGEST_INDENTED or not _is_json(text):
        return shown(text, limit=limit)
    laid_out = shown(_indented(text), limit=limit)
    return Shown(laid_out.text, laid_out.hidden, is_json=True)


def shown_value(value: Any, *, limit: int = LONGEST_SHOWN) -> Shown:
    """Return any JSON value: a string as the text that it is, everything else indented."""
    if isinstance(value, str):
        return shown(value, limit=limit)
    return shown_json(json.dumps(value), limit=limit)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _indented(text: str) -> str:
    """Return valid JSON with line breaks. Strings are unescaped where that can be shown."""
    pieces: list[str] = []
    depth = 0
    tokens = _TOKEN.findall(text)
    for place, token in enumerate(tokens):
        before = tokens[place - 1] if place else ""
        if token in "]}":
            depth -= 1
            if before not in "[{":
                pieces.append("\n" + _INDENT * depth)
        elif before and before in "[{,":
            pieces.append("\n" + _INDENT * depth)
        if token in "[{":
            depth += 1
        if token.startswith('"'):
            token = json.dumps(json.loads(token), ensure_ascii=False)
        pieces.append(token + " " if token == ":" else token)
    return "".join(pieces)
