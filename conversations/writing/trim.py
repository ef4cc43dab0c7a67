"""What a save removes: its conversation's overtaken blobs, where `KEEP_BLOBS` says so."""

from __future__ import annotations

import logging

from django.db import Error

from conversations import conf
from conversations.routing.transactions import attempt, lost
from conversations.stores.base import LegacyStore
from flags.schema import named
from flags.texts import shown

logger = logging.getLogger("conversations")


def trim(legacy: LegacyStore, conversation_id: str, *, revision: int) -> None:
    """Remove what a blob that was just written, at `revision`, has overtaken in legacy.

    One batch at most, under the conversation's lock. What cannot be removed stays, and fails no
    save. Without the setting nothing is asked.
    """
    keep = conf.get("KEEP_BLOBS")
    if keep is None:
        return
    try:
        with attempt():
            legacy.prune(conversation_id, keep=keep, needed=revision, measured=False)
    except Error as error:
        if lost(conf.alias()):
            raise
        logger.warning(
            "conversation %s: its overtaken blobs stay (%s)",
            shown(conversation_id),
            named(error),
        )
