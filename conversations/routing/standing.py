"""Where a conversation stands: decided once an operation, and found by one query.

`decide` alone reads the switches, the emergency and the retirement. An operation calls it first,
and hands its Decision down. `standing` and `locked_standing` find the conversation's row and the
store with its latest content. Each has one rule for a legacy store that fails.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from django.db import Error, connections, transaction

from conversations import conf
from conversations.exceptions import StorageUnavailable
from conversations.models import ConversationState
from conversations.routing.locks import deleted, lock, token_value
from conversations.routing.transactions import attempt, lost, translated, unanswered
from conversations.routing.truth import Numbers, Truth, verdict
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import find_row
from conversations.stores.registry import configured_store
from flags.connections import closed
from flags.phases import PLANS, Phase, Plan
from flags.schema import named
from flags.switches import Seen, look
from flags.texts import shown

logger = logging.getLogger("conversations")


@dataclass(frozen=True, slots=True)
class Decision:
    """The plan of one operation on one conversation, from the first statement to the last.

    `legacy` is the store to read and to write: None where the settings name none, or it is
    retired. In an `emergency`, no lock is waited for longer than a moment.
    """

    plan: Plan
    legacy: LegacyStore | None
    emergency: bool
    seen: Seen

    def of(self, conversation_id: str) -> Decision:
        """Return the decision for another conversation in the same operation."""
        return decide(conversation_id, self.seen)

    def carrying(self) -> Decision:
        """Return the decision to bring the tables to the truth, from a retired legacy as well."""
        return replace(self, plan=PLANS[Phase.NEW_ONLY], legacy=configured_store())


def decide(conversation_id: str | None = None, seen: Seen | None = None) -> Decision:
    """Read the switches and the retirement once. Raises: ImproperlyConfigured for LEGACY alone.

    Without an id: for an operation on many conversations. `seen` is the result of an earlier look.
    """
    seen = look() if seen is None else seen
    plan = seen.plan_for(conversation_id)
    legacy = None if seen.retired else configured_store()
    # A team without a legacy store is always in new_only; its operators have emergencies, too.
    in_force = PLANS[Phase.NEW_ONLY] if legacy is None else plan
    return Decision(in_force, legacy, plan.emergency, seen)


@contextmanager
def in_transaction(conversation_id: str) -> Iterator[Decision]:
    """Open a transaction, or a savepoint, for one operation; give its decision.

    Raises: the errors of `translated`.
    """
    decision = decide(conversation_id)
    with (
        translated(conversation_id, emergency=decision.emergency),
        transaction.atomic(using=conf.alias()),
    ):
        yield decision


class Row(Protocol):
    """The numbers of both stores, from a row or a statement that read a part of it."""

    @property
    def revision(self) -> int: ...

    @property
    def legacy_revision(self) -> int: ...

    @property
    def legacy_token(self) -> str: ...


def truth_by_numbers(row: Row) -> Truth:
    """Return where the truth is, if old code did not write into legacy."""
    return verdict(Numbers(row.revision, row.legacy_revision), token_matches=True)


def truth_by_token_value(row: Row, legacy: LegacyStore, value: Any) -> Truth:
    """Return where the truth is, given the value of `LegacyStore.token_sql` read with the row."""
    known = row.legacy_token
    matches = legacy.token_of(value, known) == known
    return verdict(Numbers(row.revision, row.legacy_revision), token_matches=matches)


def truth_by_token(row: ConversationState, legacy: LegacyStore) -> Truth:
    """Return where the truth is: ask legacy, and lock what the following write replaces there."""
    known = row.legacy_token
    matches = legacy.token(row.conversation_id, known) == known
    return verdict(Numbers(row.revision, row.legacy_revision), token_matches=matches)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one conversation stands.

    Without a row, `truth` is LEGACY; a locked standing also tells `deleted`. `failure` is the error
    of a legacy store that did not answer: then the row's numbers decide. `legacy` is the retired
    store where the row puts the truth there.
    """

    row: ConversationState | None
    truth: Truth
    legacy: LegacyStore | None
    failure: BaseException | None = None
    deleted: bool = False


def plain_standing(conversation_id: str, legacy: LegacyStore) -> Standing:
    """Find where a conversation stands, in one statement. Raises: Error where legacy fails."""
    row = find_row(conversation_id, token_sql=legacy.token_sql())
    truth = Truth.LEGACY if row is None else truth_by_token_value(row, legacy, token_value(row))
    return Standing(row, truth, legacy)


def standing(conversation_id: str, legacy: LegacyStore | None) -> Standing:
    """Find where a conversation stands, without a lock: for loads.

    Where legacy fails, the tables alone are asked, and the row's numbers decide.

    Raises: StorageUnavailable when legacy fails and the tables have no row.
    """
    found = _standing(conversation_id, legacy)
    row = found.row
    if legacy is None and row is not None and row.legacy_revision > row.revision:
        # The row decides: its writer may have missed the retirement.
        legacy = configured_store()
        found = found if legacy is None else _standing(conversation_id, legacy)
    return found


def _standing(conversation_id: str, legacy: LegacyStore | None) -> Standing:
    if legacy is None:
        row = find_row(conversation_id)
        return Standing(row, Truth.LEGACY if row is None else Truth.NORMALIZED, None)
    try:
        with attempt():
            return plain_standing(conversation_id, legacy)
    except Error as error:
        if lost(conf.alias()):
            raise
        _warn(conversation_id, error)
        failure = error
    row = find_row(conversation_id)
    if row is None:
        raise unanswered(conversation_id, failure) from failure
    truth = truth_by_numbers(row)
    # Equal numbers: the tables hold legacy's last known content.
    return Standing(row, Truth.NORMALIZED if truth == Truth.BOTH else truth, legacy, failure)


class LegacyDown(Exception):
    """Legacy failed in the statement that takes the lock: begin again without it."""


class RowUnanswered(Exception):
    """The tables failed, so a row may exist; the cause is the database's error."""


def locked_standing(
    conversation_id: str, decision: Decision, *, failure: BaseException | None = None
) -> Standing:
    """Lock a conversation, and find where it stands: for writes, in their transaction.

    Where the tables alone are written, the statement that takes the lock also asks legacy. After
    LegacyDown, the caller begins a new transaction and passes the `failure`. In the other phases
    legacy is asked after the lock, and locked; where it fails, its last known state counts.

    Raises: LegacyDown, RowUnanswered, StorageUnavailable when the truth is in a legacy store that
    fails. Error in phase legacy, or when the connection is lost.
    """
    legacy, only_tables = decision.legacy, decision.plan.phase == Phase.NEW_ONLY
    token_sql = None
    if legacy is not None and only_tables and failure is None:
        token_sql = legacy.token_sql()
    try:
        row = lock(conversation_id, token_sql=token_sql)
        if row is None:
            return Standing(None, Truth.LEGACY, legacy, failure, deleted(conversation_id))
    except Error as error:
        if token_sql is None or closed(connections[conf.alias()]):
            raise RowUnanswered from error
        raise LegacyDown from error
    if legacy is None:
        if truth_by_numbers(row) == Truth.LEGACY and (retired := configured_store()) is not None:
            # The row decides: its writer may have missed the retirement.
            decision = replace(decision, legacy=retired)
            return locked_standing(conversation_id, decision, failure=failure)
        return Standing(row, Truth.NORMALIZED, None)
    if token_sql is not None:
        truth = truth_by_token_value(row, legacy, token_value(row))
    elif only_tables:
        truth = truth_by_numbers(row)
    else:
        try:
            with attempt():
                truth = truth_by_token(row, legacy)
        except Error as error:
            if lost(conf.alias()) or decision.plan.phase == Phase.LEGACY:
                raise
            _warn(conversation_id, error)
            truth, failure = truth_by_numbers(row), error
    if failure is not None and truth == Truth.LEGACY:
        raise StorageUnavailable from failure
    return Standing(row, truth, legacy, failure)


def _warn(conversation_id: str, error: Error) -> None:
    logger.warning(
        "conversation %s: legacy did not answer (%s)", shown(conversation_id), named(error)
    )
