"""Conversations of others, from files: our data sets' format, and OpenAI's chat messages.

A line is a chat (see `chats`), or one user's chats: an object with "conversations", a list of
them. Messages stay exactly as they are; "context" becomes the memory context; everything but
"id" and "user" goes to the unknown fields of the state, source and license too: they have to
stay with every copy. "questions" beside conversations are about them, and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conversations.exceptions import InvalidState
from conversations.formats.chats import chat_record
from conversations.formats.files import lines_of
from conversations.formats.records import checked_text, parsed, within
from conversations.state import AgentState

_ABOUT = ("user", "source", "license")


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation of a file; `user` is whatever the file calls its user."""

    conversation_id: str
    user: str | None
    state: AgentState
    source: str | None = None
    license: str | None = None


def read_conversations(path: str | Path) -> Iterator[Conversation]:
    """Yield the conversations of a file of JSON Lines, gzipped or not, one in memory at a time.

    One without an "id" gets the file's name (without .jsonl, .json and .gz) and its line's
    number: "chats-17". Blank lines are passed over.

    Raises: OSError; InvalidState naming line and place, for the first line that holds no
    conversation, and for a file that is broken off.
    """
    path = Path(path)
    with path.open("rb") as file:
        for line in lines_of(file):
            try:
                if line.problem:
                    raise InvalidState(line.problem)
                yield from _conversations(line.text, name=f"{_stem(path)}-{line.number}")
            except InvalidState as error:
                raise within(error, f"line {line.number}", ": ") from error


def _stem(path: Path) -> str:
    name = path.name
    for suffix in (".gz", ".jsonl", ".json"):
        name = name.removesuffix(suffix)
    return name


def _conversations(text: str, *, name: str) -> Iterator[Conversation]:
    data = parsed(text)
    if not isinstance(data, dict) or "conversations" not in data or "messages" in data:
        yield _conversation(data, name=name)
        return
    found = data["conversations"]
    if not isinstance(found, list):
        raise InvalidState(f"is a {type(found).__name__}, not a list", path="conversations")
    about = {known: data[known] for known in _ABOUT if known in data}
    for place, chat in enumerate(found):
        messages = {"messages": chat} if isinstance(chat, list) else chat
        whole = {**about, **messages} if isinstance(messages, dict) else chat
        try:
            yield _conversation(whole, name=f"{name}-{place + 1}")
        except InvalidState as error:
            raise within(error, f"conversations[{place}]", ".") from error


def _conversation(data: Any, *, name: str) -> Conversation:
    record = chat_record(data, name=name)
    about: Mapping[str, Any] = data if isinstance(data, dict) else {}
    return Conversation(
        conversation_id=record.conversation_id,
        user=record.username,
        state=AgentState.from_dict(record.document.to_dict()),
        source=_text(about, "source"),
        license=_text(about, "license"),
    )


def _text(data: Mapping[str, Any], name: str) -> str | None:
    value = data.get(name)
    return None if value is None else checked_text(value, path=name)
