"""Messages as a hand-written program would turn them into columns, and back. Pure.

The columns are the codec's own, found in less time: of the messages that assistants write, the
order of keys says what `extra` holds. A test compares both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from conversations.content.codec import MESSAGE_COLUMNS, encode_message
from conversations.content.digests import digest_of

_PLAIN = frozenset({"role", "content", "tool_name", "tool_success", "tool_call_id", "tool_calls"})
# Of the keys of a message: what `extra` says of them.
_extras: dict[tuple[Any, ...], str] = {}

Row = tuple[Any, ...]


def row_of(message: Any, *, now: datetime) -> Row:
    """Return a message's columns: those of the codec, then its digest and its time."""
    content, calls = message.get("content"), message.get("tool_calls")
    plain = content is None or type(content) is str
    shape = (*message, content is None, plain)
    extra = _extras.get(shape)
    if extra is None:
        columns = encode_message(message, now=now)
        if plain and _PLAIN.issuperset(message):
            _extras[shape] = columns["extra"]
        whole = (columns[name] for name in MESSAGE_COLUMNS)
        return (*whole, digest_of(message), columns["timestamp"])
    return (
        message.get("role"),
        content,
        None,
        message.get("tool_name"),
        message.get("tool_success"),
        message.get("tool_call_id"),
        None if calls is None else json.dumps(calls),
        extra,
        digest_of(message),
        now,
    )


# Of a text of `extra`: the keys of the message and their columns; None where it says more.
_orders: dict[str, tuple[tuple[str, int], ...] | None] = {}
_PLACES = tuple((key, at) for at, key in enumerate(MESSAGE_COLUMNS[:-1]))
_AT = dict(_PLACES)
_CALLS, _SUCCESS = _AT["tool_calls"], _AT["tool_success"]


def messages_of(rows: Iterable[Row]) -> list[Any]:
    """Return the messages of rows that are the codec's columns."""
    rows = list(rows)
    # One call of the parser costs more than what it parses.
    texts = [row[_CALLS] for row in rows if row[_CALLS] is not None]
    parsed = iter(json.loads(f"[{','.join(texts)}]"))
    messages: list[Any] = []
    for row in rows:
        role, content, kind, tool, success, call, calls, extra = row
        if calls is not None:
            row = (role, content, kind, tool, success, call, next(parsed), extra)
        elif success is not None:
            # SQLite gives 0 or 1.
            row = (role, content, kind, tool, bool(success), call, None, extra)
        elif not extra and kind is tool is call is None:
            messages.append({"role": role, "content": content})
            continue
        order = _orders[extra] if extra in _orders else _learnt(extra)
        if order is None:
            messages.append(_noted(row, json.loads(extra) if extra else {}))
        else:
            messages.append({key: row[at] for key, at in order})
    return messages


def _learnt(extra: str) -> tuple[tuple[str, int], ...] | None:
    """Return the keys and columns that a text of `extra` names, and remember them if it does."""
    notes = json.loads(extra) if extra else {}
    if set(notes) != {"keys"} or not _AT.keys() >= set(notes["keys"]):
        return None
    _orders[extra] = order = tuple((key, _AT[key]) for key in notes["keys"])
    return order


def _noted(row: Row, notes: dict[str, Any]) -> Any:
    """Return a message that needs more than the order of its keys."""
    if "raw" in notes:
        return notes["raw"]
    values = notes.get("values", {})
    own = [key for key, at in _PLACES if row[at] is not None and key not in values]
    keys = notes.get("keys", [*own, *values])
    return {key: values[key] if key in values else row[_AT[key]] for key in keys}
