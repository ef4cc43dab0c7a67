"""NormalizedStore: one row per conversation, per version of a message and per context item.

A save appends: n new messages write n rows and update the conversation's row. What a save
drops or edits is superseded, never removed. All writes of one change carry one revision.
"""

from conversations.stores.normalized.adding import Addition, At, Bumped
from conversations.stores.normalized.adding_at_once import append_at_once
from conversations.stores.normalized.adding_in_steps import append_in_steps
from conversations.stores.normalized.creating import FIRST_REVISION, Creation, create_all
from conversations.stores.normalized.items import ItemRows, limited_items
from conversations.stores.normalized.loading import Head, load_at_once, load_row_at_once
from conversations.stores.normalized.messages import MessageRows
from conversations.stores.normalized.rows import (
    Change,
    found_row,
    new_row,
    owned,
    owner_of,
    probed_between,
    probed_named,
    probed_rows,
    replaced,
)
from conversations.stores.normalized.store import NormalizedStore

__all__ = [
    "FIRST_REVISION",
    "Addition",
    "At",
    "Bumped",
    "Change",
    "Creation",
    "Head",
    "ItemRows",
    "MessageRows",
    "NormalizedStore",
    "append_at_once",
    "append_in_steps",
    "create_all",
    "found_row",
    "limited_items",
    "load_at_once",
    "load_row_at_once",
    "new_row",
    "owned",
    "owner_of",
    "probed_between",
    "probed_named",
    "probed_rows",
    "replaced",
]
