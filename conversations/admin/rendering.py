"""Messages and context items as the conversation page shows them. Pure.

A message may be any JSON value in any provider's form. Unknown forms are shown as JSON, and
nothing raises. If a part of a long message is left out, the page says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from conversations.content.codec import text_of
from conversations.storage import StoredMessage
from flags.admin.text import (
    LONGEST_LABEL,
    LONGEST_SHOWN,
    Shown,
    label,
    shown,
    shown_json,
    shown_value,
    visible,
)
from memory.admin.words import TEXT_KEYS, spoken, words_of

# Longer texts of these roles are folded: instructions and tool answers hide the talk.
FOLDED_ABOVE = {"system": 600, "developer": 600, "tool": 240, "function": 240}
# Of a message with more parts, the first ones are shown. All parts share the room of one text, but
# the beginning of each is shown.
MOST_BLOCKS = 50
SHORTEST_SHOWN = 200
LONGEST_ITEM = 2_000
KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass(frozen=True, slots=True)
class Block:
    """One piece of a message: `kind` is text, call, result, part or rest."""

    kind: str
    content: Shown
    title: str = ""
    note: str = ""
    folded: bool = False


@dataclass(frozen=True, slots=True)
class ShownMessage:
    """One version of a message, ready for the template."""

    stored: StoredMessage
    role: str
    style: str
    labels: tuple[str, ...]
    failed: bool
    blocks: tuple[Block, ...]


class _Room:
    """The number of characters of a message that may still be shown."""

    def __init__(self) -> None:
        self._left = LONGEST_SHOWN

    @property
    def limit(self) -> int:
        return max(self._left, SHORTEST_SHOWN)

    def text(self, text: str) -> Shown:
        return self._taken(shown(text, limit=self.limit))

    def json(self, text: str) -> Shown:
        return self._taken(shown_json(text, limit=self.limit))

    def value(self, value: Any) -> Shown:
        return self._taken(shown_value(value, limit=self.limit))

    def _taken(self, piece: Shown) -> Shown:
        self._left -= len(piece.text)
        return piece


def shown_message(stored: StoredMessage) -> ShownMessage:
    """Return the shown form of a message."""
    value, room = stored.message, _Room()
    if not isinstance(value, dict):
        block = Block("part", room.value(value), title="not a mapping", folded=False)
        return ShownMessage(stored, "", "other", (), False, (block,))
    rest = dict(value)
    role = _taken(rest, "role")
    name = _taken(rest, "tool_name") or _taken(rest, "name")
    labels = [name, _taken(rest, "message_type"), _taken(rest, "timestamp")]
    outcome = rest.pop("tool_success") if isinstance(rest.get("tool_success"), bool) else None
    if outcome:
        labels.append("succeeded")
    answered = _taken(rest, "tool_call_id")
    if answered:
        labels.append(f"answers {answered}")
    return ShownMessage(
        stored,
        visible(role),
        role if role in KNOWN_ROLES else "other",
        tuple(visible(text) for text in labels if text),
        outcome is False,
        tuple(_blocks(value, rest, role, room)),
    )


def _blocks(value: dict[str, Any], rest: dict[str, Any], role: str, room: _Room) -> Iterator[Block]:
    """Yield a message's words, its calls, and all its other fields folded."""
    told = False
    parts = _said(rest, role, room)
    for block in islice(parts, MOST_BLOCKS):
        told = True
        yield block
    if next(parts, None) is not None:
        note = "the page of the message shows it as it was saved"
        yield Block("rest", Shown("…"), title="More parts", note=note)
    words = "" if told else words_of(value, limit=room.limit)
    if words:
        yield Block("text", room.text(words))
    if rest:
        yield Block("rest", room.value(rest), title="More fields", folded=True)


def _taken(rest: dict[str, Any], key: str) -> str:
    """Move a short string out of the rest to show; leave any other value there."""
    if not isinstance(rest.get(key), str) or len(rest[key]) > LONGEST_LABEL:
        return ""
    return str(rest.pop(key))


def _said(rest: dict[str, Any], role: str, room: _Room) -> Iterator[Block]:
    """Yield the content of a message, part by part, and its calls; take both out of `rest`."""
    content = rest.get("content")
    if isinstance(content, list | str) or content is None:
        rest.pop("content", None)
    calls, call = rest.get("tool_calls"), rest.get("function_call")
    if isinstance(calls, list):
        del rest["tool_calls"]
    if isinstance(call, dict):
        del rest["function_call"]
    if isinstance(content, str):
        yield from _text(content, role, room)
    for part in content if isinstance(content, list) else ():
        yield from _part(part, role, room)
    for each in calls if isinstance(calls, list) else ():
        yield _call(each, room)
    if isinstance(call, dict):
        yield _call(call, room)


def _text(text: str, role: str, room: _Room) -> Iterator[Block]:
    if not text.strip():
        return
    folded = len(text) > FOLDED_ABOVE.get(role, len(text))
    note = f"{len(text):,} characters"
    if role in ("tool", "function"):
        yield Block("result", room.json(text), title="Result", note=note, folded=folded)
    else:
        title = "Instructions" if folded else ""
        yield Block("text", room.text(text), title=title, note=note, folded=folded)


def _part(part: Any, role: str, room: _Room) -> Iterator[Block]:
    """Yield a part of a content list: its text, a call, or its words and then all of it, folded."""
    kind = part.get("type") if isinstance(part, dict) else None
    text = text_of([part])
    if text and (isinstance(part, str) or set(part) <= {"type", "text"}):
        yield from _text(text, role, room)
    elif kind == "tool_use" and isinstance(part.get("name"), str):
        yield _call(part, room)
    else:
        title = label(kind) if isinstance(kind, str) else "part"
        words = spoken(part, limit=room.limit)
        if words:
            folded = len(words) > FOLDED_ABOVE["tool"]
            yield Block("result", room.text(words), title=title, folded=folded)
        yield Block("part", room.value(part), title=title, folded=True)


def _call(call: Any, room: _Room) -> Block:
    """Return one tool call: its name, and its arguments as they are stored."""
    if not isinstance(call, dict):
        return Block("call", room.value(call), title="tool call", folded=True)
    inner = call.get("function")
    said: Mapping[str, Any] = inner if isinstance(inner, dict) else call
    name, call_id = said.get("name"), call.get("id")
    for key in ("arguments", "args", "input"):
        if key in said:
            arguments = said[key]
            content = room.json(arguments) if isinstance(arguments, str) else room.value(arguments)
            break
    else:
        content = room.value(call)
    return Block(
        "call",
        content,
        title=label(name) if isinstance(name, str) else "tool call",
        note=label(call_id) if isinstance(call_id, str) else "",
        folded=True,
    )


@dataclass(frozen=True, slots=True)
class ShownItem:
    """One context item, ready for the template. `score` is None when it is unknown."""

    source: str
    kind: str
    score: float | None
    content: Shown
    rest: Shown


def shown_item(value: Any, *, score: float | None) -> ShownItem:
    """Return the shown form of a context item, which may be any JSON value."""
    if not isinstance(value, dict):
        return ShownItem("", "", score, shown_value(value, limit=LONGEST_ITEM), Shown(""))
    rest = dict(value)
    source, kind = _taken(rest, "source"), _taken(rest, "context_type")
    if score is not None:
        rest.pop("relevance_score", None)
    content = _item_content(value, rest)
    more = shown_value(rest, limit=LONGEST_ITEM) if rest else Shown("")
    return ShownItem(visible(source), visible(kind), score, content, more)


def _item_content(value: dict[str, Any], rest: dict[str, Any]) -> Shown:
    """Return an item's content, or its words in other fields; remove from `rest` what is shown."""
    content = shown_value(rest.pop("content", ""), limit=LONGEST_ITEM)
    if content.text.strip() and value.get("content") is not None:
        return content
    words = words_of(value, limit=LONGEST_ITEM)
    for key in TEXT_KEYS:
        if isinstance(rest.get(key), str) and rest[key] == words:
            del rest[key]
            break
    return shown(words)
