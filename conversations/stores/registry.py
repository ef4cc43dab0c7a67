"""The stores that the settings name."""

from __future__ import annotations

from conversations import conf
from conversations.stores.base import LegacyStore
from conversations.stores.chunks import ChunkStore
from conversations.stores.jsonfield import JSONFieldStore
from flags.conf import read_once
from flags.switches import legacy_is_retired


def legacy_store() -> LegacyStore | None:
    """Return the store to migrate from; None for a team that has none, or has retired it."""
    store = configured_store()
    return None if store is None or legacy_is_retired() else store


@read_once
def configured_store() -> LegacyStore | None:
    """Return the store that the settings name, retired or not; None where they name none.

    For what has to look there although no load does: deletions, redactions, verification and
    syncs, which find what old code wrote behind a retirement.
    """
    configured = conf.legacy()
    if configured is None:
        return None
    if configured == conf.MEMORY_CHUNKS:
        return ChunkStore()
    return JSONFieldStore(configured)
