"""Messages and context items as the conversation page shows them. Pure.

A message may be any JSON value in any provider's form. What is not recognised is shown as
JSON; nothing is left out, and nothing raises.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from conversations.codec import text_of
from conversations.storage import StoredMessage
from memory.admin.text import Shown, shown, shown_json, shown_value, visible

# A longer text of these roles is folded: instructions and tool answers bury the talk.
FOLDED_ABOVE = {"system": 600, "developer": 600, "tool": 240, "function": 240}
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


def shown_message(stored: StoredMessage) -> ShownMessage:
    """Return what the page shows of a message."""
    value = stored.message
    if not isinstance(value, dict):
        block = Block("part", shown_value(value), title="not a mapping", folded=False)
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
    blocks = [*_content(rest, role), *_calls(rest)]
    if rest:
        blocks.append(Block("rest", shown_json(json.dumps(rest)), title="More fields", folded=True))
    return ShownMessage(
        stored,
        visible(role),
        role if role in KNOWN_ROLES else "other",
        tuple(visible(label) for label in labels if label),
        outcome is False,
        tuple(blocks),
    )


def _taken(rest: dict[str, Any], key: str) -> str:
    """Take a string out of what is left to show; leave anything else there."""
    if not isinstance(rest.get(key), str):
        return ""
    return str(rest.pop(key))


def _content(rest: dict[str, Any], role: str) -> Iterator[Block]:
    content = rest.get("content")
    if isinstance(content, str):
        del rest["content"]
        yield from _text(content, role)
    elif isinstance(content, list):
        del rest["content"]
        for part in content:
            yield from _part(part, role)
    elif content is None:
        rest.pop("content", None)


def _text(text: str, role: str) -> Iterator[Block]:
    if not text:
        return
    folded = len(text) > FOLDED_ABOVE.get(role, len(text))
    note = f"{len(text):,} characters"
    if role in ("tool", "function"):
        yield Block("result", shown_json(text), title="Result", note=note, folded=folded)
    else:
        title = "Instructions" if folded else ""
        yield Block("text", shown(text), title=title, note=note, folded=folded)


def _part(part: Any, role: str) -> Iterator[Block]:
    """Return a part of a content list: its text, a call, or whatever else it is, folded."""
    kind = part.get("type") if isinstance(part, dict) else None
    text = text_of([part])
    if text and (isinstance(part, str) or set(part) <= {"type", "text"}):
        yield from _text(text, role)
    elif kind == "tool_use" and isinstance(part.get("name"), str):
        yield _call(part)
    else:
        title = kind if isinstance(kind, str) else "part"
        yield Block("part", shown_value(part), title=visible(title), folded=True)


def _calls(rest: dict[str, Any]) -> Iterator[Block]:
    calls = rest.get("tool_calls")
    if isinstance(calls, list):
        del rest["tool_calls"]
        for call in calls:
            yield _call(call)
    if isinstance(rest.get("function_call"), dict):
        yield _call(rest.pop("function_call"))


def _call(call: Any) -> Block:
    """Return one tool call: its name, and its arguments as they are kept."""
    if not isinstance(call, dict):
        return Block("call", shown_value(call), title="tool call", folded=True)
    inner = call.get("function")
    said: Mapping[str, Any] = inner if isinstance(inner, dict) else call
    name, call_id = said.get("name"), call.get("id")
    for key in ("arguments", "args", "input"):
        if key in said:
            arguments = said[key]
            content = (
                shown_json(arguments) if isinstance(arguments, str) else shown_value(arguments)
            )
            break
    else:
        content = shown_value(call)
    return Block(
        "call",
        content,
        title=visible(name) if isinstance(name, str) else "tool call",
        note=visible(call_id) if isinstance(call_id, str) else "",
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
    """Return what the page shows of a context item, which may be any JSON value."""
    if not isinstance(value, dict):
        return ShownItem("", "", score, shown_value(value, limit=2_000), Shown(""))
    rest = dict(value)
    source, kind = _taken(rest, "source"), _taken(rest, "context_type")
    content = shown_value(rest.pop("content", ""), limit=2_000)
    if score is not None:
        rest.pop("relevance_score", None)
    more = shown_json(json.dumps(rest), limit=2_000) if rest else Shown("")
    return ShownItem(visible(source), visible(kind), score, content, more)
