"""Loading one conversation: as of one revision, from a store that is current.

A load takes no lock. It reads the conversation's row (with legacy's token, in one statement),
then its messages and items as they were at the row's revision, and starts again if the row
moved on so far that something of that revision is gone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from django.db import Error, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from conversations import conf
from conversations.codec import decode_fields
from conversations.documents import HISTORY, Document, field_digests
from conversations.exceptions import StorageUnavailable, UnreadableState
from conversations.foreign import merge, restored
from conversations.locking import deleted, lock, probed
from conversations.merge import NOTHING, Given, entries_of
from conversations.models import ConversationState
from conversations.owners import check_owner
from conversations.replicas import chosen_replica, replicated
from conversations.routing import plan_for, read_order
from conversations.seals import Seal
from conversations.state import Baseline, LoadInfo
from conversations.stores.base import LegacyStore, Stored
from conversations.stores.normalized import (
    Head,
    NormalizedStore,
    found_row,
    limited_items,
    load_at_once,
    owner_of,
)
from conversations.stores.registry import configured_store, legacy_store
from conversations.transactions import attempt, lost, translated
from conversations.truth import Numbers, Truth, verdict
from flags import breaker, metrics
from flags.conf import limits, read_breaker
from flags.phases import Plan, StoreName
from memory.selection import selected

logger = logging.getLogger("conversations")

# A load that loses this many races against writers takes the lock instead.
RACES = 5


@dataclass(frozen=True, slots=True)
class Selection:
    """What a load is asked for: None means everything."""

    threshold: float | None = None
    max_messages: int | None = None
    max_items: int | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load gives: the content selected, and what a later save must know of it."""

    document: Document
    baseline: Baseline
    info: LoadInfo


class _Raced(Exception):
    """The conversation moved on while it was read, or has to be read another way."""


class _Behind(Exception):
    """The replica does not hold what the primary's row says, or does not answer."""


def read(conversation_id: str, selection: Selection, *, owner: str | None) -> Loaded | None:
    """Return the content of a conversation, or None when no store holds it.

    Raises: ConversationNotFound when it is another owner's, StorageUnavailable when a store
    that may hold it did not answer.
    """
    reader = _Read(conversation_id, selection, owner, legacy_store(), NormalizedStore())
    connection = connections[conf.alias()]
    with translated(conversation_id, connection):
        try:
            return reader.at_once(connection)
        except _Raced:
            return _read_in_steps(conversation_id, reader)


def _read_in_steps(conversation_id: str, reader: _Read) -> Loaded | None:
    with attempt():
        for _ in range(RACES):
            try:
                return reader.run()
            except _Raced:
                continue
        try:
            with transaction.atomic(using=conf.alias()):
                lock(conversation_id)
                return reader.run()
        except _Raced as error:
            raise StorageUnavailable(
                f"Conversation {conversation_id} changes faster than it can be read: try again."
            ) from error


@dataclass(slots=True)
class _Read:
    conversation_id: str
    selection: Selection
    owner: str | None
    legacy: LegacyStore | None
    tables: NormalizedStore

    def at_once(self, connection: BaseDatabaseWrapper) -> Loaded | None:
        """Read the tables where they are current and preferred: one statement, two with items.

        Raises: _Raced where that is not so, or cannot be told: then step by step.
        """
        plan = plan_for(self.conversation_id, has_legacy=self.legacy is not None)
        if plan.reads != StoreName.NORMALIZED or (read_breaker() and breaker.reads.opened()):
            raise _Raced
        replica = chosen_replica()
        if replica is not None:
            try:
                return self._at_once(connection, plan, replica=replica)
            except _Behind:
                pass
        return self._at_once(connection, plan)

    def _at_once(
        self, connection: BaseDatabaseWrapper, plan: Plan, *, replica: str | None = None
    ) -> Loaded | None:
        """Read at once; from a replica, the primary's row alone, and what is behind it from there.

        Raises: _Raced, _Behind.
        """
        legacy = self.legacy
        try:
            with attempt(connection):
                found = load_at_once(
                    connection,
                    self.conversation_id,
                    last=self.selection.max_messages if replica is None else 0,
                    probe=None if legacy is None else legacy.probe(),
                )
                if found is None:
                    return self._without_row()
                head, messages = found
                order = self._order(plan, head)
                check_owner(self.owner, actual=head.owner)
                fields = decode_fields(head.columns)
                if replica is None:
                    loaded = self._of_tables(head, fields, messages)
                else:
                    loaded = self._of_replica(replica, head, fields)
        except Error as error:
            if lost(conf.alias()):
                raise
            raise _Raced from error
        _noted(order, StoreName.NORMALIZED)
        return loaded

    def _of_replica(self, replica: str, head: Head, fields: dict[str, object]) -> Loaded:
        def read_from(using: str) -> Loaded | None:
            last = self.selection.max_messages
            found = load_at_once(connections[using], self.conversation_id, last=last)
            if found is None or not found[0].holds_as_much_as(head):
                return None
            try:
                return self._of_tables(head, fields, found[1], using=using)
            except _Raced:
                return None

        found = replicated(replica, self.conversation_id, read_from)
        if found is None:
            raise _Behind
        return found

    def _order(self, plan: Plan, head: Head) -> tuple[StoreName, ...]:
        """Return the stores that may answer. Raises: _Raced when it is not the tables' turn."""
        known, matches = head.legacy_token, True
        if self.legacy is not None:
            matches = self.legacy.judge(head.probed, known) == known
        truth = verdict(Numbers(head.revision, head.legacy_revision), token_matches=matches)
        if self.legacy is None and truth == Truth.BOTH:
            truth = Truth.NORMALIZED
        order = _in_order(read_order(plan, truth))
        if truth == Truth.MERGE or order[0] != StoreName.NORMALIZED:
            raise _Raced
        return order

    def run(self) -> Loaded | None:
        plan = plan_for(self.conversation_id, has_legacy=self.legacy is not None)
        try:
            with attempt():
                row, truth, certain = self._row_and_truth()
        except Error:
            if self.legacy is None or lost(conf.alias()) or plan.reads != StoreName.LEGACY:
                raise
            return self._stale_legacy(self.legacy)
        if row is None:
            return self._without_row()
        self.check_owner(row, truth)
        if truth == Truth.MERGE and self.legacy is not None:
            try:
                self._merge()
            except Error:
                if lost(conf.alias()) or plan.reads != StoreName.LEGACY:
                    raise
                return self._stale_legacy(self.legacy)
            raise _Raced
        return self._from_current(row, plan, truth, stale=not certain)

    def _row_and_truth(self) -> tuple[ConversationState | None, Truth, bool]:
        """Return the row, where the truth is, and whether legacy could be asked about it."""
        found = self._found()
        row = found[0]
        if self.legacy is None and row is not None and row.legacy_revision > row.revision:
            # A row decides, also against a retirement that its writer had not heard of.
            self.legacy = configured_store()
            found = found if self.legacy is None else self._found()
        return found

    def _found(self) -> tuple[ConversationState | None, Truth, bool]:
        try:
            with attempt():
                return (*self._asked(legacy=self.legacy), True)
        except Error as error:
            if self.legacy is None or lost(conf.alias()):
                raise
            logger.warning(
                "conversation %s: legacy did not answer (%s)",
                self.conversation_id,
                type(error).__name__,
            )
        row, truth = self._asked(legacy=None)
        if row is None:
            raise StorageUnavailable
        return row, truth, False

    def _asked(self, *, legacy: LegacyStore | None) -> tuple[ConversationState | None, Truth]:
        row = found_row(self.conversation_id, probe=legacy.probe() if legacy else None)
        if row is None:
            return None, Truth.LEGACY
        numbers = Numbers(row.revision, row.legacy_revision)
        if legacy is None:
            truth = verdict(numbers, token_matches=True)
            alone = self.legacy is None or truth == Truth.BOTH
            return row, Truth.NORMALIZED if alone else truth
        known = row.legacy_token
        return row, verdict(numbers, token_matches=legacy.judge(probed(row), known) == known)

    def check_owner(self, row: ConversationState, truth: Truth) -> None:
        """Raise ConversationNotFound for another's; what nobody owns, a merge may give away."""
        if truth != Truth.MERGE or owner_of(row) is not None:
            check_owner(self.owner, actual=owner_of(row))

    def _without_row(self) -> Loaded | None:
        """Return what legacy holds of a conversation that the tables do not know."""
        with attempt():
            if deleted(self.conversation_id):
                return None
            stored = None if self.legacy is None else self.legacy.load(self.conversation_id)
        if stored is None:
            return None
        check_owner(self.owner, actual=stored.owner)
        return self._from_legacy(stored, revision=0)

    def _stale_legacy(self, legacy: LegacyStore) -> Loaded:
        """Return what legacy holds, marked stale, while the tables do not answer."""
        stored = legacy.load(self.conversation_id)
        if stored is None:
            raise StorageUnavailable
        check_owner(self.owner, actual=stored.owner)
        return self._from_legacy(stored, revision=0, stale=True)

    def _merge(self) -> None:
        """Take in what old code wrote, so that this load shows it."""
        assert self.legacy is not None
        with transaction.atomic(using=conf.alias()):
            row = lock(self.conversation_id)
            if row is None:
                return
            known = row.legacy_token
            if self.legacy.token(self.conversation_id, known) != known:
                merge(self.tables, self.legacy, row, now=timezone.now())

    def _from_current(
        self, row: ConversationState, plan: Plan, truth: Truth, *, stale: bool
    ) -> Loaded:
        """Read from the preferred store among those that are current."""
        failure: Exception | None = None
        order = _in_order(read_order(plan, truth))
        for name in order:
            try:
                with attempt():
                    found = self._from(name, row, stale=stale)
                _noted(order, name)
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
                _noted(order, name, failed=isinstance(error, Error))
                logger.warning(
                    "conversation %s: %s did not answer (%s)",
                    self.conversation_id,
                    name,
                    type(error).__name__,
                )
        if failure is not None:
            raise failure
        if self._asked(legacy=self.legacy)[1] != truth:
            raise _Raced
        # Legacy's last write vanished; what the tables hold is all there is.
        return self._from_tables(row, stale=True)

    def _from(self, name: StoreName, row: ConversationState, *, stale: bool) -> Loaded | None:
        """Return what a store that is current holds, None when legacy's last write vanished."""
        if name == StoreName.NORMALIZED:
            return self._from_tables(row, stale=stale)
        stored = self._held(row)
        if stored is None or self.legacy is None:
            return None
        stored = restored(self.tables, self.legacy, row, stored)
        return self._from_legacy(stored, revision=row.legacy_revision, stale=stale)

    def _held(self, row: ConversationState) -> Stored | None:
        if self.legacy is None:
            return None
        return self.legacy.held(
            self.conversation_id, revision=row.legacy_revision, known=row.legacy_token
        )

    def _from_tables(self, row: ConversationState, *, stale: bool) -> Loaded:
        last = self.selection.max_messages
        messages = self.tables.given_messages(row, revision=row.revision, last=last)
        return self._of_tables(row, self.tables.fields(row), messages, stale=stale)

    def _of_tables(
        self,
        row: ConversationState | Head,
        fields: dict[str, object],
        messages: Given,
        *,
        stale: bool = False,
        using: str | None = None,
    ) -> Loaded:
        chosen = self.selection
        expected = row.message_count
        if chosen.max_messages is not None:
            expected = min(expected, chosen.max_messages)
        if len(messages.values) != expected:
            raise _Raced
        items = NOTHING
        if row.context_item_count:
            entries, changed = self.tables.items(
                row, threshold=chosen.threshold, last=chosen.max_items, using=using
            )
            # Of a replica, nothing may mean that it moved on.
            if using is not None and not entries:
                raise _Raced
            everything = chosen.threshold is None and chosen.max_items is None
            if changed != row.context_items_revision or (
                everything and len(entries) != row.context_item_count
            ):
                raise _Raced
            items = Given.of(entries)
        return loaded(
            self.conversation_id,
            fields=fields,
            messages=messages,
            items=items,
            store=StoreName.NORMALIZED,
            revision=row.revision,
            version=bytes(row.messages_digest).hex(),
            hidden=(
                row.message_count - len(messages.values),
                row.context_item_count - len(items.values),
            ),
            stale=stale,
        )

    def _from_legacy(self, stored: Stored, *, revision: int, stale: bool = False) -> Loaded:
        chosen = self.selection
        document = stored.document
        messages = entries_of(document.messages, numbered=True)
        items = entries_of(document.items, numbered=True)
        given = messages
        if chosen.max_messages is not None:
            given = messages[len(messages) - min(chosen.max_messages, len(messages)) :]
        kept = [item for item in items if selected(item.value, threshold=chosen.threshold)]
        kept = limited_items(kept, chosen.max_items)
        return loaded(
            self.conversation_id,
            fields=document.fields,
            messages=Given.of(given),
            items=Given.of(kept),
            store=StoreName.LEGACY,
            revision=revision,
            version=stored.version,
            hidden=(len(messages) - len(given), len(items) - len(kept)),
            stale=stale,
        )


def _in_order(stores: tuple[StoreName, ...]) -> tuple[StoreName, ...]:
    """Return stores that are current, the preferred one last while its reads are moved away.

    Where only one is current, nothing is moved; see `flags.breaker`.
    """
    return breaker.reads.ordered(stores) if len(stores) > 1 and read_breaker() else stores


def _noted(stores: tuple[StoreName, ...], name: StoreName, *, failed: bool = False) -> None:
    if len(stores) > 1 and read_breaker():
        breaker.reads.observed(name, failed=failed, limits=limits())


def loaded(
    conversation_id: str,
    *,
    fields: dict[str, object],
    messages: Given,
    items: Given,
    store: StoreName,
    revision: int,
    version: str,
    hidden: tuple[int, int],
    stale: bool = False,
) -> Loaded:
    """Return the content that was selected, with its baseline."""
    history = fields.get(HISTORY)
    length = len(history) if isinstance(history, list) else 0
    digests = field_digests(fields)
    baseline = Baseline(
        conversation_id=conversation_id,
        store=str(store),
        revision=revision,
        version=version,
        sequences=messages.identities,
        message_digests=messages.digests,
        item_ids=items.identities,
        item_digests=items.digests,
        field_digests=digests,
        history_length=length,
        stored_history_length=length,
        stored_history_digest=digests.get(HISTORY, b""),
        hidden_messages=hidden[0],
        messages_before=hidden[0],
        hidden_items=hidden[1],
        # The caller's state is made of these very objects.
        message_seal=Seal.of(messages.values),
        item_seal=Seal.of(items.values),
    )
    document = Document(dict(fields), messages.values, items.values)
    return Loaded(document, baseline, LoadInfo(str(store), revision, stale, *hidden))


def at_truth(
    conversation_id: str, *, owner: str | None
) -> tuple[ConversationState | None, Stored | None] | None:
    """Return a conversation's row (if any), and legacy's content where that is the truth.

    Merges first what old code wrote. Returns: None when no store holds the conversation.
    Raises: ConversationNotFound when it is another owner's, StorageUnavailable.
    """
    reader = _Read(conversation_id, Selection(), owner, legacy_store(), NormalizedStore())
    for _ in range(RACES):
        with attempt():
            row, truth, _certain = reader._row_and_truth()
            if row is None and deleted(conversation_id):
                return None
        if row is not None:
            reader.check_owner(row, truth)
            if truth == Truth.MERGE:
                reader._merge()
                continue
            if truth != Truth.LEGACY:
                return row, None
        with attempt():
            if row is not None:
                stored = reader._held(row)
            else:
                stored = reader.legacy.load(conversation_id) if reader.legacy else None
        if stored is None:
            return None if row is None else (row, None)
        if row is None:
            check_owner(owner, actual=stored.owner)
        return row, stored
    raise StorageUnavailable
