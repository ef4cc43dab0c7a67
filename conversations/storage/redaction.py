"""Redacting one message: its text disappears from every version, store, fork and record."""

from __future__ import annotations

from typing import Any

from conversations.erasure import erase
from conversations.exceptions import InvalidState
from conversations.owners import owner_key
from conversations.redactions import REDACTED
from conversations.storage.arguments import checked_id, checked_reference


def redact_message(
    conversation_id: Any,
    key_or_sequence: int | str,
    *,
    replacement: str = REDACTED,
    user_id: Any = None,
) -> int:
    """Replace a message's text in every version, in both stores, in forks and in records.

    Its position, key and role stay. Whoever writes the old text again, old code included,
    stores the redacted form.

    Returns: how many stored versions were rewritten in the tables.
    Raises: MessageNotFound, ConversationNotFound, InvalidState, StorageUnavailable (a store
    that may hold the text did not answer; nothing was changed).
    """
    conversation_id, owner = checked_id(conversation_id), owner_key(user_id)
    if not isinstance(replacement, str):
        raise InvalidState(f"is a {type(replacement).__name__}, not a string", path="replacement")
    return erase(
        conversation_id, checked_reference(key_or_sequence), replacement=replacement, owner=owner
    )
