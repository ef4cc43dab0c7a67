"""What an operator does with a conversation: the public API, whoever the owner is.

Where `REQUIRE_OWNER` is set the API wants the owner named. A conversation that has none (left
from a legacy that knew anonymous users) is then out of a host's reach, but not of an operator's.
"""

from __future__ import annotations

from collections.abc import Sequence

from conversations import conf, deletion
from conversations.documents import Document
from conversations.reading import Selection, read
from conversations.storage import (
    MessagePage,
    StoredMessage,
    delete_conversation,
    list_messages,
)
from conversations.transcripts import transcript


def messages_of(
    conversation_id: str,
    *,
    owner: str | None,
    before: int | None = None,
    after: int | None = None,
    limit: int,
    roles: Sequence[str] | None = None,
    include_superseded: bool = False,
) -> MessagePage:
    """Return a page of messages, as `list_messages` does.

    Raises: ConversationNotFound, InvalidState, StorageUnavailable.
    """
    if owner is not None or not conf.require_owner():
        return list_messages(
            conversation_id,
            user_id=_named(owner),
            before=before,
            after=after,
            limit=limit,
            roles=roles,
            include_superseded=include_superseded,
        )
    entries, more = transcript(
        conversation_id,
        owner=None,
        before=before,
        after=after,
        limit=limit,
        include_superseded=include_superseded,
        wanted=None if roles is None else {"role": roles},
    )
    found = [
        StoredMessage(entry.identity or 0, None, entry.value, entry.added_in, entry.superseded_in)
        for entry in entries
    ]
    forwards = after is not None
    return MessagePage(
        tuple(found),
        has_earlier=bool(found) if forwards else more,
        has_later=more if forwards else bool(found) and before is not None,
    )


def document_of(conversation_id: str, *, items: int) -> Document | None:
    """Return a conversation's fields and its best context items, without messages.

    Raises: StorageUnavailable.
    """
    loaded = read(conversation_id, Selection(max_messages=0, max_items=items), owner=None)
    return None if loaded is None else loaded.document


def delete(conversation_id: str, *, owner: str | None) -> bool:
    """Delete a conversation from both stores, as `delete_conversation` does.

    Raises: StorageUnavailable; then it stays.
    """
    if owner is None and conf.require_owner():
        return deletion.delete(conversation_id, owner=None)
    return delete_conversation(conversation_id, user_id=_named(owner))


def _named(owner: str | None) -> str | None:
    return owner if conf.require_owner() else None
