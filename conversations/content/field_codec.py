"""How a conversation's fields become columns of its row, and come back exactly. Pure.

Fields are everything but messages and context items, which `conversations.content.codec` encodes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Any

from conversations.content.codec import BIGINT, escape, storable, unescape


def encode_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a conversation's fields (everything but messages and items)."""
    notes: dict[str, Any] = {}
    user_input = fields["user_input"]
    if not storable(user_input):
        user_input = escape(user_input)
        notes["escaped"] = True
    step_count = fields["step_count"]
    if not -BIGINT <= step_count < BIGINT:
        notes["step_count"], step_count = step_count, 0
    if fields["history"]:
        notes["history"] = fields["history"]
    unknown = {name: value for name, value in fields.items() if name not in _KNOWN_FIELDS}
    if unknown:
        notes["values"] = unknown
    return {
        "user_input": user_input,
        "focus_areas": json.dumps(fields["focus"]),
        "step_count": step_count,
        "last_tool_result": json.dumps(fields["last_tool_result"]),
        "extra": json.dumps(notes) if notes else "",
    }


_KNOWN_FIELDS = ("user_input", "history", "step_count", "focus", "last_tool_result")
# How `extra` begins if it overrides user_input or step_count; both have the same length.
SPEAKING = ('{"escaped": ', '{"step_count')
# The fields with a column of their own.
_FIELD_COLUMNS = {
    "user_input": "user_input",
    "focus": "focus_areas",
    "step_count": "step_count",
    "last_tool_result": "last_tool_result",
}


def encode_changed(fields: Mapping[str, Any], changed: Set[str]) -> dict[str, Any]:
    """Return the columns that change when the named fields change.

    If `extra` is not among them, they are complete only while the stored `extra` does not begin
    with one of `SPEAKING`.
    """
    own = [name for name in _FIELD_COLUMNS if name in changed]
    if (
        len(own) < len(changed)
        or not storable(fields["user_input"])
        or not -BIGINT <= fields["step_count"] < BIGINT
    ):
        columns = encode_fields(fields)
        return {name: columns[name] for name in (*(_FIELD_COLUMNS[each] for each in own), "extra")}
    encoded: dict[str, Any] = {}
    for name in own:
        value = fields[name]
        plain = name in ("user_input", "step_count")
        encoded[_FIELD_COLUMNS[name]] = value if plain else json.dumps(value)
    return encoded


# The texts of the three JSON columns of a conversation with nothing in them.
_UNSAID = ("{}", "[]", "null")


def decode_fields(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that `encode_fields` was given, in their order."""
    texts = columns["extra"] or "{}", columns["focus_areas"], columns["last_tool_result"]
    # One call of the parser costs more than parsing most of the texts.
    notes, focus, result = (
        ({}, [], None) if texts == _UNSAID else json.loads(f"[{','.join(texts)}]")
    )
    user_input = columns["user_input"]
    return {
        "user_input": unescape(user_input) if notes.get("escaped") else user_input,
        "history": notes.get("history", []),
        "step_count": notes.get("step_count", columns["step_count"]),
        "focus": focus,
        "last_tool_result": result,
        **notes.get("values", {}),
    }
