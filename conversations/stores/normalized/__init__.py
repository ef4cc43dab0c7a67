"""NormalizedStore: one row per conversation, per version of a message and per context item.

A save appends: n new messages write n rows and update the conversation's row. Messages that a save
drops or edits are superseded, never removed. All writes of one change carry one revision.
"""

from conversations.stores.normalized.append import Bumped
from conversations.stores.normalized.append_postgresql import append_at_once
from conversations.stores.normalized.append_sqlite import append_in_steps
from conversations.stores.normalized.bulk_create import FIRST_REVISION, Creation, create_all
from conversations.stores.normalized.contents import Content, content_sizes, contents_of
from conversations.stores.normalized.items import ItemRows, limited_items
from conversations.stores.normalized.load import (
    Head,
    Standing,
    load_at_once,
    load_owner,
    load_row_at_once,
)
from conversations.stores.normalized.messages import MessageRows
from conversations.stores.normalized.rows import (
    blocks_of,
    find_row,
    find_rows,
    find_rows_with_token,
    find_rows_with_token_between,
    find_rows_with_token_of,
    new_row,
    owned,
    owner_of,
    redactions_of,
    replaced,
)
from conversations.stores.normalized.store import NormalizedStore

__all__ = [
    "FIRST_REVISION",
    "Bumped",
    "Content",
    "Creation",
    "Head",
    "ItemRows",
    "MessageRows",
    "NormalizedStore",
    "Standing",
    "append_at_once",
    "append_in_steps",
    "blocks_of",
    "content_sizes",
    "contents_of",
    "create_all",
    "find_row",
    "find_rows",
    "find_rows_with_token",
    "find_rows_with_token_between",
    "find_rows_with_token_of",
    "limited_items",
    "load_at_once",
    "load_owner",
    "load_row_at_once",
    "new_row",
    "owned",
    "owner_of",
    "redactions_of",
    "replaced",
]
