"""How messages and context items become columns, and come back exactly. Pure.

A column holds a value only if it returns that very value. `extra` holds everything else of the
mapping, and the order of its keys, as JSON text. So `decode(encode(value))` is `value` for every
canonical JSON value, on every database, while the columns stay plain and searchable.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from sys import intern
from typing import Any

from conversations.content.moments import stated_moment, states_time
from memory.selection import quality_of

# Characters that some database's text columns refuse: NUL (PostgreSQL), lone surrogates (UTF-8).
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_ESCAPED = re.compile("[\\\\\x00\ud800-\udfff]")
_ESCAPE = re.compile(r"\\(\\|u[0-9a-f]{4})")

SHORT = 255
ROLE = 64
BIGINT = 2**63


def storable(text: str) -> bool:
    """Whether the text columns of every database hold this text unchanged."""
    return _UNSTORABLE.search(text) is None


def escape(text: str) -> str:
    """Return a text with NUL, lone surrogates and backslashes as escapes; see `unescape`."""
    return _ESCAPED.sub(
        lambda match: "\\\\" if match[0] == "\\" else f"\\u{ord(match[0]):04x}", text
    )


def unescape(text: str) -> str:
    """Return the text that `escape` was given."""
    return _ESCAPE.sub(lambda match: "\\" if match[1] == "\\" else chr(int(match[1][1:], 16)), text)


def text_of(content: Any) -> str | None:
    """Return the readable text of a message's content: a string, or the text of its parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    return "\n".join(text for text in texts if isinstance(text, str))


def _short(limit: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and len(value) <= limit and storable(value)


def _score(value: Any) -> bool:
    # -0.0 would come back as 0.0 from SQLite, which keeps whole REALs as integers.
    return isinstance(value, float) and 0 <= value <= 1 and math.copysign(1, value) > 0


_MESSAGE_FITS: Mapping[str, Callable[[Any], bool]] = {
    "role": _short(ROLE),
    "message_type": _short(SHORT),
    "tool_name": _short(SHORT),
    "tool_success": lambda value: isinstance(value, bool),
    "tool_call_id": _short(SHORT),
}
_ITEM_FITS: Mapping[str, Callable[[Any], bool]] = {
    "source": _short(SHORT),
    "relevance_score": _score,
    "context_type": _short(SHORT),
    "role": _short(ROLE),
    "focus_area": _short(SHORT),
    "preference_type": _short(SHORT),
}
_ITEM_COLUMNS = {"role": "original_role"}

# Keys in this order need no note in `extra`.
_MESSAGE_KEYS = (
    "role",
    "content",
    "message_type",
    "tool_name",
    "tool_success",
    "tool_call_id",
    "tool_calls",
)
# The columns of a message, in the order of `decode_messages`.
MESSAGE_COLUMNS = (*_MESSAGE_KEYS, "extra")
_MESSAGE_PLACES = {key: place for place, key in enumerate(_MESSAGE_KEYS)}
_SUCCESS, _CALLS = _MESSAGE_PLACES["tool_success"], _MESSAGE_PLACES["tool_calls"]
_EXTRA = MESSAGE_COLUMNS.index("extra")
# The values of message_type, tool_name, tool_success, tool_call_id and tool_calls if none is set.
_OTHERS, _NOTHING_ELSE = slice(2, 7), (None,) * 5
_ITEM_KEYS = ("content", *_ITEM_FITS)
# The columns of a context item, in the order of `decode_items`.
ITEM_COLUMNS = (*(_ITEM_COLUMNS.get(key, key) for key in _ITEM_KEYS), "extra")
_ITEM_PLACES = {key: place for place, key in enumerate(_ITEM_KEYS)}
_ITEM_EXTRA = ITEM_COLUMNS.index("extra")


def _encode_content(value: Any, columns: dict[str, Any], notes: dict[str, Any]) -> bool:
    """Fill the column `content`; return whether it alone restores `value`."""
    text = text_of(value)
    if text is None:
        columns["content"] = None
        return value is None
    if storable(text):
        columns["content"] = text
    else:
        columns["content"] = escape(text)
        notes["escaped"] = True
    return isinstance(value, str)


def _encode(
    value: Any,
    keys: tuple[str, ...],
    fits: Mapping[str, Callable[[Any], bool]],
    names: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the columns of a mapping, and the notes that `extra` must hold beside them."""
    columns: dict[str, Any] = {names.get(key, key): None for key in keys}
    notes: dict[str, Any] = {}
    if not isinstance(value, dict):
        _encode_content(value, columns, notes)
        return columns, {"raw": value} | notes
    values: dict[str, Any] = {}
    for key, inner in value.items():
        if key == "content":
            exact = _encode_content(inner, columns, notes)
        elif key == "tool_calls" and key in columns and isinstance(inner, list):
            columns[key] = json.dumps(inner)
            exact = True
        elif key in fits and fits[key](inner):
            columns[names.get(key, key)] = inner
            exact = True
        else:
            exact = False
        if not exact:
            values[key] = inner
    if list(value) != _implied_keys(columns, values, keys, names):
        notes["keys"] = list(value)
    if values:
        notes["values"] = values
    return columns, notes


def _implied_keys(
    columns: Mapping[str, Any],
    values: Mapping[str, Any],
    keys: tuple[str, ...],
    names: Mapping[str, str],
) -> list[str]:
    own = [key for key in keys if columns[names.get(key, key)] is not None and key not in values]
    return own + list(values)


def _decode(columns: Sequence[Any], notes: Any, places: Mapping[str, int]) -> Any:
    """Return the value of columns. `places` maps keys to columns; their JSON is parsed already."""
    if notes is None:
        return {key: columns[at] for key, at in places.items() if columns[at] is not None}
    if "raw" in notes:
        return notes["raw"]
    values = notes.get("values", {})
    order = notes.get("keys")
    if order is None:
        own = (key for key, at in places.items() if columns[at] is not None)
        order = [*(key for key in own if key not in values), *values]
    decoded = {key: values[key] if key in values else columns[places[key]] for key in order}
    if "escaped" in notes and "content" not in values and decoded.get("content") is not None:
        decoded["content"] = unescape(decoded["content"])
    return decoded


# Most messages are a role and a text, in this order.
_PLAIN = ("role", "content")
_NO_COLUMNS = {**dict.fromkeys(_MESSAGE_KEYS), "extra": ""}


def encode_message(message: Any, *, now: datetime) -> dict[str, Any]:
    """Return the columns of a message.

    `tool_name` also takes the `name` of a tool's answer (OpenAI's form). `timestamp` takes the
    moment that the message states (see `moments`), else `now`. Both serve searches only:
    `decode_message` returns them only if the message had these keys.
    """
    if type(message) is dict and tuple(message) == _PLAIN:
        role, content = message["role"], message["content"]
        if _MESSAGE_FITS["role"](role) and isinstance(content, str) and storable(content):
            return {**_NO_COLUMNS, "role": role, "content": content, "timestamp": now}
    columns, notes = _encode(message, _MESSAGE_KEYS, _MESSAGE_FITS, {})
    columns["timestamp"] = stated_moment(message) if states_time(message) else now
    if isinstance(message, dict) and "tool_name" not in message and columns["role"] == "tool":
        name = message.get("name")
        if _MESSAGE_FITS["tool_name"](name):
            columns["tool_name"] = name
            notes["keys"] = list(message)
    columns["extra"] = json.dumps(notes) if notes else ""
    return columns


def decode_message(columns: Mapping[str, Any]) -> Any:
    """Return the message that `encode_message` was given."""
    return decode_messages([tuple(columns[name] for name in MESSAGE_COLUMNS)])[0]


def decode_messages(rows: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Return the messages of rows that begin with `MESSAGE_COLUMNS`.

    All JSON texts of the rows are parsed in one call, because a call costs more than most texts.
    The texts are then twice in memory, so a batch of rows should be small.
    """
    all_calls = _parsed_at_once([row[_CALLS] for row in rows if row[_CALLS]])
    decoded: list[Any] = []
    noted: list[tuple[int, list[Any]]] = []
    for row in rows:
        extra = row[_EXTRA]
        if not extra and row[_OTHERS] == _NOTHING_ELSE:
            if row[0] is not None and row[1] is not None:
                # Most messages are a text and one of a few roles: a tenth of the general way's
                # time.
                decoded.append({"role": intern(row[0]), "content": row[1]})
                continue
        shape = _SHAPES[extra]
        if shape is not None:
            keys, values_of = shape
            # Both have the same length; `strict=True` would cost a tenth of this function.
            made = dict(zip(keys, values_of(row)))  # noqa: B905
            if row[_CALLS]:
                made["tool_calls"] = next(all_calls)
            if row[_SUCCESS] is not None:
                # SQLite gives 0 or 1.
                made["tool_success"] = bool(row[_SUCCESS])
            if "role" in made:
                made["role"] = intern(row[0])
            decoded.append(made)
            continue
        columns = list(row)
        if columns[0] is not None:
            columns[0] = intern(columns[0])
        if columns[_SUCCESS] is not None:
            columns[_SUCCESS] = bool(columns[_SUCCESS])
        columns[_CALLS] = next(all_calls) if row[_CALLS] else None
        if extra:
            noted.append((len(decoded), columns))
            decoded.append(None)
        else:
            decoded.append(_decode(columns, None, _MESSAGE_PLACES))
    all_notes = _parsed_at_once([columns[_EXTRA] for _, columns in noted])
    for place, columns in noted:
        decoded[place] = _decode(columns, next(all_notes), _MESSAGE_PLACES)
    return decoded


def _parsed_at_once(texts: Sequence[str]) -> Iterator[Any]:
    return iter(json.loads(f"[{','.join(texts)}]") if texts else ())


_Shape = tuple[tuple[str, ...], Callable[[Sequence[Any]], Any]]


class _Shapes(dict[str, _Shape | None]):
    """The shapes of `extra` texts that hold nothing but the order of the keys.

    Most messages of tools have such a text. A shape is the keys, and a getter of their columns
    from a row; it is None for any other text. The same few texts return again and again, and
    parsing them took a fifth of a load.
    """

    # A longer text is not cached: hosts put an id into each of their messages.
    BEGIN, END, LONGEST, MOST = '{"keys": ["', '"]}', 200, 256

    def __missing__(self, extra: str) -> _Shape | None:
        framed = extra.startswith(self.BEGIN) and extra.endswith(self.END)
        if len(extra) > self.LONGEST or not framed:
            return None
        notes = json.loads(extra)
        keys = tuple(notes["keys"])
        if len(notes) > 1 or len(keys) < 2 or not _MESSAGE_PLACES.keys() >= set(keys):
            return None
        shape = keys, itemgetter(*(_MESSAGE_PLACES[key] for key in keys))
        if len(self) < self.MOST:
            self[extra] = shape
        return shape


_SHAPES = _Shapes()


def encode_item(item: Any, *, now: datetime) -> dict[str, Any]:
    """Return the columns of a context item. `relevance_score` also takes a whole 0 or 1."""
    columns, notes = _encode(item, _ITEM_KEYS, _ITEM_FITS, _ITEM_COLUMNS)
    columns["timestamp"] = stated_moment(item) if states_time(item) else now
    quality = quality_of(item)
    # No -0.0: whether a database keeps its sign depends on how it is sent.
    columns["relevance_score"] = None if quality is None else quality + 0.0
    columns["extra"] = json.dumps(notes) if notes else ""
    return columns


def decode_item(columns: Mapping[str, Any]) -> Any:
    """Return the context item that `encode_item` was given."""
    return decode_items([tuple(columns[name] for name in ITEM_COLUMNS)])[0]


def decode_items(rows: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Return the context items of rows that begin with `ITEM_COLUMNS`."""
    texts = [row[_ITEM_EXTRA] for row in rows if row[_ITEM_EXTRA]]
    parsed = iter(json.loads(f"[{','.join(texts)}]"))
    return [_decode(row, next(parsed) if row[_ITEM_EXTRA] else None, _ITEM_PLACES) for row in rows]
