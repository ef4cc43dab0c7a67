"""The words of a message or a context item, from any provider's form. Pure.

Most forms keep their text under `content`. Others keep it under another key (`text`, `fact`,
`memory`, the parts of a message), and a message that calls a tool has no text. With these words,
a list never shows a blank row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from flags.admin.text import LONGEST_SHOWN, compact_json

# The words of a mapping are under the first of these keys with a text: OpenAI, Anthropic, Gemini,
# Bedrock, AI SDK (parts, output), Responses items (summary, output), LangChain (page_content,
# data), memory stores (value, fact, memory).
TEXT_KEYS = (
    *("content", "text", "value", "fact", "memory", "page_content", "parts", "message"),
    *("output", "result", "summary", "thinking", "reasoning", "refusal", "transcript", "data"),
)
CALL_KEYS = ("tool_calls", "function_call")
ARGUMENTS = ("arguments", "args", "input")
# Keys that describe a message or an item, and hold none of its words.
DESCRIBING = frozenset(
    {
        *("role", "type", "kind", "id", "key", "name", "source", "timestamp", "index", "status"),
        *("created_at", "updated_at", "relevance_score", "score", "context_type", "message_type"),
        *("tool_name", "tool_success", "tool_call_id", "tool_use_id", "call_id", "model"),
        *("metadata", "signature", "encrypted_content", "focus_area", "preference_type"),
    }
)
# Deeper JSON is not taken apart.
DEEPEST = 12
# So many entries of a list or mapping are read.
MOST_ENTRIES = 50


def words_of(value: Any, *, limit: int = LONGEST_SHOWN) -> str:
    """Return the words of any JSON value, at most `limit` characters.

    Returns: the text under the first of `TEXT_KEYS` that has one; else the calls of tools, as
    `name(arguments)`; else the other fields as "key: text"; "" if there are no words.
    """
    return spoken(value, limit=limit) or _cut(_fields(value, limit, 0), limit)


def spoken(value: Any, *, limit: int = LONGEST_SHOWN) -> str:
    """Return the text under the known keys of a value, or its calls."""
    return _cut(_spoken(value, limit, 0), limit)


def _cut(text: str, limit: int) -> str:
    return text[:limit] if text.strip() else ""


def _spoken(value: Any, limit: int, depth: int) -> str:
    if isinstance(value, str):
        return value[:limit]
    if value is None:
        return ""
    if not isinstance(value, list | dict):
        return json.dumps(value)
    if depth > DEEPEST:
        return compact_json(value, limit=limit)
    if isinstance(value, list):
        return _joined((_said(each, limit, depth + 1) for each in value), "\n", limit)
    for key in TEXT_KEYS:
        if key in value:
            text = _said(value[key], limit, depth + 1)
            if text.strip():
                return text
    if isinstance(value.get("tool_calls"), list):
        calls = (_call(each, limit) for each in value["tool_calls"])
        return _joined(calls, "\n", limit)
    return _call(value.get("function_call") or value, limit)


def _said(value: Any, limit: int, depth: int) -> str:
    text = _spoken(value, limit, depth)
    return text if text.strip() else _fields(value, limit, depth)


def _call(value: Any, limit: int) -> str:
    """Return a call as `name(arguments)`, "" if a value is no call."""
    inner: Any = value.get("function") if isinstance(value, dict) else None
    call: Any = inner if isinstance(inner, dict) else value
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return ""
    for key in ARGUMENTS:
        if key in call:
            given = call[key]
            if isinstance(given, str) and "\\u" in given:
                # JSON in ASCII: an operator cannot read "\\u0437" as a letter.
                given = beginning_of_json(given[: 6 * limit]) or given
            said = given if isinstance(given, str) else compact_json(given, limit=limit)
            return f"{call['name'][:limit]}({said[:limit]})"
    return f"{call['name'][:limit]}()" if call is inner else ""


def _fields(value: Any, limit: int, depth: int) -> str:
    """Return the words of the other fields of a mapping, each behind its key."""
    if not isinstance(value, dict) or depth > DEEPEST:
        return ""
    said = (
        f"{key[:limit]}: {text}"
        for key, inner in value.items()
        if key not in DESCRIBING
        for text in [_said(inner, limit, depth + 1)]
        if text.strip()
    )
    return _joined(said, ", ", limit)


def _joined(texts: Iterator[str], separator: str, limit: int) -> str:
    """Join the texts that are not blank, and stop reading at the limit."""
    found: list[str] = []
    size = 0
    for text in islice(texts, MOST_ENTRIES):
        if text.strip():
            found.append(text)
            size += len(text) + len(separator)
        if size >= limit:
            break
    return separator.join(found)[:limit]


def words_of_columns(columns: Mapping[str, Any], *, limit: int = LONGEST_SHOWN) -> str:
    """Return the words of a row whose column `content` is blank.

    `columns`: the beginnings of `extra`, which keeps values that fit no column, and of
    `tool_calls`.
    """
    notes = beginning_of_json(columns.get("extra") or "")
    kept = notes.get("raw", notes.get("values")) if isinstance(notes, dict) else None
    calls = beginning_of_json(columns.get("tool_calls") or "")
    if calls is not None:
        kept = {**(kept if isinstance(kept, dict) else {}), "tool_calls": calls}
    return words_of(kept, limit=limit)


_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|"(?:[^"\\]|\\.)*\\?\Z|[\[\]{},:]|[^\s\[\]{},:"]+')


def beginning_of_json(text: str) -> Any:
    """Return the value of the beginning of a JSON text, None if there is none.

    A value that is cut off is left out; a string that is cut off keeps its beginning.
    """
    try:
        return json.loads(text)
    except RecursionError:
        return None
    except ValueError:
        closed = _closed(text)
    try:
        return json.loads(closed)
    except (ValueError, RecursionError):
        return None


def _closed(text: str) -> str:
    """Return JSON that was cut off, closed, without its incomplete last value."""
    closing: list[str] = []
    whole = ""
    in_key = False
    for found in _PIECE.finditer(text):
        piece = found[0]
        if piece in "[{":
            closing.append("]" if piece == "[" else "}")
            in_key = piece == "{"
        elif piece in "]}" and closing:
            closing.pop()
        elif piece == ",":
            in_key = closing[-1:] == ["}"]
            continue
        elif piece == ":" or in_key:
            in_key = in_key and piece != ":"
            continue
        elif found.end() == len(text):
            if not piece.startswith('"'):
                break
            whole = text[: found.start()] + _closed_string(piece)
            return whole + "".join(reversed(closing))
        whole = text[: found.end()] + "".join(reversed(closing))
    return whole


def _closed_string(piece: str) -> str:
    """Return a string that was cut off, without the half of an escape at its end."""
    for end in range(len(piece), max(len(piece) - 6, 0), -1):
        closed = f'{piece[:end]}"'
        try:
            json.loads(closed)
        except ValueError:
            continue
        return closed
    return '""'
