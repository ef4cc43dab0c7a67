"""A document: the canonical content of one conversation, as every store holds it.

Canonical means: what `json.loads(json.dumps(state.to_dict()))` gives. A tuple has become a list,
a pair of surrogates one character, an integer key a string, exactly as in the legacy blobs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from conversations import conf
from conversations.digests import EMPTY, digest_of, roll
from conversations.exceptions import InvalidState

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

_TYPES: Mapping[str, type] = {
    USER_INPUT: str,
    ITEMS: list,
    HISTORY: list,
    STEP_COUNT: int,
    FOCUS: list,
    MESSAGES: list,
}


@dataclass(frozen=True, slots=True)
class Document:
    """The content of one conversation.

    `fields` holds everything but messages and items, in order: the known fields first, then
    the unknown ones as they came.
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
        """Return what `AgentState.from_dict` takes: the known fields in order, then the rest."""
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
        """Whether the document says nothing at all."""
        return self.to_dict() == dict(DEFAULTS)

    @property
    def messages_digest(self) -> bytes:
        """Return the rolled digest of the messages."""
        return roll(EMPTY, map(digest_of, self.messages))

    @property
    def state_digest(self) -> bytes:
        """Return the digests of the fields and of the items: everything but the messages."""
        return fields_digest(self.fields) + roll(EMPTY, map(digest_of, self.items))


def fields_digest(fields: Mapping[str, Any]) -> bytes:
    """Return the digest of a conversation's fields, with their order."""
    return digest_of([list(fields), list(fields.values())])


def canonical(
    value: Any, *, path: str, max_bytes: int, max_depth: int | None = None
) -> tuple[Any, int]:
    """Return a value as JSON gives it back, and the length of its JSON text in bytes.

    Raises: InvalidState naming the place of what JSON cannot hold, of nesting deeper than
    `MAX_DEPTH` and of text longer than `max_bytes`.
    """
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise _located(value, path, error) from error
    if len(text) > max_bytes:
        raise InvalidState(
            f"{len(text)} bytes of JSON are more than the limit of {max_bytes}", path=path
        )
    limit = conf.get("MAX_DEPTH") if max_depth is None else max_depth
    # Counting brackets in the text is fast and never says less than the depth.
    if text.count("[") + text.count("{") > limit:
        _check_depth(value, path, limit)
    return json.loads(text), len(text)


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(f".{name}", child) for name, child in value.items()]
    if isinstance(value, list | tuple):
        return [(f"[{index}]", child) for index, child in enumerate(value)]
    return []


def _check_depth(value: Any, path: str, limit: int) -> None:
    level = [(path, value)]
    for _ in range(limit):
        level = [
            (place + step, child) for place, inner in level for step, child in _children(inner)
        ]
        level = [(place, child) for place, child in level if isinstance(child, dict | list | tuple)]
        if not level:
            return
    raise InvalidState(f"nested deeper than {limit} levels", path=_shortened(level[0][0]))


def _located(value: Any, path: str, error: Exception) -> InvalidState:
    """Return the InvalidState that names the first place which JSON cannot hold."""
    pending, open_ids = [(path, value, frozenset[int]())], conf.get("MAX_DEPTH")
    while pending:
        place, inner, above = pending.pop()
        if id(inner) in above:
            return InvalidState("contains itself", path=_shortened(place))
        if len(above) > open_ids:
            return InvalidState(f"nested deeper than {open_ids} levels", path=_shortened(place))
        if isinstance(inner, dict):
            for name in inner:
                if not isinstance(name, str | int | float | bool | None):
                    return InvalidState(
                        f"the key is a {type(name).__name__}, not a string", path=_shortened(place)
                    )
        if isinstance(inner, dict | list | tuple):
            nested = above | {id(inner)}
            pending += [(place + step, child, nested) for step, child in _children(inner)][::-1]
            continue
        try:
            json.dumps(inner)
        except (TypeError, ValueError, OverflowError) as reason:
            hint = "; use isoformat()" if hasattr(inner, "isoformat") else ""
            return InvalidState(
                f"{type(inner).__name__} is no JSON value ({reason}){hint}", path=_shortened(place)
            )
    return InvalidState(f"cannot be written as JSON ({error})", path=path)


def _shortened(place: str, limit: int = 200) -> str:
    return place if len(place) <= limit else f"{place[: limit // 2]}…{place[-limit // 2 :]}"


def _known(value: Any, digest: bytes | None) -> bool:
    """Whether a value is exactly what a load gave, and so is canonical, and was checked."""
    if digest is None:
        return False
    try:
        return digest_of(value) == digest
    except ValueError:
        return False


def checked_document(data: Any, *, known: Mapping[str, Sequence[bytes]] | None = None) -> Document:
    """Return the canonical document of what a state's `to_dict()` gave.

    `known` holds the digests of the messages and items that the caller was given: what still
    is the same need not be looked at again.

    Raises: InvalidState naming the place, before anything was written.
    """
    if not isinstance(data, Mapping):
        raise InvalidState(f"to_dict() gave a {type(data).__name__}, not a mapping", path="state")
    for name in data:
        if not isinstance(name, str):
            raise InvalidState(
                f"the key {name!r} is a {type(name).__name__}, not a string", path="state"
            )
    check_types(data)
    max_message, max_state = conf.get("MAX_MESSAGE_BYTES"), conf.get("MAX_STATE_BYTES")
    max_depth = conf.get("MAX_DEPTH")
    total = 0
    lists: dict[str, list[Any]] = {}
    for name in (MESSAGES, ITEMS):
        lists[name] = []
        values = data.get(name, ())
        for index, (value, digest) in enumerate(zip_longest(values, (known or {}).get(name, ()))):
            if index == len(values):
                break
            if not _known(value, digest):
                value, size = canonical(
                    value, path=f"{name}[{index}]", max_bytes=max_message, max_depth=max_depth
                )
                total += size
            lists[name].append(value)
    fields: dict[str, Any] = {}
    for name, value in data.items():
        if name in (MESSAGES, ITEMS, BASELINE_KEY):
            continue
        fields[name], size = canonical(value, path=name, max_bytes=max_state)
        total += size
    canonical(list(fields), path="state", max_bytes=max_state)
    if total > max_state:
        raise InvalidState(
            f"{total} bytes of JSON are more than the limit of {max_state}", path="state"
        )
    return Document.from_dict(fields | lists)


def checked_messages(values: Any, *, path: str = "messages") -> list[Any]:
    """Return the canonical form of new messages or items.

    Raises: InvalidState naming the place.
    """
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
        raise InvalidState(f"is a {type(values).__name__}, not a list", path=path)
    limit = conf.get("MAX_MESSAGE_BYTES")
    return [
        canonical(value, path=f"{path}[{index}]", max_bytes=limit)[0]
        for index, value in enumerate(values)
    ]


def check_types(data: Mapping[str, Any], *, path: str | None = None) -> None:
    """Raise InvalidState when a known field has another type than AgentState gives it.

    `path` is what the caller calls the field, if not by its name.
    """
    for name, kind in _TYPES.items():
        value = data.get(name, DEFAULTS[name])
        allowed: tuple[type, ...] = (list, tuple) if kind is list else (kind,)
        if not isinstance(value, allowed) or (kind is int and isinstance(value, bool)):
            raise InvalidState(
                f"is a {type(value).__name__}, not a {kind.__name__}", path=path or name
            )
