"""Single messages: listing them, and replacing, removing and restoring them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from conversations.changes import OWN_KEYS, removal, replacement, restoration
from conversations.codec import storable
from conversations.documents import checked_messages
from conversations.exceptions import InvalidState
from conversations.merge import Entry
from conversations.owners import owner_key
from conversations.state import SaveResult
from conversations.storage.arguments import (
    checked_id,
    checked_limit,
    checked_name,
    checked_reference,
    checked_references,
    checked_size,
)
from conversations.storage.states import written
from conversations.transcripts import transcript


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One version of a message: what was saved (`message`), and where it stands.

    `superseded_in` is the revision that replaced or removed it, None while it is current.
    """

    sequence: int
    key: str | None
    message: Any
    added_in: int
    superseded_in: int | None = None


@dataclass(frozen=True, slots=True)
class MessagePage:
    """Messages in ascending order. Pass `before=page.first` or `after=page.last` for more."""

    messages: tuple[StoredMessage, ...]
    has_earlier: bool
    has_later: bool

    def __iter__(self) -> Iterator[StoredMessage]:
        return iter(self.messages)

    def __len__(self) -> int:
        return len(self.messages)

    @property
    def first(self) -> int | None:
        """Return the cursor for earlier messages."""
        return self.messages[0].sequence if self.messages else None

    @property
    def last(self) -> int | None:
        """Return the cursor for later messages."""
        return self.messages[-1].sequence if self.messages else None


def list_messages(
    conversation_id: Any,
    *,
    user_id: Any = None,
    before: int | None = None,
    after: int | None = None,
    limit: int = 50,
    roles: Collection[str] | None = None,
    tool_name: str | None = None,
    include_superseded: bool = False,
) -> MessagePage:
    """Return a page of messages in ascending order: the newest page without cursors.

    `before` and `after` are sequences (exclusive). With `include_superseded`, earlier versions
    and removed messages stand beside the current ones, by sequence and age.

    Raises: ConversationNotFound (missing, another owner's or deleted), InvalidState,
    StorageUnavailable.
    """
    conversation_id, owner = checked_id(conversation_id), owner_key(user_id)
    size = checked_size(limit)
    if before is not None and after is not None:
        raise InvalidState("give before or after, not both", path="before")
    for name, cursor in (("before", before), ("after", after)):
        checked_limit(cursor, path=name)
    page, more = transcript(
        conversation_id,
        owner=owner,
        before=before,
        after=after,
        limit=size,
        include_superseded=include_superseded,
        wanted=_filter(roles, tool_name),
    )
    forwards = after is not None
    return MessagePage(
        tuple(_message(entry) for entry in page),
        has_earlier=bool(page) if forwards else more,
        has_later=more if forwards else bool(page) and before is not None,
    )


def _filter(roles: Collection[str] | None, tool_name: str | None) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    if roles is not None:
        if not isinstance(roles, Collection):
            raise InvalidState(f"is a {type(roles).__name__}, not a list", path="roles")
        names = [roles] if isinstance(roles, str) else roles
        wanted["role"] = [
            checked_name(name, path=f"roles[{index}]") for index, name in enumerate(names)
        ]
    if tool_name is not None:
        wanted["tool_name"] = [checked_name(tool_name, path="tool_name")]
    # What no column can hold is in none, and a database would refuse the question.
    return {column: [*filter(storable, names)] for column, names in wanted.items()}


def _message(entry: Entry) -> StoredMessage:
    key = None if entry.key is None or entry.key.startswith(OWN_KEYS) else entry.key
    return StoredMessage(entry.identity or 0, key, entry.value, entry.added_in, entry.superseded_in)


def replace_message(
    conversation_id: Any, key_or_sequence: int | str, message: Any, *, user_id: Any = None
) -> SaveResult:
    """Replace one message, at its place and under its key; the earlier version is superseded.

    Raises: MessageNotFound, ConversationNotFound, InvalidState, StorageUnavailable.
    """
    conversation_id, owner = checked_id(conversation_id), owner_key(user_id)
    reference = checked_reference(key_or_sequence)
    (value,) = checked_messages([message], path="message")
    return written(conversation_id, replacement(reference, value), owner)[1]


def remove_messages(
    conversation_id: Any,
    keys_or_sequences: Sequence[int | str] | int | str | None = None,
    *,
    last: int | None = None,
    user_id: Any = None,
) -> list[Any]:
    """Remove messages by key or sequence, or the `last` so many. They can be restored.

    Returns: the removed messages, in order.
    Raises: MessageNotFound (then none was removed), ConversationNotFound, InvalidState,
    StorageUnavailable.
    """
    conversation_id, owner = checked_id(conversation_id), owner_key(user_id)
    if (keys_or_sequences is None) == (last is None):
        raise InvalidState("give keys_or_sequences or last", path="keys_or_sequences")
    references = None if keys_or_sequences is None else checked_references(keys_or_sequences)
    removed: list[Any] = []
    operation = removal(references, checked_limit(last, path="last"), removed)
    written(conversation_id, operation, owner)
    return removed


def restore_message(
    conversation_id: Any,
    key_or_sequence: int | str,
    *,
    revision: int | None = None,
    user_id: Any = None,
) -> SaveResult:
    """Bring back a removed message, or the version that an edit superseded, at its place.

    `revision` chooses the version that was current then; by default the last superseded one.

    Raises: MessageNotFound, ConversationNotFound, InvalidState, StorageUnavailable.
    """
    conversation_id, owner = checked_id(conversation_id), owner_key(user_id)
    operation = restoration(
        checked_reference(key_or_sequence), checked_limit(revision, path="revision")
    )
    return written(conversation_id, operation, owner)[1]
