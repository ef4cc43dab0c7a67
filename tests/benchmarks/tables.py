"""What our tables hold."""

from __future__ import annotations

from typing import Any

from conversations.content.codec import MESSAGE_COLUMNS, decode_message
from conversations.models import ConversationMessage, ConversationState


def rows_of(conversation_id: str) -> tuple[Any, list[Any]]:
    """Return what the tables hold, but for keys, numbers of rows and the time of the write."""
    row = ConversationState.objects.get(conversation_id=conversation_id)
    left_out = {"_state", "id", "conversation_id", "created_at", "updated_at"}
    columns = {name: value for name, value in vars(row).items() if name not in left_out}
    messages = []
    for found in ConversationMessage.objects.filter(conversation=row).order_by("sequence"):
        values = {**vars(found)}
        for name in ("_state", "id", "conversation_id"):
            del values[name]
        values["key"] = (values["key"][0], values["key"].rpartition(":")[2])
        if "timestamp" not in load_message(found):
            # Else it is the time of the write.
            assert values.pop("timestamp") is not None
        messages.append({name: _plain(value) for name, value in values.items()})
    return {name: _plain(value) for name, value in columns.items()}, messages


def load_message(found: ConversationMessage) -> Any:
    return decode_message({name: getattr(found, name) for name in MESSAGE_COLUMNS})


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value
