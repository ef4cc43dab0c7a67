"""The change that each operation makes to a conversation. Pure: a view in, a change out.

A view shows a conversation as one store holds it. A change is written to the tables row by
row, and to legacy as the whole document that results.
"""

from conversations.content.changes.base import OWN_KEYS, Operation, RowsView, View
from conversations.content.changes.edit import (
    AppendMessages,
    Clear,
    EditMessages,
    removal,
    replacement,
    restoration,
)
from conversations.content.changes.save import SaveState

__all__ = [
    "OWN_KEYS",
    "AppendMessages",
    "Clear",
    "EditMessages",
    "Operation",
    "RowsView",
    "SaveState",
    "View",
    "removal",
    "replacement",
    "restoration",
]
