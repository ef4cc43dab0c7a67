"""A user's conversations, from both stores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from django.utils import timezone

from conversations import conf
from conversations.content.codec import storable
from conversations.exceptions import ConversationNotFound, InvalidState
from conversations.reading import at_truth, exists
from conversations.reading.lists import Position, summaries
from conversations.routing.owners import UserKey, UserRef, owner_key
from conversations.routing.standing import decide
from conversations.routing.transactions import attempt, translated
from conversations.storage.arguments import ConversationId, check_id, check_size, lazy
from conversations.storage.coroutines import coroutine_of
from conversations.storage.measuring import measured_list
from conversations.stores.sql.expressions import NEVER
from conversations.stores.types import Summary
from flags.phases import StoreName

# Longer ids are in no index of PostgreSQL.
LONGEST_CURSOR = 4096


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
    user_id: UserRef, *, before: str | None = None, limit: int = 50
) -> ConversationPage:
    """Return a page of a user's conversations, latest activity first.

    `before` is the `next` of an earlier page. Without user_id (where `REQUIRE_OWNER` allows
    it), the conversations of all owners. A write of old code counts as activity once a load, save
    or sync of its conversation has ingested it.

    Raises: InvalidState for another cursor, InvalidOwner, StorageUnavailable.
    """
    owner = owner_key(user_id)
    size = check_size(limit)
    found = _summaries(owner, before=_position(before), limit=size + 1)
    page = found[:size]
    more = len(found) > size
    return ConversationPage(
        tuple(ConversationSummary(s.conversation_id, s.updated_at, s.message_count) for s in page),
        next=_cursor(page[-1]) if more else None,
    )


alist_conversations = coroutine_of(list_conversations)


def _summaries(owner: str | None, *, before: Position | None = None, limit: int) -> list[Summary]:
    return measured_list(lambda: _asked(owner, before, limit))


def _asked(owner: str | None, before: Position | None, limit: int) -> list[Summary]:
    decision = decide()
    with translated("of a user", emergency=decision.emergency), attempt():
        return summaries(owner, decision.legacy, before=before, limit=limit)


def _cursor(summary: Summary) -> str:
    moment = summary.updated_at or NEVER
    return f"{moment.astimezone(UTC).isoformat()}|{summary.store}|{summary.conversation_id}"


def _position(cursor: str | None) -> Position | None:
    if cursor is None:
        return None
    position = _parsed(cursor) if isinstance(cursor, str) and not lazy(cursor) else None
    if position is None:
        raise InvalidState("is not the cursor of a page", path="before")
    return position


def _parsed(cursor: str) -> Position | None:
    """Return the position that a cursor names, or None: any text of a URL may be here."""
    if len(cursor) > LONGEST_CURSOR or not storable(cursor):
        return None
    try:
        text, store, conversation_id = cursor.split("|", 2)
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            return None
        # In UTC, as a page wrote it: a database knows fewer zones, and fewer moments in them.
        return Position(moment.astimezone(UTC), StoreName(store), conversation_id)
    except (ValueError, OverflowError):
        return None


def get_conversation_id(user_id: UserKey) -> str | None:
    """Return the id of a user's conversation with the latest activity, or None.

    Raises: InvalidOwner, StorageUnavailable.
    """
    owner = owner_key(user_id, required=True)
    found = _summaries(owner, limit=1)
    return found[0].conversation_id if found else None


aget_conversation_id = coroutine_of(get_conversation_id)


def get_conversation_timestamp(
    user_id: UserRef, conversation_id: ConversationId
) -> datetime | None:
    """Return the moment of a conversation's latest activity, or None when it is missing.

    Raises: InvalidState, InvalidOwner, StorageUnavailable.
    """
    conversation_id, owner = check_id(conversation_id), owner_key(user_id)
    try:
        decision = decide(conversation_id)
        with translated(conversation_id, emergency=decision.emergency):
            found = at_truth(conversation_id, decision, owner=owner)
    except ConversationNotFound:
        return None
    if found is None:
        return None
    row, stored = found
    if row is not None:
        return row.updated_at
    return None if stored is None else stored.updated_at


aget_conversation_timestamp = coroutine_of(get_conversation_timestamp)


def conversation_exists(conversation_id: ConversationId, *, user_id: UserRef = None) -> bool:
    """Return whether `load_state` would find a conversation. Reads none of its content.

    Costs one statement, two where only legacy may hold it. False for one that is missing,
    another owner's or deleted.

    Raises: InvalidState, InvalidOwner, StorageUnavailable (a store that may hold the
    conversation did not answer).
    """
    return exists(check_id(conversation_id), owner=owner_key(user_id))


aconversation_exists = coroutine_of(conversation_exists)


def should_resume_conversation(last_timestamp: datetime | None) -> bool:
    """Return whether to continue a conversation that was last active then.

    True within `RESUME_WITHIN` of that moment. A time without a zone is taken as UTC.

    Raises: InvalidState for anything but a datetime or None.
    """
    if last_timestamp is None:
        return False
    if not isinstance(last_timestamp, datetime):
        raise InvalidState(
            f"is a {type(last_timestamp).__name__}, not a datetime", path="last_timestamp"
        )
    if timezone.is_naive(last_timestamp):
        last_timestamp = last_timestamp.replace(tzinfo=UTC)
    age = timezone.now() - last_timestamp
    return bool(age <= conf.get("RESUME_WITHIN"))


ashould_resume_conversation = coroutine_of(should_resume_conversation)
