"""Whole conversations: create, clear, claim, fork and delete them."""

from __future__ import annotations

import uuid

from conversations.content.changes import Clear, SaveState
from conversations.content.document import Document
from conversations.content.validation import Checked
from conversations.routing.owners import UserKey, UserRef, owner_key
from conversations.state import AgentState, SaveResult
from conversations.storage.arguments import (
    ConversationId,
    check_flag,
    check_id,
    check_limit,
)
from conversations.storage.coroutines import coroutine_of
from conversations.storage.states import carry_out
from conversations.writing.delete import claim, delete
from conversations.writing.fork import fork


def create_new_conversation(user_id: UserRef = None) -> str:
    """Create an empty conversation. Returns: its id, a UUID4.

    Raises: InvalidOwner, StorageUnavailable.
    """
    conversation_id, owner = str(uuid.uuid4()), owner_key(user_id)
    document = Document.from_dict(AgentState().to_dict())
    carry_out(conversation_id, SaveState(Checked.of(document), None), owner)
    return conversation_id


acreate_new_conversation = coroutine_of(create_new_conversation)


def clear_conversation(conversation_id: ConversationId, user_id: UserRef = None) -> SaveResult:
    """Remove every message and context item, and set the fields to their defaults.

    The conversation stays, and its messages can be restored.

    Raises: ConversationNotFound, StorageUnavailable.
    """
    return carry_out(check_id(conversation_id), Clear(), owner_key(user_id))[1]


aclear_conversation = coroutine_of(clear_conversation)


def delete_conversation(conversation_id: ConversationId, user_id: UserRef = None) -> bool:
    """Remove a conversation from both stores, for ever. Its id is never used again.

    Returns: False when it is missing, another owner's or deleted already.
    Raises: StorageUnavailable when a store that may hold it did not answer; then it stays.
    """
    return delete(check_id(conversation_id), owner=owner_key(user_id))


adelete_conversation = coroutine_of(delete_conversation)


def claim_conversation(conversation_id: ConversationId, user_id: UserKey) -> None:
    """Make a user the owner of a conversation that has none.

    Raises: ConversationNotFound (missing, another owner's or deleted), InvalidOwner,
    StorageUnavailable.
    """
    owner = owner_key(user_id, required=True)
    assert owner is not None
    claim(check_id(conversation_id), owner)


aclaim_conversation = coroutine_of(claim_conversation)


def fork_conversation(
    conversation_id: ConversationId,
    at: int | None = None,
    *,
    user_id: UserRef = None,
    whole_turns: bool = True,
) -> str:
    """Copy a conversation up to and including the sequence `at` (None: all of it).

    An `at` between a tool call and its results is refused, since providers refuse such a history.
    The error names the sequences before and after. `whole_turns=False` allows it.

    Returns: the id of the new conversation (a UUID4), with the same owner and `forked_from`.
    Raises: ConversationNotFound, InvalidState, StorageUnavailable.
    """
    return fork(
        check_id(conversation_id),
        check_limit(at, path="at"),
        owner=owner_key(user_id),
        whole_turns=check_flag(whole_turns, path="whole_turns"),
    )


afork_conversation = coroutine_of(fork_conversation)
