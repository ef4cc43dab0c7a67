"""The one place that opens transactions: every write and every load of one conversation.

A write takes the lock, finds the truth, brings the tables to it, and then writes the stores of
the phase in one transaction. Each leg that may fail without failing the write runs in a
savepoint of its own.
"""

from __future__ import annotations

import copy
import logging
from contextlib import nullcontext
from dataclasses import InitVar, dataclass, field
from datetime import datetime
from time import perf_counter

from django.db import Error, IntegrityError, connections, transaction
from django.utils import timezone

from conversations import conf, redactions
from conversations.additions import added
from conversations.changes import Operation
from conversations.documents import Document
from conversations.exceptions import (
    ConversationDeleted,
    ConversationNotFound,
    InvalidOwner,
    InvalidState,
    StorageUnavailable,
    UnreadableState,
)
from conversations.foreign import merge, record_overwritten, restored, take_legacy
from conversations.locking import deleted, lock, lock_id, probed
from conversations.models import ConversationState
from conversations.owners import check_owner, owner_columns, user_exists
from conversations.routing import may_write_legacy_blindly, plan_for
from conversations.stores.base import LegacyStore, Stored
from conversations.stores.normalized import Bumped, Change, NormalizedStore, new_row, owner_of
from conversations.stores.registry import configured_store, legacy_store
from conversations.transactions import attempt, lost, lost_connection, translated
from conversations.truth import Numbers, Truth, verdict
from conversations.views import LegacyView, TablesView, changed_document
from flags import metrics
from flags.phases import Phase, Plan, StoreName

logger = logging.getLogger("conversations")


@dataclass(slots=True)
class Outcome:
    """What a write did: the conversation's number after it, and the stores that took it."""

    revision: int
    stores: list[str]
    fallback: bool = False
    row: ConversationState | None = None
    changed: bool = True
    # In place of the row, where that was not read.
    bumped: Bumped | None = None


class LegacyDown(Exception):
    """Legacy could not be asked in the statement that takes the lock; ask without it."""


def write(
    conversation_id: str, operation: Operation, *, owner: str | None, plan: Plan | None = None
) -> Outcome:
    """Carry out one operation, in the stores of the phase (or of `plan`), from the truth.

    Raises: ConversationNotFound, ConversationDeleted, StorageUnavailable, and what the
    operation raises.
    """
    connection = connections[conf.alias()]
    with translated(conversation_id, connection):
        bumped = None
        if plan is None:
            bumped = added(connection, conversation_id, operation, owner=owner)
        if bumped is not None:
            return Outcome(bumped.revision, [StoreName.NORMALIZED], bumped=bumped)
        for ask_legacy in (True, False):
            try:
                with transaction.atomic(using=conf.alias()):
                    attempted = _Write(conversation_id, operation, owner, plan)
                    return attempted.run(ask_legacy=ask_legacy)
            except LegacyDown:
                continue
    raise AssertionError("unreachable")


@dataclass(slots=True)
class _Write:
    """One attempt at one write, inside its transaction."""

    conversation_id: str
    operation: Operation
    owner: str | None
    chosen: InitVar[Plan | None]
    legacy: LegacyStore | None = field(init=False)
    tables: NormalizedStore = field(default_factory=NormalizedStore)
    now: datetime = field(default_factory=timezone.now)
    row: ConversationState | None = None
    stored: Stored | None = None
    # What of legacy was there when `stored` was read.
    seen: str = ""
    truth: Truth = Truth.LEGACY
    legacy_down: bool = False
    # Whether the tables said whether there is a row.
    found: bool = False
    plan: Plan = field(init=False)

    def __post_init__(self, chosen: Plan | None) -> None:
        # Whoever names a plan carries conversations over, from a retired legacy as well.
        self.legacy = legacy_store() if chosen is None else configured_store()
        self.plan = chosen or plan_for(self.conversation_id, has_legacy=self.legacy is not None)

    def run(self, *, ask_legacy: bool) -> Outcome:
        blind = self.legacy is not None and may_write_legacy_blindly(self.plan)
        try:
            with attempt() if blind else nullcontext():
                self._find_truth(ask_legacy=ask_legacy)
        except Error:
            # Blindly only where the row did not answer: what legacy refused, it refuses again.
            if self.found or lost(conf.alias()) or not blind or self.operation.needs_rows:
                raise
            return self._write_blindly()
        if not (self.plan.writes_normalized or self.operation.needs_rows):
            return self._write_legacy()
        if not self._legacy_may_take_over():
            return self._write_tables()
        row = copy.copy(self.row)
        try:
            with attempt():
                return self._write_tables()
        except (Error, UnreadableState) as error:
            if lost(conf.alias()):
                raise
            logger.warning(
                "conversation %s: the tables did not take a write (%s); it goes to legacy",
                self.conversation_id,
                type(error).__name__,
            )
        metrics.observe("leg", StoreName.NORMALIZED, None, error=True)
        self.row = row
        return self._write_legacy(fallback=self.plan.decides != StoreName.LEGACY)

    # Finding the truth

    def _find_truth(self, *, ask_legacy: bool) -> None:
        """Lock the conversation, and find out which store holds its latest content."""
        only_tables = self.plan.phase == Phase.NEW_ONLY
        probe = None
        if self.legacy is not None and only_tables and ask_legacy:
            probe = self.legacy.probe()
        try:
            self.row = lock(self.conversation_id, probe=probe)
        except Error as error:
            if probe is None or lost_connection():
                raise
            raise LegacyDown from error
        if self.row is None and deleted(self.conversation_id):
            raise ConversationDeleted
        self.found = True
        if self.row is None:
            if self.legacy is not None:
                self.seen = self.legacy.survey(self.conversation_id, "")
                self.stored = self.legacy.load(self.conversation_id)
            return
        matches = True
        if self.legacy is not None:
            known = self.row.legacy_token
            if probe is not None:
                matches = self.legacy.judge(probed(self.row), known) == known
            elif only_tables:
                self.legacy_down = True
            else:
                matches = self._token() == known
        numbers = Numbers(self.row.revision, self.row.legacy_revision)
        self.truth = verdict(numbers, token_matches=matches)
        if self.legacy is None and self.truth == Truth.LEGACY:
            # A row decides, also against a retirement that its writer had not heard of.
            self.legacy = configured_store()
            if self.legacy is not None:
                self._find_truth(ask_legacy=ask_legacy)
                return
        if self.legacy is None and self.truth != Truth.MERGE:
            self.truth = Truth.NORMALIZED
        if self.legacy_down and self.truth == Truth.LEGACY:
            raise StorageUnavailable

    def _token(self) -> str:
        """Return legacy's token now; a legacy that does not answer looks as it did last."""
        assert self.legacy is not None
        assert self.row is not None
        try:
            with attempt():
                return self.legacy.token(self.conversation_id, self.row.legacy_token)
        except Error as error:
            if lost(conf.alias()) or self.plan.phase == Phase.LEGACY:
                raise
            logger.warning(
                "conversation %s: legacy did not answer (%s)",
                self.conversation_id,
                type(error).__name__,
            )
            self.legacy_down = True
            return self.row.legacy_token

    def _legacy_may_take_over(self) -> bool:
        """Whether legacy is current, so that a save may go there when the tables fail."""
        return (
            self.legacy is not None
            and self.plan.writes_legacy
            and not self.legacy_down
            and not self.operation.needs_rows
            and self.truth in (Truth.LEGACY, Truth.BOTH)
        )

    def _check_without_row(self) -> None:
        """Check the owner of what legacy holds, or that the operation may create."""
        if self.stored is not None:
            check_owner(self.owner, actual=self.stored.owner)
        elif not self.operation.creates:
            raise ConversationNotFound
        elif self.owner is not None and not user_exists(self.owner):
            raise InvalidOwner(f"there is no user {self.owner}.")

    # Writing the tables, and legacy beside them

    def _write_tables(self) -> Outcome:
        row = self._row_at_truth()
        known = redactions.of(row)
        self.operation.redact(known)
        values = self.operation.needs_values or self.plan.writes_legacy
        view = TablesView(self.tables, row, values=values)
        change = self.operation.apply(view)
        numbers = Numbers(row.revision, row.legacy_revision)
        beside = self.legacy is not None and self.plan.writes_legacy
        if row.pk is not None and change.nothing:
            if not beside or numbers.revision == numbers.legacy_revision:
                return Outcome(row.revision, [StoreName.NORMALIZED], row=row, changed=False)
        stores = [StoreName.NORMALIZED.value]
        if beside and self._write_legacy_leg(row, view, change, revision=numbers.next):
            stores.append(StoreName.LEGACY.value)
        fallback = beside and len(stores) == 1 and self.plan.decides == StoreName.LEGACY
        if fallback and self.plan.phase == Phase.LEGACY:
            raise StorageUnavailable
        self.tables.write(row, change, revision=numbers.next, now=self.now)
        record_overwritten(row, getattr(self.operation, "overwritten", ()), now=self.now)
        return Outcome(numbers.next, stores, fallback=fallback, row=row)

    def _row_at_truth(self) -> ConversationState:
        """Return the row, after the tables have taken in whatever only legacy holds."""
        row, legacy = self.row, self.legacy
        if row is None:
            self._check_without_row()
            return self._new_row()
        if self.truth != Truth.MERGE or owner_of(row) is not None:
            check_owner(self.owner, actual=owner_of(row))
        if legacy is not None and self.truth == Truth.MERGE:
            merge(self.tables, legacy, row, now=self.now)
            # What was nobody's may be somebody's now.
            check_owner(self.owner, actual=owner_of(row))
            # A merge that only found its blobs unusable may leave legacy the truth.
            numbers = Numbers(row.revision, row.legacy_revision)
            self.truth = verdict(numbers, token_matches=True)
        if legacy is not None and self.truth == Truth.LEGACY:
            take_legacy(self.tables, legacy, row, now=self.now)
        return row

    def _new_row(self) -> ConversationState:
        owner = self.owner if self.stored is None else self.stored.owner
        # Taking in is no activity of the user: it has the time of what is taken in.
        written = self.now
        if self.stored is not None:
            written = min(self.stored.updated_at or self.now, self.now)
        row = new_row(self.conversation_id, now=written, **owner_columns(owner))
        row.foreign_written_at = None if self.stored is None else written
        row.forked_from_id = getattr(self.operation, "forked_from", None)
        if self.legacy is not None:
            revision = 0 if self.stored is None else 1
            row.legacy_revision = revision
            row.legacy_token = self.legacy.settle(
                self.conversation_id, revision=revision, known="", seen=self.seen
            )
        if self.stored is not None:
            self.tables.take(row, self.stored.document, revision=1, now=written)
        return row

    def _write_legacy_leg(
        self, row: ConversationState, view: TablesView, change: Change, *, revision: int
    ) -> bool:
        """Write legacy beside the tables. Returns: whether it took the write."""
        assert self.legacy is not None
        started = perf_counter()
        if self.legacy_down:
            metrics.observe("leg", StoreName.LEGACY, None, error=True)
            return False
        try:
            with attempt():
                _check_owner_for_legacy(row, self.legacy)
                token = self.legacy.save(
                    self.conversation_id,
                    changed_document(view, change),
                    owner=owner_of(row),
                    revision=revision,
                    known=row.legacy_token,
                )
        except (Error, InvalidState, UnreadableState) as error:
            if lost(conf.alias()):
                raise
            if isinstance(error, InvalidState) and self.plan.decides == StoreName.LEGACY:
                raise
            logger.warning(
                "conversation %s: legacy is behind since revision %s (%s)",
                self.conversation_id,
                row.legacy_revision,
                type(error).__name__,
            )
            metrics.observe("leg", StoreName.LEGACY, perf_counter() - started, error=True)
            return False
        metrics.observe("leg", StoreName.LEGACY, perf_counter() - started)
        change.columns |= {"legacy_revision": revision, "legacy_token": token}
        return True

    # Writing legacy alone

    def _write_legacy(self, *, fallback: bool = False) -> Outcome:
        """Write the whole document to legacy, and its number to the row if there is one."""
        assert self.legacy is not None
        view = self._view_for_legacy()
        self.operation.redact(redactions.of(self.row))
        change = self.operation.apply(view)
        document = changed_document(view, change)
        row = self.row
        if row is None:
            owner = self.owner if self.stored is None else self.stored.owner
            self.legacy.save(self.conversation_id, document, owner=owner)
            return Outcome(0, [StoreName.LEGACY], fallback=fallback)
        numbers = Numbers(row.revision, row.legacy_revision)
        if change.nothing and numbers.legacy_revision >= numbers.revision:
            return Outcome(row.legacy_revision, [StoreName.LEGACY], row=row, changed=False)
        saved = False
        try:
            with attempt():
                token = self.legacy.save(
                    self.conversation_id,
                    document,
                    owner=owner_of(row),
                    revision=numbers.next,
                    known=row.legacy_token,
                )
                saved = True
                ConversationState.rows.using(conf.alias()).filter(pk=row.pk).update(
                    legacy_revision=numbers.next, legacy_token=token, updated_at=self.now
                )
        except Error:
            behind = numbers.revision > numbers.legacy_revision
            if not saved or behind or lost(conf.alias()):
                raise
            if not may_write_legacy_blindly(self.plan):
                raise
            # The row cannot be told: the blob stays unmarked, and is merged later.
            self.legacy.save(self.conversation_id, document, owner=owner_of(row))
            return Outcome(0, [StoreName.LEGACY], fallback=fallback)
        row.legacy_revision, row.legacy_token = numbers.next, token
        return Outcome(numbers.next, [StoreName.LEGACY], fallback=fallback, row=row)

    def _view_for_legacy(self) -> LegacyView | TablesView:
        assert self.legacy is not None
        row = self.row
        if row is None:
            self._check_without_row()
            return LegacyView(self.stored or EMPTY, revision=0)
        if self.truth in (Truth.LEGACY, Truth.BOTH):
            check_owner(self.owner, actual=owner_of(row))
            stored = self.legacy.held(
                self.conversation_id, revision=row.legacy_revision, known=row.legacy_token
            )
            if stored is not None:
                stored = restored(self.tables, self.legacy, row, stored)
                return LegacyView(stored, revision=row.legacy_revision)
        row = self._row_at_truth()
        return TablesView(self.tables, row, values=True)

    def _write_blindly(self) -> Outcome:
        """Write legacy although the conversation's row cannot be read; see `routing`."""
        assert self.legacy is not None
        lock_id(self.conversation_id)
        self.row, self.stored = None, self.legacy.load(self.conversation_id)
        if self.stored is None and not self.operation.creates:
            raise StorageUnavailable
        return self._write_legacy()


EMPTY = Stored(Document.from_dict({}), owner=None, version="", updated_at=None)


def _check_owner_for_legacy(row: ConversationState, legacy: LegacyStore) -> None:
    """Raise IntegrityError now where a deferred foreign key would at the end."""
    owner = row.legacy_user_id
    if owner is not None and not user_exists(owner) and not legacy.takes_any_owner():
        raise IntegrityError("the owner that legacy names is no user")
