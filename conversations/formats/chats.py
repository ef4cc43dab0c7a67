"""Other products' chats as records: OpenAI chat messages, histories of agents, data sets. Pure.

A chat is a list of messages, or an object with "messages", whose list is kept as it is. With an
"id" it is that conversation. Without, its id is the name it is given, or is made from its content:
so the same chat always becomes the same conversation. "context" becomes the memory context, and
"user" is a user's name. Everything else (source, license, metadata, tools, …) is kept in the
state. An object with "conversations" is a list of one user's chats.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from conversations.content.digests import digest_of
from conversations.content.document import BASELINE_KEY, DEFAULTS, ITEMS, MESSAGES
from conversations.content.moments import stated_moment
from conversations.content.validation import check_document
from conversations.exceptions import InvalidState
from conversations.formats.products import product_of
from conversations.formats.records import Record, check_id, check_text
from flags.texts import shown

_OWN = ("id", "user", "messages", "context")
# The fields that one user's chats share.
_ABOUT = ("user", "source", "license")
# The keys under which a chat keeps the times of its beginning and of its last activity.
_CREATED = ("created_at", "createdAt", "create_time", "created")
_UPDATED = ("updated_at", "updatedAt", "update_time", "updated", "last_updated")
# A message of a bare list has one of these; an object with "messages" may hold anything.
_MESSAGE_KEYS = frozenset({"role", "type", "kind", "content", "parts"})
# The namespace of the ids of conversations without one: uuid5 of this and of their digest.
_NAMESPACE = uuid.UUID("6f1f0a1e-6e0e-5d5b-9b65-0c5f6d1a4f0b")


def is_conversation(data: Any) -> bool:
    """Whether an element of an array is a whole conversation, rather than a message."""
    if isinstance(data, list):
        return True
    if not isinstance(data, dict):
        return False
    ours = "format" in data and "state" in data
    return ours or "messages" in data or "conversations" in data or product_of(data) is not None


def chats_in(data: Any) -> Iterator[tuple[str, Any]]:
    """Yield the chats of a parsed value, and their places in it ("" for the value itself).

    Raises: InvalidState naming the place.
    """
    if not isinstance(data, dict) or "conversations" not in data or "messages" in data:
        yield "", data
        return
    found = data["conversations"]
    if not isinstance(found, list):
        raise InvalidState(f"is a {type(found).__name__}, not a list", path="conversations")
    if not found:
        raise InvalidState("is empty: there is no conversation in it", path="conversations")
    about = {known: data[known] for known in _ABOUT if known in data}
    for index, chat in enumerate(found):
        whole = {"messages": chat} if isinstance(chat, list) and _are_messages(chat) else chat
        yield f"conversations[{index}]", {**about, **whole} if isinstance(whole, dict) else whole


def chat_record(data: Any, *, name: str | None = None) -> Record:
    """Return the conversation of a parsed chat; `name` is its id unless it has one.

    Its times are those that it states, else those of its messages, else None.

    Raises: InvalidState naming the place.
    """
    if isinstance(data, list):
        _check_bare(data)
    chat = {"messages": data} if isinstance(data, list) else data
    if not isinstance(chat, dict) or "messages" not in chat:
        raise InvalidState(
            'is neither a line of an export, nor a list of messages, nor an object with "messages"'
        )
    messages, context = chat["messages"], chat.get("context")
    if not isinstance(messages, list):
        raise InvalidState(f"is a {type(messages).__name__}, not a list", path="messages")
    if not isinstance(context, list | None):
        raise InvalidState(f"is a {type(context).__name__}, not a list", path="context")
    rest = {name: value for name, value in chat.items() if name not in _OWN}
    for field in rest:
        if field in DEFAULTS or field == BASELINE_KEY:
            raise InvalidState("is a field of the state, and none of a chat", path=shown(field))
    document = check_document({MESSAGES: messages, ITEMS: context or [], **rest}).document
    user = chat.get("user")
    is_number = type(user) is int
    created, updated = _times(chat, messages)
    return Record(
        conversation_id=_id_of(chat, name=name),
        document=document,
        username=None
        if user is None
        else check_text(f"{user}" if is_number else user, path="user"),
        is_number=is_number,
        created_at=created,
        updated_at=updated,
    )


def _id_of(chat: Mapping[str, Any], *, name: str | None) -> str:
    found = name if chat.get("id") is None else chat["id"]
    if found is not None:
        return check_id(found, path="id")
    return str(uuid.uuid5(_NAMESPACE, digest_of(chat).hex()))


def _times(chat: Mapping[str, Any], messages: list[Any]) -> tuple[datetime | None, datetime | None]:
    """Return the times of a chat's beginning and last activity, if it or its messages state any."""
    stated = (stated_moment(message) for message in messages if isinstance(message, dict))
    moments = [moment for moment in stated if moment is not None]
    alone = stated_moment(chat, ("timestamp",))
    first, last = (min(moments), max(moments)) if moments else (alone, alone)
    created, updated = stated_moment(chat, _CREATED) or first, stated_moment(chat, _UPDATED) or last
    created, updated = created or updated, updated or created
    if created is None or updated is None:
        return None, None
    return created, max(created, updated)


def _check_bare(messages: list[Any]) -> None:
    """Check that a bare list is a list of messages."""
    if not messages:
        raise InvalidState("is an empty list, and no conversation")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidState(
                f"is a {type(message).__name__}, not an object", path=f"messages[{index}]"
            )
        if _MESSAGE_KEYS.isdisjoint(message):
            raise InvalidState(
                f"is no message: it has none of {', '.join(sorted(_MESSAGE_KEYS))}. Any list is"
                ' taken as it is under "messages"',
                path=f"[{index}]",
            )


def _are_messages(messages: list[Any]) -> bool:
    try:
        _check_bare(messages)
    except InvalidState:
        return False
    return True
