"""Messages as a hand-written program would turn them into columns, and back. Pure.

The columns are the codec's own, found in less time: of the messages that assistants write, the
order of keys says what `extra` holds. A test compares both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from conversations.codec import MESSAGE_COLUMNS, encode_message
from conversations.digests import digest_of

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


# Of a text of `extra`: the keys of the message and their columns, or nothing.
_orders: dict[str, tuple[tuple[str, int], ...]] = {}
_CALLS = MESSAGE_COLUMNS.index("tool_calls")
_SUCCESS = MESSAGE_COLUMNS.index("tool_success")
_EXTRA = MESSAGE_COLUMNS.index("extra")


def messages_of(rows: Iterable[Row]) -> list[Any]:
    """Return the messages of rows that begin with the codec's columns."""
    return [_message(row) for row in rows]


def _message(row: Row) -> Any:
    extra = row[_EXTRA]
    if not extra:
        if row[_CALLS] is None and row[_SUCCESS] is None and row[2] is row[3] is row[5] is None:
            return {"role": row[0], "content": row[1]}
        return {key: _value(row, at) for key, at in _PLACES if row[at] is not None}
    order = _orders.get(extra)
    if order is None:
        notes = json.loads(extra)
        if set(notes) != {"keys"} or not all(key in _AT for key in notes["keys"]):
            return _noted(row, notes)
        order = _orders[extra] = tuple((key, _AT[key]) for key in notes["keys"])
    return {key: _value(row, at) for key, at in order}


_PLACES = tuple((key, at) for at, key in enumerate(MESSAGE_COLUMNS[:-1]))
_AT = dict(_PLACES)


def _value(row: Row, at: int) -> Any:
    value = row[at]
    if at == _CALLS and value is not None:
        return json.loads(value)
    if at == _SUCCESS and value is not None:
        return bool(value)
    return value


def _noted(row: Row, notes: dict[str, Any]) -> Any:
    if "raw" in notes:
        return notes["raw"]
    values = notes.get("values", {})
    keys = notes.get("keys")
    if keys is None:
        own = [key for key, at in _PLACES if row[at] is not None and key not in values]
        keys = [*own, *values]
    return {key: values[key] if key in values else _value(row, _AT[key]) for key in keys}
