"""What each operation changes in a conversation. Pure: a view in, a change out.

A view shows a conversation as one store holds it. A change is written to the tables row by
row, and to legacy as the whole document that results.
"""

from conversations.changes.editing import (
    AppendMessages,
    Clear,
    EditMessages,
    removal,
    replacement,
    restoration,
)
from conversations.changes.protocols import OWN_KEYS, Operation, View
from conversations.changes.saving import SaveState

__all__ = [
    "OWN_KEYS",
    "AppendMessages",
    "Clear",
    "EditMessages",
    "Operation",
    "SaveState",
    "View",
    "removal",
    "replacement",
    "restoration",
]
