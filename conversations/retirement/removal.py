"""Giving legacy up, and removing its blobs: one conversation, one transaction, under its lock.

What makes each instant safe is the conversation's own row. A blob goes only while the tables
hold all that it holds (its token is as expected, and legacy is not ahead), and in the same
transaction the row stops saying that legacy holds anything. So a process that has not heard of
the retirement yet, or one that comes behind a crash, reads the tables. Removing is its own
cursor: whoever begins again goes on with what is left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from django.db import connections, transaction

from conversations import conf
from conversations.batches import failure
from conversations.exceptions import ArchiveRefused
from conversations.locking import deleted, lock
from conversations.models import ConversationState
from conversations.retirement import archives
from conversations.retirement.requirements import conditions, unchanged
from conversations.stores.base import LegacyStore
from conversations.stores.blobs import blobs, conversations_of_newest, keys_of, remove
from conversations.stores.chunks import ChunkStore
from conversations.stores.registry import configured_store
from conversations.transactions import translated
from flags import retirement, transitions
from flags.exceptions import TransitionRefused
from flags.gates import GateResult
from flags.switches import stored_retirement

logger = logging.getLogger("conversations")
PAGE = 500


@dataclass(frozen=True, slots=True)
class Holdings:
    """What legacy holds, and a retirement would remove: counts, and the bytes of the content.

    `unnamed` blobs are no conversation's, and stay. `removable` is False for a host's own
    table: nothing of it is ever removed.
    """

    removable: bool
    retired: bool
    conversations: int = 0
    blobs: int = 0
    content_bytes: int = 0
    metadata_rows: int = 0
    unnamed: int = 0


@dataclass(frozen=True, slots=True)
class Removed:
    """How many blobs of a conversation went; `reason` says why they stay."""

    conversation_id: str
    blobs: int
    reason: str = ""


def holdings() -> Holdings:
    """Return what a retirement would remove. Changes nothing; reads every page of the table.

    Raises: TransitionRefused without a legacy store.
    """
    legacy = _store()
    retired = transitions.status().retired
    if not isinstance(legacy, ChunkStore):
        return Holdings(removable=False, retired=retired)
    found = [0, 0, 0, 0]
    for blob in blobs():
        added = (1, blob.size, blob.metadata_rows, 0) if blob.named else (0, 0, 0, 1)
        found = [before + more for before, more in zip(found, added, strict=True)]
    names = sum(1 for _ in _conversations(legacy))
    return Holdings(True, retired, names, *found)


def finished() -> bool:
    """Whether legacy is retired, and nothing is left of what a retirement removes."""
    legacy = _store()
    left = isinstance(legacy, ChunkStore) and legacy.ids(limit=1)
    return transitions.status().retired and not left


def retire(
    *,
    archive: Path | None = None,
    waive: Mapping[str, str] | None = None,
    reason: str = "",
    actor: str = "",
    seconds: float | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[Removed]:
    """Give legacy up and remove its blobs; yield what became of each conversation.

    First the conditions are looked at; then the archive is written and read back; then the
    retirement is recorded, inside the fence; then blobs are removed, until `seconds` have
    passed. Called again it goes on: what is recorded is not recorded twice, an archive that is
    there is held against what is left. Of a host's own table nothing is removed.

    Raises: TransitionRefused (`results` says which condition), UnknownGate, FenceBusy,
    ArchiveRefused, OSError.
    """
    legacy = _store()
    ends = None if seconds is None else time.monotonic() + seconds
    if archive is not None and not isinstance(legacy, ChunkStore):
        raise ArchiveRefused(
            "nothing is removed from a host's own table, so nothing is archived: leave it out."
        )
    retired = transitions.status().retired
    mark = legacy.mark()
    results = [] if retired else conditions(waive, progress=progress)
    retirement.refuse_unless_holding(results)
    kept = None if archive is None else archives.archive(archive, progress)
    if not retired:
        evidence = {} if kept is None else {"archive": kept.path, "blobs": kept.blobs}
        done = GateResult("archive", True, "written and read back.", evidence=evidence)
        looked = [*results, *([] if kept is None else [done])]
        retirement.retire(
            lambda now: [*looked, *unchanged(now, mark, waive)], reason=reason, actor=actor
        )
    if isinstance(legacy, ChunkStore):
        yield from _removed(legacy, ends, last_key=None if kept is None else kept.last_key)


def _store() -> LegacyStore:
    legacy = configured_store()
    if legacy is None:
        raise TransitionRefused("CONVERSATIONS['LEGACY'] is not set: there is nothing to retire.")
    return legacy


def _removed(legacy: ChunkStore, ends: float | None, *, last_key: int | None) -> Iterator[Removed]:
    held_back = _held_back()
    stayed = False
    for conversation_id in _conversations(legacy):
        if ends is not None and time.monotonic() >= ends:
            return
        if conversation_id not in held_back:
            done = _remove_one(legacy, conversation_id, last_key)
            stayed = stayed or bool(done.reason)
            yield done
    for conversation_id in sorted(held_back):
        if stayed:
            yield Removed(conversation_id, 0, "it holds the newest blob, which goes last")
        else:
            yield _remove_one(legacy, conversation_id, last_key)


def _held_back() -> set[str]:
    """Return what goes last, or not while others stay.

    An adopted SQLite table gives the key of its newest row again once that row is gone, and a
    new blob must not get a key below which a row says that everything is known.
    """
    return conversations_of_newest() if connections[conf.alias()].vendor == "sqlite" else set()


def _conversations(legacy: LegacyStore) -> Iterator[str]:
    after = ""
    while page := legacy.ids(after=after, limit=PAGE):
        yield from page
        after = page[-1]


def _remove_one(legacy: ChunkStore, conversation_id: str, last_key: int | None) -> Removed:
    """Remove the blobs of one conversation, in a transaction of its own."""
    try:
        with translated(conversation_id), transaction.atomic(using=conf.alias()):
            row = lock(conversation_id)
            if not stored_retirement():
                # Legacy may be written, and old code may read it: nobody can take it back again
                # before this transaction ends.
                return Removed(conversation_id, 0, "legacy is no longer retired")
            # Before the truth is asked: what comes in between is not among them, and stays.
            keys = keys_of(conversation_id)
            problem = _problem(legacy, conversation_id, row, keys, last_key)
            if problem:
                return Removed(conversation_id, 0, problem)
            remove(keys)
            if row is not None:
                rows = ConversationState.rows.using(conf.alias()).filter(pk=row.pk)
                # Legacy holds nothing from now on; whatever comes is somebody else's.
                rows.update(legacy_revision=0, legacy_token="")
    except Exception as error:  # noqa: BLE001 - one that fails keeps no other from its turn
        return Removed(conversation_id, 0, failure(conversation_id, error))
    return Removed(conversation_id, len(keys))


def _problem(
    legacy: ChunkStore,
    conversation_id: str,
    row: ConversationState | None,
    keys: list[int],
    last_key: int | None,
) -> str:
    """Return why the blobs of a conversation must stay, or ""."""
    if row is None:
        return "" if deleted(conversation_id) else "only legacy holds it"
    known = row.legacy_token
    if row.legacy_revision > row.revision or legacy.token(conversation_id, known) != known:
        return "legacy holds what the tables do not: `conversations sync --to tables`"
    if last_key is not None and keys and keys[-1] > last_key:
        return "it was written behind the archive: name another file"
    return ""
