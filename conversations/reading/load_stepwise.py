"""A load step by step, for when the stores have to be asked one after the other.

It reads the conversation's row with legacy's token, in one statement. Then it reads messages and
items as of the row's revision. If a part of that revision is gone by then, it starts again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from django.db import Error, transaction
from django.utils import timezone

from conversations import conf
from conversations.exceptions import StorageUnavailable, UnreadableState
from conversations.models import ConversationState
from conversations.reading.loaded import EVERYTHING, Loaded, Raced, Selection, of_legacy, of_tables
from conversations.routing.locks import deleted, lock
from conversations.routing.owners import check_owner, may_read
from conversations.routing.standing import (
    Decision,
    Standing,
    plain_standing,
    standing,
    truth_by_token,
)
from conversations.routing.transactions import attempt, lost
from conversations.routing.truth import Truth, read_order
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import NormalizedStore, owner_of
from conversations.stores.types import Stored
from conversations.writing.ingest import merge
from conversations.writing.json_columns import restored
from flags import breaker, metrics
from flags.conf import limits, read_breaker
from flags.phases import Plan, StoreName
from flags.schema import named
from flags.texts import shown

logger = logging.getLogger("conversations")

# A load that loses this many races against writers takes the lock instead.
RACES = 5


def read_in_steps(conversation_id: str, reader: Reader) -> Loaded | None:
    """Return the content of a conversation; see `read`."""
    with attempt():
        for _ in range(RACES):
            try:
                return reader.run()
            except Raced:
                continue
        try:
            with transaction.atomic(using=conf.alias()):
                lock(conversation_id)
                return reader.run()
        except Raced as error:
            raise StorageUnavailable(
                f"Conversation {shown(conversation_id)} changes faster than it can be read:"
                " try again."
            ) from error


@dataclass(slots=True)
class Reader:
    """One load, step by step, each as of one revision."""

    conversation_id: str
    selection: Selection
    owner: str | None
    decision: Decision
    # The decision's store, or a retired one that still holds the truth.
    legacy: LegacyStore | None
    tables: NormalizedStore = field(default_factory=NormalizedStore)

    def run(self) -> Loaded | None:
        plan = self.decision.plan
        try:
            with attempt():
                found = self.standing()
        except Error:
            if self.legacy is None or lost(conf.alias()) or plan.reads != StoreName.LEGACY:
                raise
            return self._stale_legacy(self.legacy)
        row, truth = found.row, found.truth
        if row is None:
            return self.without_row()
        self.check_owner(row, truth)
        if truth == Truth.MERGE and self.legacy is not None:
            try:
                self.take_in()
            except Error:
                if lost(conf.alias()) or plan.reads != StoreName.LEGACY:
                    raise
                return self._stale_legacy(self.legacy)
            raise Raced
        return self._from_current(row, plan, truth, stale=found.failure is not None)

    def standing(self) -> Standing:
        """Find where the conversation stands, also in a retired legacy store."""
        found = standing(self.conversation_id, self.legacy)
        self.legacy = found.legacy
        return found

    def check_owner(self, row: ConversationState, truth: Truth) -> None:
        """Raise ConversationNotFound for another's. Before a merge, a row may lack its owner."""
        if truth != Truth.MERGE or owner_of(row) is not None:
            check_owner(self.owner, actual=owner_of(row))

    def without_row(self) -> Loaded | None:
        """Return legacy's content of a conversation without a row in the tables."""
        with attempt():
            if deleted(self.conversation_id):
                return None
            stored = None if self.legacy is None else self.legacy.load(self.conversation_id)
        if stored is None:
            return None
        check_owner(self.owner, actual=stored.owner)
        return self._of_legacy(stored, revision=0)

    def _stale_legacy(self, legacy: LegacyStore) -> Loaded:
        """Return legacy's content, marked stale, while the tables do not answer.

        Behind another owner's blob, the tables may hold the caller's conversation.
        """
        stored = legacy.load(self.conversation_id)
        if stored is None or not may_read(self.owner, actual=stored.owner):
            raise StorageUnavailable
        return self._of_legacy(stored, revision=0, stale=True)

    def take_in(self) -> None:
        """Merge old code's writes, so that this load shows them."""
        assert self.legacy is not None
        with transaction.atomic(using=conf.alias()):
            row = lock(self.conversation_id)
            if row is None:
                return
            if truth_by_token(row, self.legacy) == Truth.MERGE:
                merge(self.tables, self.legacy, row, now=timezone.now())

    def _from_current(
        self, row: ConversationState, plan: Plan, truth: Truth, *, stale: bool
    ) -> Loaded:
        """Read from the preferred store among those that are current."""
        failure: Exception | None = None
        order = in_order(read_order(plan, truth))
        for name in order:
            try:
                with attempt():
                    found = self._from(name, row, stale=stale)
                noted(order, name)
                if found is not None:
                    if failure is not None:
                        metrics.observe("load", order[0], None, error=True, fallback=True)
                    elif order[0] != plan.reads:
                        metrics.observe("load", plan.reads, None, fallback=True)
                    return found
            except (Error, UnreadableState) as error:
                if lost(conf.alias()):
                    raise
                failure = error
                noted(order, name, failed=isinstance(error, Error))
                logger.warning(
                    "conversation %s: %s did not answer (%s)",
                    shown(self.conversation_id),
                    name,
                    named(error),
                )
        if failure is not None:
            raise failure
        if self.moved_on(row, truth):
            raise Raced
        # Legacy's last write vanished; only the tables' content is left.
        return self._from_tables(row, stale=True)

    def moved_on(self, row: ConversationState, truth: Truth) -> bool:
        """Whether a conversation has changed; legacy may have dropped its former content."""
        if self.legacy is None:
            found = standing(self.conversation_id, None)
        else:
            found = plain_standing(self.conversation_id, self.legacy)
        now, before = found.row, (row.revision, row.legacy_revision)
        return now is None or found.truth != truth or (now.revision, now.legacy_revision) != before

    def _from(self, name: StoreName, row: ConversationState, *, stale: bool) -> Loaded | None:
        """Return the content of a current store, None when legacy's last write vanished."""
        if name == StoreName.NORMALIZED:
            return self._from_tables(row, stale=stale)
        stored = self.last_ours(row)
        if stored is None or self.legacy is None:
            return None
        stored = restored(self.tables, self.legacy, row, stored)
        return self._of_legacy(stored, revision=row.legacy_revision, stale=stale)

    def last_ours(self, row: ConversationState) -> Stored | None:
        if self.legacy is None:
            return None
        return self.legacy.last_ours(
            self.conversation_id, revision=row.legacy_revision, known=row.legacy_token
        )

    def _from_tables(self, row: ConversationState, *, stale: bool) -> Loaded:
        last = self.selection.read_messages
        messages = self.tables.given_messages(row, revision=row.revision, last=last)
        return of_tables(
            self.tables,
            self.conversation_id,
            self.selection,
            row,
            self.tables.fields(row),
            messages,
            stale=stale,
        )

    def _of_legacy(self, stored: Stored, *, revision: int, stale: bool = False) -> Loaded:
        return of_legacy(
            self.conversation_id, self.selection, stored, revision=revision, stale=stale
        )


def in_order(stores: tuple[StoreName, ...]) -> tuple[StoreName, ...]:
    """Return stores that are current, the preferred one last while its breaker is open.

    A single current store keeps its reads; see `flags.breaker`.
    """
    return breaker.reads.ordered(stores) if len(stores) > 1 and read_breaker() else stores


def noted(stores: tuple[StoreName, ...], name: StoreName, *, failed: bool = False) -> None:
    """Report a read of one of several stores to the breaker."""
    if len(stores) > 1 and read_breaker():
        breaker.reads.observed(name, failed=failed, limits=limits())


def at_truth(
    conversation_id: str, decision: Decision, *, owner: str | None
) -> tuple[ConversationState | None, Stored | None] | None:
    """Return a conversation's row (if any), and legacy's content where that is the truth.

    Merges old code's writes first. Returns: None when no store holds the conversation.
    Raises: ConversationNotFound when it is another owner's, StorageUnavailable.
    """
    reader = Reader(conversation_id, EVERYTHING, owner, decision, decision.legacy)
    for _ in range(RACES):
        with attempt():
            found = reader.standing()
            row, truth = found.row, found.truth
            if row is None and deleted(conversation_id):
                return None
        if row is not None:
            reader.check_owner(row, truth)
            if truth == Truth.MERGE:
                reader.take_in()
                continue
            if truth != Truth.LEGACY:
                return row, None
        with attempt():
            if row is not None:
                stored = reader.last_ours(row)
            else:
                stored = reader.legacy.load(conversation_id) if reader.legacy else None
        if stored is None and row is not None:
            with attempt():
                if reader.moved_on(row, truth):
                    continue
            return row, None
        if stored is None:
            return None
        if row is None:
            check_owner(owner, actual=stored.owner)
        return row, stored
    raise StorageUnavailable
