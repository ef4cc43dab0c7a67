"""The one place that opens transactions: every write and every load of one conversation.

A write takes the lock, finds the truth, brings the tables to it, and then writes the stores of
the phase in one transaction. Each leg that may fail without failing the write runs in a
savepoint of its own.
"""

from __future__ import annotations

import copy
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter

from django.db import Error, IntegrityError, connections, transaction
from django.utils import timezone

from conversations import conf
from conversations.content.changes import Operation
from conversations.content.changes.change import Change
from conversations.content.document import Document
from conversations.exceptions import (
    ConversationDeleted,
    ConversationNotFound,
    InvalidOwner,
    InvalidState,
    StorageUnavailable,
    UnreadableState,
)
from conversations.models import ConversationState
from conversations.routing.locks import lock_id
from conversations.routing.owners import check_owner, may_read, owner_columns, user_exists
from conversations.routing.standing import (
    Decision,
    LegacyDown,
    RowUnanswered,
    Standing,
    locked_standing,
    truth_by_numbers,
)
from conversations.routing.transactions import attempt, lost, translated
from conversations.routing.truth import Numbers, Truth, may_write_legacy_blindly
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import (
    Bumped,
    NormalizedStore,
    new_row,
    owner_of,
    redactions_of,
)
from conversations.stores.types import IdRefused, Stored
from conversations.writing.append import try_append
from conversations.writing.ingest import (
    Newcomers,
    appeared_at,
    merge,
    record_overwritten,
    take_legacy,
)
from conversations.writing.json_columns import restored
from conversations.writing.trim import trim
from conversations.writing.views import LegacyView, TablesView, changed_document
from flags import metrics
from flags.phases import Phase, StoreName
from flags.schema import named
from flags.texts import shown

logger = logging.getLogger("conversations")


@dataclass(slots=True)
class Outcome:
    """The result of a write: the conversation's number after it, and the stores that took it."""

    revision: int
    stores: list[str]
    fallback: bool = False
    row: ConversationState | None = None
    changed: bool = True
    # Instead of the row, where that was not read.
    bumped: Bumped | None = None


def write(
    conversation_id: str, operation: Operation, *, owner: str | None, decision: Decision
) -> Outcome:
    """Carry out one operation on the latest content, in the stores of the decision.

    Raises: ConversationNotFound, ConversationDeleted, StorageUnavailable, and the errors of the
    operation.
    """
    connection = connections[conf.alias()]
    with translated(conversation_id, connection, emergency=decision.emergency):
        bumped = try_append(connection, conversation_id, operation, decision, owner=owner)
        if bumped is not None:
            return Outcome(bumped.revision, [StoreName.NORMALIZED], bumped=bumped)
        attempted = _Write(conversation_id, operation, owner, decision)
        try:
            with transaction.atomic(using=connection.alias):
                return attempted.run()
        except LegacyDown as error:
            failure = error.__cause__
        attempted = _Write(conversation_id, operation, owner, decision)
        with transaction.atomic(using=connection.alias):
            return attempted.run(failure=failure)


class _Write:
    """One attempt at one write, inside its transaction."""

    def __init__(
        self, conversation_id: str, operation: Operation, owner: str | None, decision: Decision
    ) -> None:
        self.conversation_id, self.operation, self.owner = conversation_id, operation, owner
        self.decision, self.plan, self.legacy = decision, decision.plan, decision.legacy
        self.tables, self.now = NormalizedStore(), timezone.now()
        self.row: ConversationState | None = None
        self.truth = Truth.LEGACY
        # The error of a legacy store that did not answer.
        self.failure: BaseException | None = None
        self.stored: Stored | None = None
        # The note of old code's writes, as of the read of `stored`.
        self.foreign_ids = ""

    def run(self, *, failure: BaseException | None = None) -> Outcome:
        """Write. `failure` is legacy's error in the attempt before, in new_only."""
        blind = self.legacy is not None and may_write_legacy_blindly(self.plan)
        try:
            with attempt() if blind else nullcontext():
                found = locked_standing(self.conversation_id, self.decision, failure=failure)
        except RowUnanswered as error:
            problem = error.__cause__
        else:
            return self._write(found)
        assert problem is not None
        if lost(conf.alias()) or not blind or self.operation.needs_rows:
            raise problem
        logger.warning(
            "conversation %s: its row did not answer (%s); legacy alone is written",
            shown(self.conversation_id),
            named(problem),
        )
        return self._write_blindly()

    def _write(self, found: Standing) -> Outcome:
        if found.deleted:
            # A caller with an owner must not learn of another user's deleted conversation.
            tells = self.operation.creates or self.owner is None
            raise ConversationDeleted if tells else ConversationNotFound
        self.row, self.truth, self.legacy = found.row, found.truth, found.legacy
        self.failure = found.failure
        if self.row is None and self.legacy is not None:
            self.foreign_ids = self.legacy.foreign_ids(self.conversation_id, "")
            self.stored = self.legacy.load(self.conversation_id)
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
                shown(self.conversation_id),
                named(error),
            )
        metrics.observe("leg", StoreName.NORMALIZED, None, error=True)
        self.row = row
        return self._write_legacy(fallback=self.plan.decides != StoreName.LEGACY)

    def _legacy_may_take_over(self) -> bool:
        """Whether legacy is current, so that a save may go there when the tables fail."""
        return (
            self.legacy is not None
            and self.plan.writes_legacy
            and self.failure is None
            and not self.operation.needs_rows
            and self.truth in (Truth.LEGACY, Truth.BOTH)
        )

    def _check_without_row(self) -> None:
        """Check the owner of legacy's content, or that the operation may create."""
        if self.stored is not None:
            check_owner(self.owner, actual=self.stored.owner)
        elif not self.operation.creates:
            raise ConversationNotFound
        else:
            self._check_new()

    def _check_new(self) -> None:
        """Check the owner of a new conversation, and that legacy can hold it where it must."""
        legacy = self.legacy
        named = None if legacy is None else legacy.owner_by_id(self.conversation_id)
        if named is not None:
            check_owner(self.owner, actual=named)
            self.owner = named
        if self.owner is not None and not user_exists(self.owner):
            raise InvalidOwner(f"there is no user {shown(self.owner)}.")
        if legacy is None or not self.plan.writes_legacy:
            return
        problem = legacy.refusal(self.conversation_id, owner=self.owner)
        if problem:
            raise IdRefused(problem, path="conversation_id")
        in_rows = self.plan.writes_normalized or self.operation.needs_rows
        if self.owner is not None and not legacy.names_owners and not in_rows:
            raise InvalidOwner(
                "CONVERSATIONS['LEGACY'] names no owner column, so legacy cannot hold the owner:"
                ' map "owner", or save without user_id until phase dual_write.'
            )

    # Writing the tables, and legacy beside them

    def _write_tables(self) -> Outcome:
        row = self._row_at_truth()
        self.operation.redact(redactions_of(row))
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
            raise StorageUnavailable from self.failure
        self.tables.write(row, change, revision=numbers.next, now=self.now)
        record_overwritten(row, getattr(self.operation, "overwritten", ()), now=self.now)
        return Outcome(numbers.next, stores, fallback=fallback, row=row)

    def _row_at_truth(self) -> ConversationState:
        """Bring the tables to the truth: ingest content that only legacy holds. Return the row."""
        row, legacy = self.row, self.legacy
        if row is None:
            self._check_without_row()
            return self._new_row()
        if self.truth != Truth.MERGE or owner_of(row) is not None:
            check_owner(self.owner, actual=owner_of(row))
        if legacy is not None and self.truth == Truth.MERGE:
            merge(self.tables, legacy, row, now=self.now)
            # A conversation without an owner may have one now.
            check_owner(self.owner, actual=owner_of(row))
            # A merge that set all its blobs aside may leave the truth in legacy.
            self.truth = truth_by_numbers(row)
        if legacy is not None and self.truth == Truth.LEGACY:
            take_legacy(self.tables, legacy, row, now=self.now)
        return row

    def _new_row(self) -> ConversationState:
        owner = self.owner if self.stored is None else self.stored.owner
        # An ingest is no activity of the user, so it keeps the time of the content.
        written = self.now
        if self.stored is not None:
            written = min(self.stored.updated_at or self.now, self.now)
        row = new_row(self.conversation_id, now=written, **owner_columns(owner))
        if self.stored is not None:
            row.foreign_written_at = appeared_at(
                self.conversation_id, self.stored, Newcomers(), now=self.now
            )
        row.forked_from_id = getattr(self.operation, "forked_from", None)
        if self.legacy is not None:
            revision = 0 if self.stored is None else 1
            row.legacy_revision = revision
            row.legacy_token = self.legacy.mark_ingested(
                self.conversation_id, revision=revision, known="", foreign_ids=self.foreign_ids
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
        if self.failure is not None:
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
                trim(self.legacy, self.conversation_id, revision=revision)
        except (Error, InvalidState, UnreadableState) as error:
            if lost(conf.alias()):
                raise
            if isinstance(error, InvalidState) and self._legacy_must_take(error):
                raise
            logger.warning(
                "conversation %s: legacy is behind since revision %s (%s)",
                shown(self.conversation_id),
                row.legacy_revision,
                named(error),
            )
            metrics.observe("leg", StoreName.LEGACY, perf_counter() - started, error=True)
            self.failure = error
            return False
        metrics.observe("leg", StoreName.LEGACY, perf_counter() - started)
        change.columns |= {"legacy_revision": revision, "legacy_token": token}
        return True

    def _legacy_must_take(self, error: InvalidState) -> bool:
        """Whether content that legacy cannot hold fails the write; if not, legacy falls behind.

        A conversation that began in new_only may have an id that legacy can never hold.
        """
        if isinstance(error, IdRefused):
            return self.plan.phase == Phase.LEGACY
        return self.plan.decides == StoreName.LEGACY

    # Writing legacy alone

    def _write_legacy(self, *, fallback: bool = False) -> Outcome:
        """Write the whole document to legacy, and its number to the row if there is one."""
        assert self.legacy is not None
        view = self._view_for_legacy()
        self.operation.redact(redactions_of(self.row))
        change = self.operation.apply(view)
        document = changed_document(view, change)
        row = self.row
        if row is None:
            owner = self.owner if self.stored is None else self.stored.owner
            self._check_named(owner)
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
                trim(self.legacy, self.conversation_id, revision=numbers.next)
                ConversationState.rows.using(conf.alias()).filter(pk=row.pk).update(
                    legacy_revision=numbers.next, legacy_token=token, updated_at=self.now
                )
        except Error:
            behind = numbers.revision > numbers.legacy_revision
            if not saved or behind or lost(conf.alias()):
                raise
            if not may_write_legacy_blindly(self.plan):
                raise
            # The row cannot be updated, so the blob stays unmarked, and is merged later.
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
            stored = self.legacy.last_ours(
                self.conversation_id, revision=row.legacy_revision, known=row.legacy_token
            )
            if stored is not None:
                stored = restored(self.tables, self.legacy, row, stored)
                return LegacyView(stored, revision=row.legacy_revision)
        row = self._row_at_truth()
        return TablesView(self.tables, row, values=True)

    def _write_blindly(self) -> Outcome:
        """Write legacy although the conversation's row cannot be read; see `routing.truth`."""
        assert self.legacy is not None
        lock_id(self.conversation_id)
        self.row, self.stored = None, self.legacy.load(self.conversation_id)
        if self.stored is None:
            unknown = not self.operation.creates
        else:
            # The tables may hold a conversation of the caller's under this id.
            unknown = not may_read(self.owner, actual=self.stored.owner)
        if unknown:
            raise StorageUnavailable
        return self._write_legacy()

    def _check_named(self, owner: str | None) -> None:
        """Raise StorageUnavailable when only the failing tables can hold the owner."""
        assert self.legacy is not None
        if owner is not None and not self.legacy.names_owners:
            raise StorageUnavailable


EMPTY = Stored(Document.from_dict({}), owner=None, version="", updated_at=None)


def _check_owner_for_legacy(row: ConversationState, legacy: LegacyStore) -> None:
    """Raise IntegrityError now where a deferred foreign key would at the end."""
    owner = row.legacy_user_id
    if owner is not None and not user_exists(owner) and not legacy.takes_any_owner():
        raise IntegrityError("the owner that legacy names is no user")
