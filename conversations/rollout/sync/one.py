"""Carry one conversation over: to the tables, or to legacy.

One conversation is one transaction under its lock. The code is the same as that of a write in the
matching phase. A second run finds nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from conversations import conf
from conversations.content.codec import SHORT, storable
from conversations.exceptions import (
    ConversationNotFound,
    ConversationStoreError,
    InvalidState,
    StorageUnavailable,
    SyncRefused,
    UnreadableState,
)
from conversations.models import ConversationState
from conversations.routing.ids import conversation_ids, failure
from conversations.routing.locks import deleted, lock
from conversations.routing.standing import Decision, decide, in_transaction, truth_by_token
from conversations.routing.truth import Numbers, Truth
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import NormalizedStore, owner_of
from conversations.stores.registry import configured_store
from conversations.writing.fork import touch
from conversations.writing.ingest import check_takable
from conversations.writing.trim import trim
from conversations.writing.write import write


class Target(StrEnum):
    """The store that a sync brings to the truth."""

    TABLES = "tables"
    LEGACY = "legacy"


class Action(StrEnum):
    """The action of a sync on one conversation."""

    UNCHANGED = "unchanged"
    # The tables did not know it: its blob was ingested.
    TAKEN_IN = "taken in"
    # Others had written into legacy: their write was merged into the tables.
    MERGED = "merged"
    # Legacy was ahead: the tables got exactly its content.
    CAUGHT_UP = "caught up"
    # The tables were ahead, or legacy's blob had vanished: legacy got the whole document.
    WRITTEN_TO_LEGACY = "written to legacy"
    # It was deleted, and legacy held a late write of it, which was removed.
    ERASED = "erased"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Synced:
    """The result of one conversation; `reason` says why it failed, `reason_class` as a slug.

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
    """Bring the tables, or legacy, to the truth; yield the result of each conversation.

    To the tables: unknown conversations are ingested, writes of others in legacy are merged, and
    content that legacy has ahead replaces that of the tables. To legacy: the same, and then legacy
    gets the content that the tables have ahead; conversations that only legacy holds stay there. A
    deleted conversation stays deleted: legacy's rest of it is removed. A conversation that fails
    stays as it was (`Action.FAILED`), and the next one is tried.

    With `dry_run` nothing is written; the yielded results are those of a real sync.

    Raises: ConversationNotFound if there is no legacy store to sync with.
    """
    legacy = the_legacy_store(to)
    for conversation_id in conversation_ids(ids):
        yield carry(legacy, Target(to), conversation_id, dry_run=dry_run)


def the_legacy_store(to: Target | str = Target.TABLES) -> LegacyStore:
    """Return the store to sync with.

    Raises: ConversationNotFound if there is none. SyncRefused for a sync to a retired one: late
    writes of old code may still be taken from it, but nothing is written to it.
    """
    legacy = configured_store()
    if to == Target.LEGACY and legacy is not None and decide().legacy is None:
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
        with in_transaction(conversation_id) as decision:
            action = _sync_one(legacy, target, conversation_id, decision, dry_run=dry_run)
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


def fits(conversation_id: str) -> bool:
    """Whether the tables can hold this id: legacy's ids may be longer, or empty.

    No load accepts another id, so such a conversation would be out of reach in the tables.
    """
    return 0 < len(conversation_id) <= SHORT and storable(conversation_id)


def _sync_one(
    legacy: LegacyStore,
    target: Target,
    conversation_id: str,
    decision: Decision,
    *,
    dry_run: bool,
) -> Action:
    row = lock(conversation_id)
    if row is None:
        return _without_row(legacy, target, conversation_id, decision, dry_run=dry_run)
    truth = truth_by_token(row, legacy)
    if _needless(legacy, target, conversation_id, truth):
        return Action.UNCHANGED
    newer = truth in (Truth.MERGE, Truth.LEGACY)
    if dry_run and newer:
        # An unreadable blob must fail here too.
        check_takable(legacy, row, foreign=truth == Truth.MERGE)
    elif newer:
        row = _take_in(conversation_id, decision)
    if target == Target.LEGACY and not dry_run:
        _write_legacy(legacy, row)
    return ACTIONS[truth]


def _needless(legacy: LegacyStore, target: Target, conversation_id: str, truth: Truth) -> bool:
    if target == Target.TABLES:
        return truth in (Truth.BOTH, Truth.NORMALIZED)
    # A blob may have vanished although the numbers are equal: then legacy gets a new one.
    return truth == Truth.LEGACY or (truth == Truth.BOTH and legacy.owner(conversation_id)[0])


def _without_row(
    legacy: LegacyStore,
    target: Target,
    conversation_id: str,
    decision: Decision,
    *,
    dry_run: bool,
) -> Action:
    """Ingest a conversation that the tables do not know, unless it was deleted."""
    held, _owner = legacy.owner(conversation_id)
    if deleted(conversation_id):
        if held and not dry_run:
            legacy.delete(conversation_id)
        return Action.ERASED if held else Action.UNCHANGED
    if not held:
        raise ConversationNotFound
    if target == Target.TABLES:
        if not fits(conversation_id):
            raise InvalidState(
                f"must have 1 to {SHORT} characters, without NUL and lone surrogates",
                path="conversation_id",
            )
        if dry_run:
            # An unreadable blob must fail here too.
            legacy.load(conversation_id)
        else:
            _take_in(conversation_id, decision)
    return Action.TAKEN_IN if target == Target.TABLES else Action.UNCHANGED


def _take_in(conversation_id: str, decision: Decision) -> ConversationState:
    """Bring the tables to the truth, as a write in new_only does before anything else."""
    row = write(conversation_id, touch(), owner=None, decision=decision.carrying()).row
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
    trim(legacy, row.conversation_id, revision=numbers.next)
    _update(row, revision=numbers.next, legacy_revision=numbers.next, legacy_token=token)


def _update(row: ConversationState, **columns: object) -> None:
    for name, value in columns.items():
        setattr(row, name, value)
    ConversationState.rows.using(conf.alias()).filter(pk=row.pk).update(**columns)
