"""Check input before a write: return its canonical form, or raise InvalidState.

There is one rule for values that are no plain JSON:

- json.dumps takes it: the store holds the written form. A tuple (also a named one) becomes a list.
  A key that is a number, a bool or None becomes its JSON text ("1", "1.5", "true", "null"). An
  instance of a subclass of str, int, float, list or dict (StrEnum, IntEnum, OrderedDict) becomes
  the plain value. A pair of surrogates becomes one character.
- json.dumps takes it, but two keys of a mapping become one: it is refused, since one value would
  be lost.
- json.dumps refuses it: it is refused, with the call that makes JSON of it (`content.hints`).

A refusal names the place and the type, never the content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from conversations import conf
from conversations.content.digests import DIGEST_BYTES, digest_of
from conversations.content.document import (
    BASELINE_KEY,
    DEFAULTS,
    FOCUS,
    HISTORY,
    ITEMS,
    MESSAGES,
    STEP_COUNT,
    USER_INPUT,
    Document,
)
from conversations.content.hints import hint_for, is_record
from conversations.exceptions import InvalidState
from flags.texts import shortened

# The beginning of a place, in our own names: the rest repeats keys that others chose.
_OURS = re.compile(
    rf"(updates\.)?({'|'.join(DEFAULTS)}|messages|message|new_messages|new_context_items)"
    r"(\[\d+\])?(?=[.\[]|$)"
)

_TYPES: Mapping[str, type] = {
    USER_INPUT: str,
    ITEMS: list,
    HISTORY: list,
    STEP_COUNT: int,
    FOCUS: list,
    MESSAGES: list,
}


def canonical(
    value: Any, *, path: str, max_bytes: int, max_depth: int | None = None
) -> tuple[Any, int]:
    """Return a value as JSON returns it, and the length of its JSON text in bytes.

    Raises: InvalidState naming the place: a value that JSON cannot hold, keys that become one,
    nesting deeper than `MAX_DEPTH`, text longer than `max_bytes`.
    """
    text, refused = "", ""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        # Raised below, after this block: this error would become its context, and may quote the
        # value.
        refused = type(error).__name__
    if refused:
        raise _located(value, path, refused)
    if len(text) > max_bytes:
        raise InvalidState(
            f"{len(text)} bytes of JSON are more than the limit of {max_bytes}",
            path=in_short(path),
        )
    limit = conf.get("MAX_DEPTH") if max_depth is None else max_depth
    # Counting brackets in the text is fast, and the count is never less than the depth.
    if text.count("[") + text.count("{") > limit:
        _check_depth(value, path, limit)
    made = json.loads(text)
    # Comparing is ten times as fast as searching, and an equal value has lost no key.
    if made != value:
        _check_names(value, path)
    return made, len(text)


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(f".{name}", child) for name, child in value.items()]
    if isinstance(value, list | tuple):
        return [(f"[{index}]", child) for index, child in enumerate(value)]
    return []


def _check_names(value: Any, path: str) -> None:
    """Raise InvalidState where JSON writes two keys of a mapping alike."""
    pending = [(path, value)]
    while pending:
        place, inner = pending.pop()
        pending += [(place + step, child) for step, child in _children(inner)]
        if isinstance(inner, dict) and not all(
            isinstance(name, str) and name.isascii() for name in inner
        ):
            if len(json.loads(json.dumps(dict.fromkeys(inner)))) < len(inner):
                raise InvalidState("two of its keys are one in JSON", path=in_short(place))


def _check_depth(value: Any, path: str, limit: int) -> None:
    level = [(path, value)]
    for _ in range(limit):
        level = [
            (place + step, child) for place, inner in level for step, child in _children(inner)
        ]
        level = [(place, child) for place, child in level if isinstance(child, dict | list | tuple)]
        if not level:
            return
    raise InvalidState(f"nested deeper than {limit} levels", path=in_short(level[0][0]))


def _located(value: Any, path: str, refused: str) -> InvalidState:
    """Return an InvalidState that names the first place that JSON cannot hold."""
    pending, open_ids = [(path, value, frozenset[int]())], conf.get("MAX_DEPTH")
    while pending:
        place, inner, above = pending.pop()
        if id(inner) in above:
            return InvalidState("contains itself", path=in_short(place))
        if len(above) > open_ids:
            return InvalidState(f"nested deeper than {open_ids} levels", path=in_short(place))
        if isinstance(inner, dict):
            for name in inner:
                if not isinstance(name, str | int | float | bool | None):
                    return InvalidState(
                        f"the key is a {type(name).__name__}, not a string", path=in_short(place)
                    )
        if isinstance(inner, dict | list | tuple):
            nested = above | {id(inner)}
            pending += [(place + step, child, nested) for step, child in _children(inner)][::-1]
            continue
        try:
            json.dumps(inner)
        except (TypeError, ValueError, OverflowError):
            return InvalidState(
                f"{type(inner).__name__} is no JSON value: {hint_for(inner)}",
                path=in_short(place),
            )
    return InvalidState(f"cannot be written as JSON ({refused})", path=in_short(path))


def in_short(place: str) -> str:
    """Return a place in a state with its keys shortened: a message must quote little content."""
    ours = _OURS.match(place)
    end = ours.end() if ours else 0
    return place[:end] + shortened(place[end:])


def _is(value: Any, digest: bytes) -> bool:
    """Whether a value is exactly the one a load returned: then it is canonical and checked."""
    try:
        return digest_of(value) == digest
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Known:
    """A list as a load returned it: the joined digests of its elements, and the unchanged part.

    The first `sealed` elements are known to be unchanged.
    """

    digests: bytes = b""
    sealed: int = 0


@dataclass(frozen=True, slots=True)
class Checked:
    """A canonical document, and the digests of its messages and of its items, joined."""

    document: Document
    message_digests: bytes
    item_digests: bytes

    @classmethod
    def of(cls, document: Document) -> Checked:
        """Return a document that is known to be canonical."""
        messages, items = (
            b"".join(map(digest_of, values)) for values in (document.messages, document.items)
        )
        return cls(document, messages, items)


def check_document(
    data: Any, *, messages: Known | None = None, items: Known | None = None
) -> Checked:
    """Return the canonical document of a state's `to_dict()`.

    `messages` and `items` describe the lists that the caller loaded: unchanged elements are not
    checked again.

    Raises: InvalidState naming the place, before anything is written.
    """
    if not isinstance(data, Mapping):
        raise InvalidState(f"to_dict() gave a {type(data).__name__}, not a mapping", path="state")
    for name in data:
        if not isinstance(name, str):
            raise InvalidState(
                f"the name of a field is a {type(name).__name__}, not a string", path="state"
            )
    check_types(data)
    max_state = conf.get("MAX_STATE_BYTES")
    lists: dict[str, list[Any]] = {}
    lists[MESSAGES], message_digests, total = _checked_list(data, MESSAGES, messages or Known())
    lists[ITEMS], item_digests, size = _checked_list(data, ITEMS, items or Known())
    total += size
    given = {
        name: value for name, value in data.items() if name not in (MESSAGES, ITEMS, BASELINE_KEY)
    }
    fields: dict[str, Any] | None = None
    with suppress(InvalidState):
        fields, _ = canonical(given, path="state", max_bytes=max_state - total)
    if fields is None:
        # One by one, an error names its place. Without their names, fields may be short enough.
        fields = _checked_one_by_one(given, total, max_state)
    return Checked(Document.from_dict(fields | lists), message_digests, item_digests)


def _checked_one_by_one(given: Mapping[str, Any], total: int, max_state: int) -> dict[str, Any]:
    """Return the canonical fields; `total` is the bytes of JSON beside them."""
    fields: dict[str, Any] = {}
    for name, value in given.items():
        fields[name], size = canonical(value, path=name, max_bytes=max_state)
        total += size
    # The names too: JSON may turn two surrogates into one character.
    names, _ = canonical(list(fields), path="state", max_bytes=max_state)
    values = fields.values()
    fields = dict(zip(names, values, strict=True))
    if len(fields) < len(names):
        raise InvalidState("the names of two fields are one in JSON", path="state")
    if total > max_state:
        raise InvalidState(
            f"{total} bytes of JSON are more than the limit of {max_state}", path="state"
        )
    return fields


def _checked_list(data: Mapping[str, Any], name: str, given: Known) -> tuple[list[Any], bytes, int]:
    """Return the canonical values, their digests, and the size in bytes of the checked ones."""
    values = data.get(name, ())
    limit, max_depth = conf.get("MAX_MESSAGE_BYTES"), conf.get("MAX_DEPTH")
    checked, total = list(values[: given.sealed]), 0
    digests = [given.digests[: given.sealed * DIGEST_BYTES]]
    for index in range(given.sealed, len(values)):
        value = values[index]
        known = given.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
        digest = known if known and _is(value, known) else None
        if digest is None:
            value, size = canonical(
                value, path=f"{name}[{index}]", max_bytes=limit, max_depth=max_depth
            )
            digest = digest_of(value)
            total += size
        checked.append(value)
        digests.append(digest)
    return checked, b"".join(digests), total


def check_messages(values: Any, *, path: str = "messages") -> list[Any]:
    """Return the canonical form of new messages or items.

    Raises: InvalidState naming the place.
    """
    if (
        isinstance(values, str | bytes | set | frozenset | Mapping)
        or not hasattr(values, "__iter__")
        or is_record(values)
    ):
        raise InvalidState(f"is a {type(values).__name__}, not a list", path=path)
    limit, depth = conf.get("MAX_MESSAGE_BYTES"), conf.get("MAX_DEPTH")
    return [
        canonical(value, path=f"{path}[{index}]", max_bytes=limit, max_depth=depth)[0]
        for index, value in enumerate(values)
    ]


def check_types(data: Mapping[str, Any], *, path: str | None = None) -> None:
    """Raise InvalidState if a known field has another type than in AgentState.

    `path` is the caller's name for the field, if it differs.
    """
    for name, kind in _TYPES.items():
        value = data.get(name, DEFAULTS[name])
        allowed: tuple[type, ...] = (list, tuple) if kind is list else (kind,)
        if not isinstance(value, allowed) or (kind is int and isinstance(value, bool)):
            raise InvalidState(
                f"is a {type(value).__name__}, not a {kind.__name__}", path=path or name
            )
