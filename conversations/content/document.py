"""A document: the canonical content of one conversation, as every store holds it.

Canonical means: the result of `json.loads(json.dumps(state.to_dict()))`, exactly as in the legacy
blobs. `content.validation` makes the canonical form, or refuses a value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from conversations.content.digests import EMPTY, digest_of, roll

USER_INPUT = "user_input"
ITEMS = "memory_context"
HISTORY = "history"
STEP_COUNT = "step_count"
FOCUS = "focus"
MESSAGES = "conversation_history"
LAST_TOOL_RESULT = "last_tool_result"

# The order of AgentState.to_dict(), and the default of each.
DEFAULTS: Mapping[str, Any] = {
    USER_INPUT: "",
    ITEMS: [],
    HISTORY: [],
    STEP_COUNT: 0,
    FOCUS: [],
    MESSAGES: [],
    LAST_TOOL_RESULT: None,
}
BASELINE_KEY = "_baseline"


@dataclass(frozen=True, slots=True)
class Document:
    """The content of one conversation.

    `fields` holds everything but messages and items, in order: the known fields first, then the
    unknown ones in their own order.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    messages: list[Any] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Document:
        """Return the document of a canonical `to_dict()`; absent fields take their defaults."""
        merged = {name: data.get(name, default) for name, default in DEFAULTS.items()}
        merged |= {name: value for name, value in data.items() if name not in DEFAULTS}
        items = list(merged.pop(ITEMS))
        messages = list(merged.pop(MESSAGES))
        return cls(fields=merged, messages=messages, items=items)

    def to_dict(self) -> dict[str, Any]:
        """Return the argument of `AgentState.from_dict`: known fields in order, then the rest."""
        data: dict[str, Any] = {}
        for name, default in DEFAULTS.items():
            if name == ITEMS:
                data[name] = self.items
            elif name == MESSAGES:
                data[name] = self.messages
            else:
                data[name] = self.fields.get(name, default)
        data |= {name: value for name, value in self.fields.items() if name not in DEFAULTS}
        return data

    def to_json(self) -> str:
        """Return the JSON text of the legacy format (ASCII, Python's default separators)."""
        return json.dumps(self.to_dict())

    @property
    def empty(self) -> bool:
        """Whether every field has its default."""
        return self.to_dict() == dict(DEFAULTS)

    @property
    def messages_digest(self) -> bytes:
        """Return the rolled digest of the messages."""
        return roll(EMPTY, map(digest_of, self.messages))

    @property
    def state_digest(self) -> bytes:
        """Return the digests of the fields and of the items: everything but the messages."""
        return fields_digest(field_digests(self.fields)) + roll(EMPTY, map(digest_of, self.items))


# Most fields are empty most of the time, each with its own kind of empty value.
_NOTHING: tuple[Any, ...] = (None, False, 0, 0.0, -0.0, "", [], {})
_OF_NOTHING = {repr(value): digest_of(value) for value in _NOTHING}


def field_digests(fields: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the digest of each of a conversation's fields, in their order."""
    return {
        name: (not value and _OF_NOTHING.get(repr(value))) or digest_of(value)
        for name, value in fields.items()
    }


def fields_digest(digests: Mapping[str, bytes]) -> bytes:
    """Return the digest of a conversation's fields and their order, from each field's digest."""
    return digest_of([list(digests), list(digests.values())])
