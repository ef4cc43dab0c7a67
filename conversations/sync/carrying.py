"""Carrying one conversation over: to the tables, or to legacy.

One conversation is one transaction under its lock, and carried over by the same code as a
write of the phase that would do it. A second run finds nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from django.db import transaction

from conversations import conf
from conversations.batches import conversation_ids, failure
from conversations.exceptions import (
    ConversationNotFound,
    ConversationStoreError,
    StorageUnavailable,
    SyncRefused,
    UnreadableState,
)
from conversations.forking import touch
from conversations.locking import deleted, lock
from conversations.models import ConversationState
from conversations.operations import write
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import NormalizedStore, owner_of
from conversations.stores.registry import configured_store, legacy_store
from conversations.transactions import translated
from conversations.truth import Numbers, Truth, verdict
from flags.phases import PLANS, Phase


class Target(StrEnum):
    """The store that a sync brings to the truth."""

    TABLES = "tables"
    LEGACY = "legacy"


class Action(StrEnum):
    """What a sync did with one conversation."""

    UNCHANGED = "unchanged"
    # The tables did not know it: its blob was taken in.
    TAKEN_IN = "taken in"
    # Somebody else had written into legacy: that was merged into the tables.
    MERGED = "merged"
    # Legacy was ahead: the tables became exactly what it holds.
    CAUGHT_UP = "caught up"
    # The tables were ahead, or legacy's blob had vanished: legacy got the whole document.
    WRITTEN_TO_LEGACY = "written to legacy"
    # It was deleted, and legacy held a late write of it: that was removed.
    ERASED = "erased"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Synced:
    """What became of one conversation; `reason` says why it failed, `reason_class` in a slug.

    `unanswered` says that a store did not answer: it may work the next time.
    """

    conversation_id: str
    action: Action
    reason: str = ""
    unanswered: bool = False
    reason_class: str = ""


ACTIONS = {
    Truth.MERGE: Action.MERGED,
    Truth.LEGACY: Action.CAUGHT_UP,
    Truth.NORMALIZED: Action.WRITTEN_TO_LEGACY,
    Truth.BOTH: Action.WRITTEN_TO_LEGACY,
}


def sync(
    to: Target | str,
    ids: Iterable[str] | None = None,
    *,
    dry_run: bool = False,
) -> Iterator[Synced]:
    """Bring the tables, or legacy, to the truth; yield what became of each conversation.

    To the tables: what they do not know is taken in, what others wrote into legacy is merged,
    what legacy has ahead replaces theirs. To legacy: the same, and then legacy gets what the
    tables have ahead; what legacy alone holds stays there. A deleted conversation stays
    deleted: what legacy still holds of it goes. A conversation that fails is left as it was
    (`Action.FAILED`), and the next one is tried.

    With `dry_run` nothing is written; what is yielded is what would be done.

    Raises: ConversationNotFound when there is no legacy store to sync with.
    """
    legacy = the_legacy_store(to)
    for conversation_id in conversation_ids(ids):
        yield carry(legacy, Target(to), conversation_id, dry_run=dry_run)


def the_legacy_store(to: Target | str = Target.TABLES) -> LegacyStore:
    """Return the store to sync with.

    Raises: ConversationNotFound when there is none, SyncRefused when it is retired: what old
    code wrote into it since may still be taken from there, and nothing is brought there.
    """
    legacy = configured_store()
    if to == Target.LEGACY and legacy is not None and legacy_store() is None:
        raise SyncRefused("legacy is retired: `conversations restore-legacy` comes first.")
    if legacy is None:
        raise ConversationNotFound(
            "there is no legacy store: CONVERSATIONS['LEGACY'] is not set, so there is nothing"
            " to sync."
        )
    return legacy


def carry(
    legacy: LegacyStore, target: Target, conversation_id: str, *, dry_run: bool = False
) -> Synced:
    """Bring one conversation to the truth in a transaction, or a savepoint, of its own."""
    try:
        with translated(conversation_id), transaction.atomic(using=conf.alias()):
            action = _sync_one(legacy, target, conversation_id, dry_run=dry_run)
    except Exception as error:  # noqa: BLE001 - a host's functions may raise anything
        unanswered = isinstance(error, StorageUnavailable) and not isinstance(
            error, UnreadableState
        )
        reason = failure(conversation_id, error)
        kind = error.reason_class if isinstance(error, ConversationStoreError) else "error"
        return Synced(
            conversation_id, Action.FAILED, reason, unanswered=unanswered, reason_class=kind
        )
    return Synced(conversation_id, action)


def _sync_one(
    legacy: LegacyStore, target: Target, conversation_id: str, *, dry_run: bool
) -> Action:
    row = lock(conversation_id)
    if row is None:
        return _without_row(legacy, target, conversation_id, dry_run=dry_run)
    known = row.legacy_token
    matches = legacy.token(conversation_id, known) == known
    truth = verdict(Numbers(row.revision, row.legacy_revision), token_matches=matches)
    if _needless(legacy, target, conversation_id, truth):
        return Action.UNCHANGED
    if not dry_run:
        if truth in (Truth.MERGE, Truth.LEGACY):
            row = _take_in(conversation_id)
        if target == Target.LEGACY:
            _write_legacy(legacy, row)
    return ACTIONS[truth]


def _needless(legacy: LegacyStore, target: Target, conversation_id: str, truth: Truth) -> bool:
    if target == Target.TABLES:
        return truth in (Truth.BOTH, Truth.NORMALIZED)
    # A blob may have vanished although the numbers are equal: then legacy gets a new one.
    return truth == Truth.LEGACY or (truth == Truth.BOTH and legacy.owner(conversation_id)[0])


def _without_row(
    legacy: LegacyStore, target: Target, conversation_id: str, *, dry_run: bool
) -> Action:
    """Take in what the tables do not know, unless it was deleted."""
    held, _owner = legacy.owner(conversation_id)
    if deleted(conversation_id):
        if held and not dry_run:
            legacy.delete(conversation_id)
        return Action.ERASED if held else Action.UNCHANGED
    if not held:
        raise ConversationNotFound
    if target == Target.TABLES and not dry_run:
        _take_in(conversation_id)
    return Action.TAKEN_IN if target == Target.TABLES else Action.UNCHANGED


def _take_in(conversation_id: str) -> ConversationState:
    """Bring the tables to the truth, as a write in new_only does before anything else."""
    row = write(conversation_id, touch(), owner=None, plan=PLANS[Phase.NEW_ONLY]).row
    assert row is not None
    return row


def _write_legacy(legacy: LegacyStore, row: ConversationState) -> None:
    """Write the whole document to legacy, and give both stores the row's next number."""
    numbers = Numbers(row.revision, row.legacy_revision)
    if numbers.revision == numbers.legacy_revision and legacy.owner(row.conversation_id)[0]:
        return
    token = legacy.save(
        row.conversation_id,
        NormalizedStore().document(row),
        owner=owner_of(row),
        revision=numbers.next,
        known=row.legacy_token,
    )
    _update(row, revision=numbers.next, legacy_revision=numbers.next, legacy_token=token)


def _update(row: ConversationState, **columns: object) -> None:
    for name, value in columns.items():
        setattr(row, name, value)
    ConversationState.rows.using(conf.alias()).filter(pk=row.pk).update(**columns)
