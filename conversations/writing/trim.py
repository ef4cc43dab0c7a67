"""A save removes its conversation's overtaken blobs, if `KEEP_BLOBS` is set."""

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
    """Remove the legacy blobs that the new blob of `revision` has overtaken.

    One batch at most, under the conversation's lock. A failure leaves the blobs, and the save
    succeeds. Without the setting, no statement runs.
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
