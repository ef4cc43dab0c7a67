"""Runs of the demo on one database: its own conversations, and its free ids.

An id is `demo-<run>-<name>`. Ids of deleted conversations are never used again, so each run needs
a number of its own.
"""

from __future__ import annotations

import re
from itertools import count

from conversations.models import ConversationTombstone
from conversations.routing.ids import conversation_ids
from conversations.storage import delete_conversation

_OWN = re.compile(r"demo-\d+-")


def foreign_conversation() -> str | None:
    """Return the id of a conversation that no demo made, if a store holds one."""
    return next((found for found in conversation_ids() if not _OWN.match(found)), None)


def remove_earlier() -> int:
    """Delete the conversations of earlier runs permanently. Returns: their number."""
    # All ids first, because the batches shrink during the deletion.
    own = [found for found in conversation_ids() if _OWN.match(found)]
    return sum(delete_conversation(found) for found in own)


def free_prefix() -> str:
    """Return the prefix of this run's ids: `demo-1-` for the first run."""
    return next(
        prefix
        for prefix in (f"demo-{number}-" for number in count(1))
        if not ConversationTombstone.objects.filter(conversation_id__startswith=prefix).exists()
    )
