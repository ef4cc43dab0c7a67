"""The stores that the settings name."""

from __future__ import annotations

from conversations import conf
from conversations.stores.base import LegacyStore
from conversations.stores.chunks import ChunkStore
from conversations.stores.jsonfield import JSONFieldStore


def legacy_store() -> LegacyStore | None:
    """Return the store to migrate from, or None for a team that has none."""
    configured = conf.legacy()
    if configured is None:
        return None
    if configured == conf.MEMORY_CHUNKS:
        return ChunkStore()
    return JSONFieldStore(configured)
