"""Give legacy up and remove its blobs: one conversation, one transaction, under its lock.

The conversation's own row makes each instant safe. A blob is removed only while the tables hold
its whole content: its token is as expected, and legacy is not ahead. The same transaction clears
the row's mark that legacy holds anything. So the tables are read by a process that does not know
of the retirement yet, and after a crash. Removing needs no other cursor: a second run continues
with the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from django.db import connections

from conversations import conf
from conversations.exceptions import ArchiveRefused
from conversations.models import ConversationState
from conversations.rollout.retirement import archives
from conversations.rollout.retirement.requirements import conditions, unchanged
from conversations.routing.ids import failure
from conversations.routing.locks import deleted, lock
from conversations.routing.standing import in_transaction
from conversations.stores.base import LegacyStore
from conversations.stores.chunks.archive_rows import blobs, conversations_of_newest, keys_of, remove
from conversations.stores.registry import configured_store
from flags import retirement, transitions
from flags.connections import reconnecting
from flags.exceptions import TransitionRefused
from flags.gates import GateResult
from flags.switches import read_retirement

logger = logging.getLogger("conversations")
PAGE = 500


@dataclass(frozen=True, slots=True)
class Holdings:
    """The content of legacy that a retirement would remove: counts, and bytes of content.

    `unnamed` blobs belong to no conversation, and stay. `removable` is False for a host's own
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
    """How many blobs of a conversation were removed; `reason` says why they stay."""

    conversation_id: str
    blobs: int
    reason: str = ""


@reconnecting
def holdings() -> Holdings:
    """Return how much a retirement would remove. Changes nothing; reads every page of the table.

    Raises: TransitionRefused without a legacy store.
    """
    legacy = _store()
    retired = transitions.status().retired
    if not legacy.removable:
        return Holdings(removable=False, retired=retired)
    found = [0, 0, 0, 0]
    for blob in blobs():
        added = (1, blob.size, blob.metadata_rows, 0) if blob.named else (0, 0, 0, 1)
        found = [before + more for before, more in zip(found, added, strict=True)]
    names = sum(1 for _ in _conversations(legacy))
    return Holdings(True, retired, names, *found)


@reconnecting
def finished() -> bool:
    """Whether legacy is retired, and a retirement has nothing left to remove."""
    legacy = _store()
    left = legacy.removable and legacy.ids(limit=1)
    return transitions.status().retired and not left


@reconnecting
def retire(
    *,
    archive: Path | None = None,
    waive: Mapping[str, str] | None = None,
    reason: str = "",
    actor: str = "",
    seconds: float | None = None,
    least: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[Removed]:
    """Give legacy up and remove its blobs; yield the result of each conversation.

    First the conditions are checked. Then the archive is written and read back, and the retirement
    is recorded, inside the fence. Then blobs are removed, until `seconds` have passed, but of
    `least` conversations in any case. A second call continues: a record is not made twice, and an
    existing archive is compared with the remaining blobs. From a host's own table, nothing is
    removed.

    Raises: TransitionRefused (`results` says which condition), UnknownGate, FenceBusy,
    ArchiveRefused, OSError.
    """
    legacy = _store()
    ends = None if seconds is None else time.monotonic() + seconds
    if archive is not None and not legacy.removable:
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
    if legacy.removable:
        last_key = None if kept is None else kept.last_key
        yield from _remove_all(legacy, ends, least=least, last_key=last_key)


def _store() -> LegacyStore:
    legacy = configured_store()
    if legacy is None:
        raise TransitionRefused("CONVERSATIONS['LEGACY'] is not set: there is nothing to retire.")
    return legacy


def _remove_all(
    legacy: LegacyStore, ends: float | None, *, least: int, last_key: int | None
) -> Iterator[Removed]:
    held_back = _held_back()
    stayed = False
    for number, conversation_id in enumerate(_conversations(legacy)):
        if number >= least and ends is not None and time.monotonic() >= ends:
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
    """Return the conversations that are removed last, or not while others stay.

    An adopted SQLite table gives the key of its newest row again after that row is removed. A new
    blob must not get a key below which a row says that everything is known.
    """
    return conversations_of_newest() if connections[conf.alias()].vendor == "sqlite" else set()


def _conversations(legacy: LegacyStore) -> Iterator[str]:
    after = ""
    while page := legacy.ids(after=after, limit=PAGE):
        yield from page
        after = page[-1]


def _remove_one(legacy: LegacyStore, conversation_id: str, last_key: int | None) -> Removed:
    """Remove the blobs of one conversation, in a transaction of its own."""
    try:
        with in_transaction(conversation_id):
            row = lock(conversation_id)
            if not read_retirement():
                # Legacy may be written, and old code may read it. The lock keeps anyone from
                # taking legacy back before this transaction ends.
                return Removed(conversation_id, 0, "legacy is no longer retired")
            # Before the truth is asked: later blobs are not among these keys, and stay.
            keys = keys_of(conversation_id)
            problem = _problem(legacy, conversation_id, row, keys, last_key)
            if problem:
                return Removed(conversation_id, 0, problem)
            remove(keys)
            if row is not None:
                rows = ConversationState.rows.using(conf.alias()).filter(pk=row.pk)
                # Legacy holds nothing from now on; any later blob is a write of others.
                rows.update(legacy_revision=0, legacy_token="")
    except Exception as error:  # noqa: BLE001 - a failure must not stop the others
        return Removed(conversation_id, 0, failure(conversation_id, error))
    return Removed(conversation_id, len(keys))


def _problem(
    legacy: LegacyStore,
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
        return "legacy holds content that the tables lack: `conversations sync --to tables`"
    if last_key is not None and keys and keys[-1] > last_key:
        return "it was written behind the archive: name another file"
    return ""
