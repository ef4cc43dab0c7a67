"""The tables of conversations. Public for reading and joins; the storage functions write them."""

from conversations.models.reading import ReadingManager, ReadingQuerySet, in_pages
from conversations.models.runs import SyncBatch, SyncRun
from conversations.models.states import (
    DIGEST_BYTES,
    LEGACY_BEHIND,
    UNVERIFIED,
    ConversationConflict,
    ConversationMessage,
    ConversationMismatch,
    ConversationRedaction,
    ConversationState,
    ConversationTombstone,
)

__all__ = [
    "DIGEST_BYTES",
    "LEGACY_BEHIND",
    "UNVERIFIED",
    "ConversationConflict",
    "ConversationMessage",
    "ConversationMismatch",
    "ConversationRedaction",
    "ConversationState",
    "ConversationTombstone",
    "ReadingManager",
    "ReadingQuerySet",
    "SyncBatch",
    "SyncRun",
    "in_pages",
]
