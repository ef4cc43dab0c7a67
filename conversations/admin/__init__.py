"""The admin of conversations: for reading, and for deleting through the public API."""

from conversations.admin.records import (
    ConflictAdmin,
    MessageAdmin,
    MismatchAdmin,
    RedactionAdmin,
    TombstoneAdmin,
)
from conversations.admin.states import ConversationAdmin

__all__ = [
    "ConflictAdmin",
    "ConversationAdmin",
    "MessageAdmin",
    "MismatchAdmin",
    "RedactionAdmin",
    "TombstoneAdmin",
]
