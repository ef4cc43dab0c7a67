"""Chats of others as records: OpenAI chat messages, and conversations of our data set. Pure.

A line is a list of messages, or an object with "messages". With an "id" it is that
conversation; without, its id is the name it is given, or made of its content, so that the same
line is the same conversation whenever it is read. "context" becomes the memory context; "user"
is a user's name; everything else (source, license, metadata, tools, …) is kept in the state.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from conversations.digests import digest_of
from conversations.documents import BASELINE_KEY, DEFAULTS, ITEMS, MESSAGES, checked_document
from conversations.exceptions import InvalidState
from conversations.formats.records import Record, checked_text

_OWN = ("id", "user", "messages", "context")
# Names the conversations that have no id: uuid5 of this and of their digest.
_NAMESPACE = uuid.UUID("6f1f0a1e-6e0e-5d5b-9b65-0c5f6d1a4f0b")


def chat_record(data: Any, *, name: str | None = None) -> Record:
    """Return the conversation of a parsed line; `name` is its id unless it has one.

    Raises: InvalidState naming the place.
    """
    chat = {"messages": data} if isinstance(data, list) else data
    if not isinstance(chat, dict) or "messages" not in chat:
        raise InvalidState(
            'is neither a line of an export, nor a list of messages, nor an object with "messages"'
        )
    _check_messages(chat["messages"])
    context = chat.get("context")
    if not isinstance(context, list | None):
        raise InvalidState(f"is a {type(context).__name__}, not a list", path="context")
    rest = {name: value for name, value in chat.items() if name not in _OWN}
    for field in rest:
        if field in DEFAULTS or field == BASELINE_KEY:
            raise InvalidState("is a field of the state, which a chat has not", path=field)
    document = checked_document({MESSAGES: chat["messages"], ITEMS: context or [], **rest}).document
    user = chat.get("user")
    return Record(
        conversation_id=_id_of(chat, name=name),
        document=document,
        username=None if user is None else checked_text(user, path="user"),
    )


def _id_of(chat: Mapping[str, Any], *, name: str | None) -> str:
    found = name if chat.get("id") is None else chat["id"]
    if found is not None:
        return checked_text(found, path="id")
    return str(uuid.uuid5(_NAMESPACE, digest_of(chat).hex()))


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list):
        raise InvalidState(f"is a {type(messages).__name__}, not a list", path="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidState(
                f"is a {type(message).__name__}, not an object", path=f"messages[{index}]"
            )
        if not isinstance(message.get("role"), str):
            raise InvalidState("is missing, or no string", path=f"messages[{index}].role")
