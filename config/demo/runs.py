"""Runs of the demo on one database: which conversations are its own, and which ids are free.

An id is `demo-<run>-<name>`. Ids of deleted conversations are never used again, so that each
run needs a number of its own.
"""

from __future__ import annotations

import re
from itertools import count

from conversations.batches import conversation_ids
from conversations.models import ConversationTombstone
from conversations.storage import delete_conversation

_OWN = re.compile(r"demo-\d+-")


def foreign_conversation() -> str | None:
    """Return the id of a conversation that no demo made, if a store holds one."""
    return next((found for found in conversation_ids() if not _OWN.match(found)), None)


def remove_earlier() -> int:
    """Delete, for ever, what earlier runs left. Returns: how many conversations that were."""
    # All ids first: the batches are not to be walked over while they shrink.
    own = [found for found in conversation_ids() if _OWN.match(found)]
    return sum(delete_conversation(found) for found in own)


def free_prefix() -> str:
    """Return what the ids of this run begin with: `demo-1-` at the first one."""
    return next(
        prefix
        for prefix in (f"demo-{number}-" for number in count(1))
        if not ConversationTombstone.objects.filter(conversation_id__startswith=prefix).exists()
    )
