"""The files of other products, recognised by their shape, so that an error can name them. Pure.

None of these is imported yet. They resemble our chats so closely that an import would make wrong
or empty conversations of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flags.texts import shown

CHATGPT = "a ChatGPT export"
CLAUDE = "a Claude.ai export"
OPEN_WEBUI = "an Open WebUI export"
LIBRECHAT = "a LibreChat export"
SHAREGPT = "a data set in ShareGPT's form"
CLAUDE_CODE = "a Claude Code session"
CODEX = "a Codex session"
UI_MESSAGES = "a chat of the Vercel AI SDK (UIMessage)"
PREFERENCES = "a preference data set of OpenAI (DPO)"
ZIP = "a ZIP archive, as ChatGPT and Claude.ai export them"
FOLDER = "the folder of a ChatGPT or Claude.ai export"

ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_CODEX_TYPES = ("session_meta", "response_item", "event_msg", "turn_context", "compacted")


def refusal(product: str) -> str:
    """Return the one message for a file of another product."""
    return (
        f"this is {product}, which is not imported yet: nothing of it was written. Imported are"
        ' chats, objects with "messages", as JSON Lines or as one array, and files of'
        " `conversations export`."
    )


def product_of(data: Any) -> str | None:
    """Return the product whose export a value is, or is a part of; else None."""
    if isinstance(data, list):
        return product_of(data[0]) if data else None
    if not isinstance(data, dict) or _is_ours(data):
        return None
    if isinstance(data.get("mapping"), dict) and ("current_node" in data or _is_tree(data)):
        return CHATGPT
    if isinstance(data.get("chat_messages"), list):
        return CLAUDE
    if isinstance(data.get("chat"), dict) and "history" in data["chat"]:
        return OPEN_WEBUI
    if "messagesTree" in data or "isCreatedByUser" in data:
        return LIBRECHAT
    if "parentUuid" in data and "sessionId" in data:
        return CLAUDE_CODE
    if data.get("type") == "summary" and "leafUuid" in data:
        return CLAUDE_CODE
    if data.get("type") in _CODEX_TYPES and "payload" in data:
        return CODEX
    if isinstance(data.get("input"), dict) and "preferred_output" in data:
        return PREFERENCES
    return _by_messages(data)


def _is_ours(data: dict[Any, Any]) -> bool:
    return "format" in data and "state" in data


def _is_tree(data: dict[Any, Any]) -> bool:
    nodes = data["mapping"].values()
    return any(isinstance(node, dict) and "children" in node for node in nodes)


def _by_messages(data: dict[Any, Any]) -> str | None:
    """Return the product whose messages a chat holds, or that a message belongs to."""
    turns = _objects(data.get("conversations"))
    if any("from" in turn or ("role" in turn and "messages" not in turn) for turn in turns):
        return SHAREGPT
    for message in (data, *_objects(data.get("messages"))):
        if "isCreatedByUser" in message:
            return LIBRECHAT
        if isinstance(message.get("role"), str) and _has_typed_parts(message.get("parts")):
            return UI_MESSAGES
        if isinstance(message.get("from"), str) and isinstance(message.get("value"), str):
            return SHAREGPT
    return None


def _has_typed_parts(parts: Any) -> bool:
    return any(isinstance(part.get("type"), str) for part in _objects(parts))


def _objects(values: Any) -> Sequence[dict[Any, Any]]:
    return [one for one in values if isinstance(one, dict)] if isinstance(values, list) else []


def folder_refusal(path: Path) -> str:
    """Return the message for a folder."""
    exported = [*path.glob("conversations.json"), *path.glob("conversations-[0-9]*.json")]
    if exported:
        return refusal(FOLDER)
    return f"{shown(str(path))} is a folder: name a file of it."
