"""Everything `conversations` raises. The docstring of a class is its default message."""

from flags.exceptions import OwnError
from flags.texts import escaped


class ConversationStoreError(OwnError):
    """The conversation store could not do what it was asked; see the subclass for what to do."""

    # The name of this failure in reports: a slug that never changes.
    reason_class = "error"


class InvalidState(ConversationStoreError, ValueError):
    """The state cannot be kept: correct the value named in the message and save again."""

    reason_class = "invalid"

    def __init__(self, message: str | None = None, *, path: str = "") -> None:
        self.path = escaped(path)
        super().__init__(f"{path}: {message}" if path and message else message)


class InvalidOwner(ConversationStoreError, ValueError):
    """The user id names no user: pass a user, or the primary key of an existing one."""

    reason_class = "invalid_owner"


class ConversationNotFound(ConversationStoreError, LookupError):
    """There is no such conversation for this user: check the id and the user_id."""

    reason_class = "not_found"


class ConversationDeleted(ConversationNotFound):
    """The conversation was deleted, and its id is never used again: create a new conversation."""

    reason_class = "deleted"


class MessageNotFound(ConversationStoreError, LookupError):
    """The conversation has no such message: pass a key or a sequence that list_messages gives."""


class KeyReused(ConversationStoreError, ValueError):
    """This key belongs to a message with other content: choose a new key for every message."""


class StorageUnavailable(ConversationStoreError):
    """A store that may hold this conversation did not answer: try again, nothing was changed."""

    reason_class = "unanswered"


class UnreadableState(StorageUnavailable):
    """What legacy holds of this conversation is no state: repair it, then try again."""

    reason_class = "unreadable"

    def __init__(self, message: str | None = None, *, reason_class: str = "") -> None:
        self.reason_class = reason_class or self.reason_class
        super().__init__(message)


class SyncRefused(ConversationStoreError, LookupError):
    """There is no such run, or it is not in a state for this: see `conversations runs`."""


class ArchiveRefused(ConversationStoreError, ValueError):
    """The archive is not whole, or holds something else: nothing was removed."""


class DirectWriteRefused(ConversationStoreError, TypeError):
    """These models are for reading: write through conversations.storage."""
