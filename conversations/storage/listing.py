"""A user's conversations, from both stores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.utils import timezone

from conversations import conf
from conversations.exceptions import ConversationNotFound, InvalidState
from conversations.owners import owner_key
from conversations.reading import at_truth
from conversations.storage.arguments import checked_id, checked_size
from conversations.storage.measuring import measured_list
from conversations.stores.base import NEVER, Summary
from conversations.stores.combined import Position, summaries
from conversations.transactions import attempt, translated
from flags.phases import StoreName


@dataclass(frozen=True, slots=True)
class ConversationSummary:
    """One line of a list. `message_count` is None for a conversation in legacy alone."""

    conversation_id: str
    updated_at: datetime | None
    message_count: int | None


@dataclass(frozen=True, slots=True)
class ConversationPage:
    """Summaries by latest activity, newest first. `next` is the cursor of the next page."""

    conversations: tuple[ConversationSummary, ...]
    next: str | None

    def __iter__(self) -> Iterator[ConversationSummary]:
        return iter(self.conversations)

    def __len__(self) -> int:
        return len(self.conversations)


def list_conversations(
    user_id: Any, *, before: str | None = None, limit: int = 50
) -> ConversationPage:
    """Return a page of a user's conversations, latest activity first.

    `before` is the `next` of an earlier page. Without user_id (where `REQUIRE_OWNER` allows
    it), everybody's. What old code writes beside the tables counts as activity from the next
    load, save or sync of its conversation on.

    Raises: InvalidState for another cursor, InvalidOwner, StorageUnavailable.
    """
    owner = owner_key(user_id)
    size = checked_size(limit)
    found = _summaries(owner, before=_position(before), limit=size + 1)
    page = found[:size]
    more = len(found) > size
    return ConversationPage(
        tuple(ConversationSummary(s.conversation_id, s.updated_at, s.message_count) for s in page),
        next=_cursor(page[-1]) if more else None,
    )


def _summaries(owner: str | None, *, before: Position | None = None, limit: int) -> list[Summary]:
    return measured_list(lambda: _asked(owner, before, limit))


def _asked(owner: str | None, before: Position | None, limit: int) -> list[Summary]:
    with translated("of a user"), attempt():
        return summaries(owner, before=before, limit=limit)


def _cursor(summary: Summary) -> str:
    moment = summary.updated_at or NEVER
    return f"{moment.astimezone(UTC).isoformat()}|{summary.store}|{summary.conversation_id}"


def _position(cursor: str | None) -> Position | None:
    if cursor is None:
        return None
    try:
        moment, store, conversation_id = str(cursor).split("|", 2)
        position = Position(datetime.fromisoformat(moment), StoreName(store), conversation_id)
    except ValueError as error:
        raise InvalidState("is no cursor that a page gave", path="before") from error
    if position.moment.tzinfo is None:
        raise InvalidState("is no cursor that a page gave", path="before")
    return position


def get_conversation_id(user_id: Any) -> str | None:
    """Return the id of a user's conversation with the latest activity, or None.

    Raises: InvalidOwner, StorageUnavailable.
    """
    owner = owner_key(user_id, required=True)
    found = _summaries(owner, limit=1)
    return found[0].conversation_id if found else None


def get_conversation_timestamp(user_id: Any, conversation_id: Any) -> datetime | None:
    """Return the moment of a conversation's latest activity, or None when it is missing.

    Raises: InvalidState, InvalidOwner, StorageUnavailable.
    """
    conversation_id, owner = checked_id(conversation_id), owner_key(user_id)
    try:
        with translated(conversation_id):
            found = at_truth(conversation_id, owner=owner)
    except ConversationNotFound:
        return None
    if found is None:
        return None
    row, stored = found
    if row is not None:
        return row.updated_at
    return None if stored is None else stored.updated_at


def should_resume_conversation(last_timestamp: datetime | None) -> bool:
    """Return whether a conversation that was last active then should be gone on with.

    True within `RESUME_WITHIN` of that moment. A time without a zone is taken as UTC.
    """
    if last_timestamp is None:
        return False
    if timezone.is_naive(last_timestamp):
        last_timestamp = last_timestamp.replace(tzinfo=UTC)
    age = timezone.now() - last_timestamp
    return bool(age <= conf.get("RESUME_WITHIN"))
