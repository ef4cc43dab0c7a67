"""Conversations of other products, from files, as states: for the demo, benchmarks and tests.

`reading` documents the forms of a file, `chats` those of a chat and of one user's chats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conversations.exceptions import InvalidState
from conversations.formats.chats import chat_record
from conversations.formats.reading import chats_of, opened, values
from conversations.formats.records import check_text, within
from conversations.formats.values import Value
from conversations.state import AgentState


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation of a file; `user` is the file's own name of its user."""

    conversation_id: str
    user: str | None
    state: AgentState
    source: str | None = None
    license: str | None = None


def read_conversations(path: str | Path) -> Iterator[Conversation]:
    """Yield the conversations of a file, gzipped or not, one in memory at a time.

    One without an "id" gets the file's name (without .jsonl, .json and .gz) and its line's number:
    "chats-17". In an array, or among one user's chats, a number from 1 follows.

    Raises: OSError. InvalidState naming line and place, for the first line without a conversation,
    and for a file that is cut off or is another product's.
    """
    path = Path(path)
    with opened(path) as file:
        for value in values(file):
            name = f"{_stem(path)}-{value.line}"
            try:
                yield from _conversations(value, name=name)
            except InvalidState as error:
                raise within(error, f"line {value.line}{value.place}", ": ") from error


def _stem(path: Path) -> str:
    name = path.name
    for suffix in (".gz", ".jsonl", ".json"):
        name = name.removesuffix(suffix)
    return name


def _conversations(value: Value, *, name: str) -> Iterator[Conversation]:
    if value.place:
        name = f"{name}-{int(value.place[1:-1]) + 1}"
    for number, (place, chat) in enumerate(chats_of(value), start=1):
        try:
            yield _conversation(chat, name=f"{name}-{number}" if place else name)
        except InvalidState as error:
            if not place:
                raise
            raise within(error, place, ".") from error


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
    return None if value is None else check_text(value, path=name)
