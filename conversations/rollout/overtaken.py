"""Remove overtaken blobs of every conversation: the work of a command.

Each save in the dual phases adds a blob to the chunk tables, and old code reads only the newest.
`stores.overtaken` lists the blobs that stay. A batch is one bounded transaction under its
conversation's lock. Removed blobs are gone, so a walk that begins anew continues with the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from conversations import conf
from conversations.exceptions import ConversationNotFound, SyncRefused
from conversations.models import ConversationState
from conversations.routing.ids import BATCH, failure, in_batches
from conversations.routing.locks import lock
from conversations.routing.standing import decide, in_transaction
from conversations.stores.base import LegacyStore
from conversations.stores.registry import configured_store
from conversations.stores.types import Pruned
from flags.connections import reconnecting


@dataclass(frozen=True, slots=True)
class PrunedBlobs:
    """How many blobs of a conversation were removed, and their bytes; `reason`: why it failed."""

    conversation_id: str
    blobs: int
    bytes: int
    reason: str = ""


@reconnecting
def prune_overtaken(
    ids: Iterable[str] | None = None,
    *,
    keep: int,
    dry_run: bool = False,
    until: Callable[[], bool] = lambda: False,
) -> Iterator[PrunedBlobs]:
    """Remove blobs that we wrote and that `keep` later ones overtook; yield the removed.

    Conversations come by primary key, and only those with a row in the tables: for all others,
    legacy holds the truth. The walk ends after a batch that removed blobs, if `until` says so. A
    conversation that fails is reported, and the next one is tried. With `dry_run`, nothing is
    removed.

    Raises: ConversationNotFound if there is no legacy store, SyncRefused if it is retired.
    """
    legacy = _store()
    for conversation_id in _crowded(legacy, ids, keep):
        blobs = size = 0
        reason, stopped = "", False
        behind: Any = None
        try:
            while not stopped:
                done = _prune_batch(legacy, conversation_id, keep, behind, dry_run=dry_run)
                blobs, size, behind = blobs + done.blobs, size + done.bytes, done.behind
                if behind is None:
                    break
                # A batch that removed nothing is no progress: the next walk would get no further.
                stopped = done.blobs > 0 and until()
        except Exception as error:  # noqa: BLE001 - a failure must not stop the others
            reason = failure(conversation_id, error)
        if blobs or reason:
            yield PrunedBlobs(conversation_id, blobs, size, reason)
        if stopped or (blobs and until()):
            return


def _store() -> LegacyStore:
    if configured_store() is None:
        raise ConversationNotFound(
            "there is no legacy store: CONVERSATIONS['LEGACY'] is not set, so there are no blobs."
        )
    legacy = decide().legacy
    if legacy is None:
        raise SyncRefused(
            "legacy is retired: `conversations retire-legacy` removes the rest of it."
        )
    return legacy


def _crowded(legacy: LegacyStore, ids: Iterable[str] | None, keep: int) -> Iterator[str]:
    """Yield the conversations that may have more than `keep` blobs."""
    rows = ConversationState.rows.using(conf.alias())
    walk = in_batches(rows) if ids is None else iter(dict.fromkeys(ids))
    while page := list(islice(walk, BATCH)):
        yield from legacy.crowded(page, keep=keep)


def _prune_batch(
    legacy: LegacyStore, conversation_id: str, keep: int, behind: Any, *, dry_run: bool
) -> Pruned:
    if dry_run:
        rows = ConversationState.rows.using(conf.alias())
        row = rows.filter(conversation_id=conversation_id).first()
        return _pruned(legacy, row, keep, behind, dry_run=True)
    with in_transaction(conversation_id):
        return _pruned(legacy, lock(conversation_id), keep, behind, dry_run=False)


def _pruned(
    legacy: LegacyStore,
    row: ConversationState | None,
    keep: int,
    behind: Any,
    *,
    dry_run: bool,
) -> Pruned:
    if row is None:
        return Pruned()
    return legacy.prune(
        row.conversation_id, keep=keep, needed=row.legacy_revision, behind=behind, dry_run=dry_run
    )
