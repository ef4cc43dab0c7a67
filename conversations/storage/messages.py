"""Single messages: list, replace, remove, restore and redact them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conversations import conf
from conversations.content.changes import OWN_KEYS, removal, replacement, restoration
from conversations.content.codec import storable
from conversations.content.entries import Entry
from conversations.content.redaction import REDACTED
from conversations.content.validation import canonical, check_messages
from conversations.exceptions import InvalidState
from conversations.reading.pages import transcript
from conversations.routing.owners import UserRef, owner_key
from conversations.state import SaveResult
from conversations.storage.arguments import (
    ConversationId,
    check_flag,
    check_id,
    check_limit,
    check_name,
    check_reference,
    check_references,
    check_size,
    lazy,
)
from conversations.storage.coroutines import coroutine_of
from conversations.storage.states import carry_out
from conversations.writing.redact import erase

MOST_ROLES = 1000


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One version of a message: its content (`message`), and its place.

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
    conversation_id: ConversationId,
    *,
    user_id: UserRef = None,
    before: int | None = None,
    after: int | None = None,
    limit: int = 50,
    roles: Collection[str] | None = None,
    tool_name: str | None = None,
    include_superseded: bool = False,
    whole_turns: bool = False,
) -> MessagePage:
    """Return a page of messages in ascending order: the newest page without cursors.

    `before` and `after` are sequences (exclusive). With `include_superseded`, earlier versions
    and removed messages stand beside the current ones, by sequence and age.

    With `whole_turns`, a tool call and its results are on one page, as in `load_state`. A page may
    then hold more than `limit` messages, or fewer; each message is on one page. It is refused
    together with roles, tool_name or include_superseded, which leave out calls or repeat them.

    Raises: ConversationNotFound (missing, another owner's or deleted), InvalidState,
    StorageUnavailable.
    """
    conversation_id, owner = check_id(conversation_id), owner_key(user_id)
    size = check_size(limit)
    if before is not None and after is not None:
        raise InvalidState("give before or after, not both", path="before")
    for name, cursor in (("before", before), ("after", after)):
        check_limit(cursor, path=name)
    wanted = _filter(roles, tool_name)
    if check_flag(whole_turns, path="whole_turns") and (wanted or include_superseded):
        raise InvalidState(
            "give it without roles, tool_name and include_superseded", path="whole_turns"
        )
    page, more = transcript(
        conversation_id,
        owner=owner,
        before=before,
        after=after,
        limit=size,
        include_superseded=include_superseded,
        wanted=wanted,
        whole_turns=whole_turns,
    )
    forwards = after is not None
    return MessagePage(
        tuple(_message(entry) for entry in page),
        has_earlier=bool(page) if forwards else more,
        has_later=more if forwards else bool(page) and before is not None,
    )


alist_messages = coroutine_of(list_messages)


def _filter(roles: Collection[str] | None, tool_name: str | None) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    if roles is not None:
        if not isinstance(roles, Collection):
            raise InvalidState(f"is a {type(roles).__name__}, not a list", path="roles")
        names = [roles] if isinstance(roles, str) else roles
        if len(names) > MOST_ROLES:
            # A database limits the parameters of a statement, and compares every message with each.
            raise InvalidState(f"{len(names)} roles are more than {MOST_ROLES}", path="roles")
        wanted["role"] = [
            check_name(name, path=f"roles[{index}]") for index, name in enumerate(names)
        ]
    if tool_name is not None:
        wanted["tool_name"] = [check_name(tool_name, path="tool_name")]
    # A database would refuse a value that its columns cannot hold, and no message has it.
    return {column: [*filter(storable, names)] for column, names in wanted.items()}


def _message(entry: Entry) -> StoredMessage:
    key = None if entry.key is None or entry.key.startswith(OWN_KEYS) else entry.key
    return StoredMessage(entry.identity or 0, key, entry.value, entry.added_in, entry.superseded_in)


def replace_message(
    conversation_id: ConversationId,
    key_or_sequence: int | str,
    message: Mapping[str, Any],
    *,
    user_id: UserRef = None,
) -> SaveResult:
    """Replace one message, at its place and under its key; the earlier version is superseded.

    Raises: MessageNotFound, ConversationNotFound, InvalidState, StorageUnavailable.
    """
    conversation_id, owner = check_id(conversation_id), owner_key(user_id)
    reference = check_reference(key_or_sequence)
    (value,) = check_messages([message], path="message")
    return carry_out(conversation_id, replacement(reference, value), owner)[1]


areplace_message = coroutine_of(replace_message)


def remove_messages(
    conversation_id: ConversationId,
    keys_or_sequences: Sequence[int | str] | int | str | None = None,
    *,
    last: int | None = None,
    user_id: UserRef = None,
) -> list[Any]:
    """Remove messages by key or sequence, or the `last` so many. They can be restored.

    Returns: the removed messages, in order.
    Raises: MessageNotFound (then none was removed), ConversationNotFound, InvalidState,
    StorageUnavailable.
    """
    conversation_id, owner = check_id(conversation_id), owner_key(user_id)
    if (keys_or_sequences is None) == (last is None):
        raise InvalidState("give keys_or_sequences or last", path="keys_or_sequences")
    references = None if keys_or_sequences is None else check_references(keys_or_sequences)
    removed: list[Any] = []
    operation = removal(references, check_limit(last, path="last"), removed)
    carry_out(conversation_id, operation, owner)
    return removed


aremove_messages = coroutine_of(remove_messages)


def restore_message(
    conversation_id: ConversationId,
    key_or_sequence: int | str,
    *,
    revision: int | None = None,
    user_id: UserRef = None,
) -> SaveResult:
    """Bring back a removed message, or the version that an edit superseded, at its place.

    `revision` chooses the version that was current then; by default the last superseded one.

    Raises: MessageNotFound, ConversationNotFound, InvalidState, StorageUnavailable.
    """
    conversation_id, owner = check_id(conversation_id), owner_key(user_id)
    operation = restoration(
        check_reference(key_or_sequence), check_limit(revision, path="revision")
    )
    return carry_out(conversation_id, operation, owner)[1]


arestore_message = coroutine_of(restore_message)


def redact_message(
    conversation_id: ConversationId,
    key_or_sequence: int | str,
    *,
    replacement: str = REDACTED,
    user_id: UserRef = None,
) -> int:
    """Replace a message's text in every version, in both stores, in forks and in records.

    Its position, key and role stay. A caller that writes the old text again, old code included,
    stores the redacted form.

    Returns: how many stored versions were rewritten in the tables.
    Raises: MessageNotFound, ConversationNotFound, InvalidState, StorageUnavailable (a store
    that may hold the text did not answer; nothing was changed).
    """
    conversation_id, owner = check_id(conversation_id), owner_key(user_id)
    return erase(
        conversation_id,
        check_reference(key_or_sequence),
        replacement=_checked_replacement(replacement),
        owner=owner,
    )


aredact_message = coroutine_of(redact_message)


def _checked_replacement(replacement: Any) -> str:
    """Return a replacement that a message and a text column of its own can hold."""
    if lazy(replacement) or not isinstance(replacement, str):
        raise InvalidState(f"is a {type(replacement).__name__}, not a string", path="replacement")
    text, _ = canonical(replacement, path="replacement", max_bytes=conf.get("MAX_MESSAGE_BYTES"))
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidState("holds a NUL or half of a surrogate pair", path="replacement")
    return str(text)
