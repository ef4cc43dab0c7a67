"""Whole conversations: creating, clearing, claiming, forking and deleting them."""

from __future__ import annotations

import uuid
from typing import Any

from conversations.changes import Clear, SaveState
from conversations.deletion import claim, delete
from conversations.documents import Checked, Document
from conversations.forking import fork
from conversations.owners import owner_key
from conversations.state import AgentState, SaveResult
from conversations.storage.arguments import checked_id, checked_limit
from conversations.storage.states import written


def create_new_conversation(user_id: Any = None) -> str:
    """Create an empty conversation. Returns: its id, a UUID4.

    Raises: InvalidOwner, StorageUnavailable.
    """
    conversation_id, owner = str(uuid.uuid4()), owner_key(user_id)
    document = Document.from_dict(AgentState().to_dict())
    written(conversation_id, SaveState(Checked.of(document), None), owner)
    return conversation_id


def clear_conversation(conversation_id: Any, user_id: Any = None) -> SaveResult:
    """Remove every message and context item, and set the fields to their defaults.

    The conversation stays, its messages can be restored.

    Raises: ConversationNotFound, StorageUnavailable.
    """
    return written(checked_id(conversation_id), Clear(), owner_key(user_id))[1]


def delete_conversation(conversation_id: Any, user_id: Any = None) -> bool:
    """Remove a conversation from both stores, for ever. Its id is never used again.

    Returns: False when it is missing, another owner's or deleted already.
    Raises: StorageUnavailable when a store that may hold it did not answer; then it stays.
    """
    return delete(checked_id(conversation_id), owner=owner_key(user_id))


def claim_conversation(conversation_id: Any, user_id: Any) -> None:
    """Make a user the owner of a conversation that has none.

    Raises: ConversationNotFound (missing, another owner's or deleted), InvalidOwner,
    StorageUnavailable.
    """
    owner = owner_key(user_id, required=True)
    assert owner is not None
    claim(checked_id(conversation_id), owner)


def fork_conversation(conversation_id: Any, at: int | None = None, *, user_id: Any = None) -> str:
    """Copy a conversation up to and including the sequence `at` (None: all of it).

    Returns: the id of the new conversation (a UUID4), with the same owner and `forked_from`.
    Raises: ConversationNotFound, InvalidState, StorageUnavailable.
    """
    return fork(checked_id(conversation_id), checked_limit(at, path="at"), owner=owner_key(user_id))
