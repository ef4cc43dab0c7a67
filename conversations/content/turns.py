"""Find where a window of messages may begin: tool calls stay with their results. Pure.

Providers refuse a history that holds a result without its call, or a call without the reasoning
before it. Understood are the messages of OpenAI (Chat Completions and Responses), Anthropic,
Bedrock, Google, LangChain, Pydantic AI and agent-framework, and our own columns. The role, type or
key of a mapping says its kind, or a mapping inside it does (under the names in `_INSIDE`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any

# How many messages before a window are read with it. If a group is longer, the window begins
# behind it; if the window holds only that group, it is read again with the next number.
OVERLAPS = (16, 1024, 2**40)

_RESULT_ROLES = frozenset({"tool", "function", "toolresult"})
_RESULTS = frozenset(
    {
        *("tool_result", "tool_return", "function_result", "function_response"),
        # LangChain's messages of tools, and the answer to a request for approval.
        *("tool", "toolmessagechunk", "mcp_approval_response"),
    }
)
_CALLS = frozenset({"tool_use", "tool_call", "function_call", "mcp_approval_request"})
# The keys under which a message keeps its parts, or itself.
_INSIDE = (
    *("content", "contents", "parts", "blocks", "tool_calls"),
    *("data", "kwargs", "additional_kwargs", "message"),
)
_IDS = ("tool_call_id", "tool_use_id", "call_id", "toolCallId", "toolUseId", "approval_request_id")
# The keys of a call or result in the parts of Bedrock and Google, and in OpenAI's older form.
_NAMED_CALLS = ("function_call", "functionCall", "toolUse")
_NAMED_RESULTS = ("function_response", "functionResponse", "toolResult")
# The deepest nesting in any of these formats.
_DEPTH = 4


@dataclass(slots=True)
class _Said:
    """The tool calls and results of a message: their ids, "" where one has none."""

    calls: dict[str, None] = field(default_factory=dict)
    results: dict[str, None] = field(default_factory=dict)
    reasoning: bool = False


_NOTHING = _Said()


def _said(message: Any) -> _Said:
    if not isinstance(message, Mapping):
        return _NOTHING
    if len(message) == 2 and isinstance(message.get("content"), str):
        # Most messages are a role and a text.
        role = message.get("role")
        if isinstance(role, str) and role.lower() not in _RESULT_ROLES:
            return _NOTHING
    said = _Said(reasoning=_kind(message) == "reasoning")
    _look(message, said, depth=_DEPTH)
    return said


def _look(part: Mapping[str, Any], said: _Said, *, depth: int, called: bool = False) -> None:
    """Note the calls and results of a message or its part. `called`: it is in a list of calls."""
    before = len(said.results)
    kind, role = _kind(part), part.get("role")
    if called or _is_call(kind):
        said.calls[_id_of(part) or _text(part.get("id"))] = None
    for name in _NAMED_CALLS:
        if isinstance(part.get(name), Mapping):
            said.calls[_id_of(part[name]) or _text(part[name].get("id"))] = None
    for name in _NAMED_RESULTS:
        if isinstance(part.get(name), Mapping):
            said.results[_id_of(part[name]) or _text(part[name].get("id"))] = None
    for name, each in _inside(part, depth):
        _look(each, said, depth=depth - 1, called=name == "tool_calls")
    answers = isinstance(role, str) and role.lower() in _RESULT_ROLES
    # A message of a tool may name the call that it answers in its parts.
    if (answers or _is_result(kind, part)) and len(said.results) == before:
        said.results[_id_of(part)] = None


def _inside(part: Mapping[str, Any], depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not depth:
        return
    for name in _INSIDE:
        held = part.get(name)
        for each in held if isinstance(held, list) else (held,):
            if isinstance(each, Mapping):
                yield name, each


def _kind(part: Mapping[str, Any]) -> str:
    """Return the kind that a message or part states, in one spelling; "" if it states none."""
    for name in ("part_kind", "message_type", "block_type", "type"):
        if isinstance(part.get(name), str):
            return str(part[name]).lower().replace("-", "_")
    return ""


def _is_result(kind: str, part: Mapping[str, Any]) -> bool:
    if kind == "retry_prompt":
        return part.get("tool_name") is not None
    return kind in _RESULTS or kind.endswith(("_call_output", "_tool_result", "_tool_return"))


def _is_call(kind: str) -> bool:
    return kind in _CALLS or kind.endswith(("_call", "_tool_use"))


def _id_of(part: Mapping[str, Any]) -> str:
    """Return the id that a call and its result share, "" if there is none."""
    for held in (part, part.get("data"), part.get("kwargs"), part.get("additional_kwargs")):
        if isinstance(held, Mapping):
            for name in _IDS:
                if found := _text(held.get(name)):
                    return found
    return ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True)
class Turns:
    """Which of some messages in order belong to the messages before them.

    `joined[n]`: no window may begin at the message n. `unmatched` is the place of the last result
    whose call is not among them, -1 if there is no such result.
    """

    joined: Sequence[bool]
    unmatched: int

    @classmethod
    def of(cls, messages: Sequence[Any]) -> Turns:
        """Return the turns of messages in order, with one more place behind the last message."""
        # At each place: how many groups begin to continue there, less those that end.
        changes = [0] * (len(messages) + 2)
        called: dict[str, int] = {}
        unmatched = -1
        for place, message in enumerate(messages):
            said = _said(message)
            for name in said.results:
                if name in said.calls:
                    # The provider itself ran this tool, so call and result are in one message.
                    continue
                at = called.get(name)
                if at is None:
                    # Without a known call, it belongs to the message before it.
                    at = max(place - 1, 0)
                    unmatched = place if name else unmatched
                changes[at + 1] += 1
                changes[place + 1] -= 1
            for name in said.calls:
                called[name] = place
            if said.reasoning:
                changes[place + 1] += 1
                changes[place + 2] -= 1
        joined = [count > 0 for count in accumulate(changes)]
        return cls(joined, unmatched if called else -1)


def first_of(messages: Sequence[Any], asked: int, *, more: bool) -> int | None:
    """Return the place of a window's beginning: `asked`, or the nearest valid place before it.

    `more` says whether there are earlier messages than these. Returns: a later place if no earlier
    one is valid, None if none is.
    """
    turns = Turns.of(messages)
    least = turns.unmatched + 1 if more else 0
    places: Iterable[int] = chain(range(asked, -1, -1), range(asked + 1, len(messages)))
    for place in places:
        if place < least or turns.joined[place]:
            continue
        if place or not more or _begins(messages[0]):
            return place
    return None


def _begins(message: Any) -> bool:
    """Whether a message begins a turn, after any messages."""
    if not isinstance(message, Mapping) or message.get("role") != "user":
        return False
    return not _said(message).results


def end_of(messages: Sequence[Any], asked: int, *, more: bool) -> int | None:
    """Return the (exclusive) end of a page: `asked`, or the nearest valid place behind it.

    A window may begin there. `more` says whether there are later messages than these. Returns: an
    earlier place if no later one is valid, None if none is.
    """
    turns = Turns.of(messages)
    places: Iterable[int] = chain(range(asked, len(messages) + 1), range(asked - 1, 0, -1))
    for place in places:
        if place == len(messages) and not more:
            return place
        # A group that continues behind the last message read does not show at the end.
        if not turns.joined[place] and not (more and place == len(messages)):
            return place
    return None
