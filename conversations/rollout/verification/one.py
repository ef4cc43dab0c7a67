"""Verify that the stores hold what their numbers promise: by digests, and by the data itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from django.db import transaction
from django.db.models import QuerySet

from conversations import conf
from conversations.content.differences import differences
from conversations.content.document import Document
from conversations.content.entries import Entry
from conversations.exceptions import UnreadableState
from conversations.models import UNVERIFIED, ConversationConflict, ConversationState
from conversations.rollout.verification.bulk import portions, verify_all
from conversations.rollout.verification.comparing import digest_mismatches, kind_of
from conversations.rollout.verification.kinds import Kind, Verified
from conversations.routing.ids import conversation_ids, failure, pages_of
from conversations.routing.locks import deleted, lock
from conversations.routing.standing import decide, truth_by_token
from conversations.routing.transactions import attempt, translated
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import NormalizedStore
from conversations.stores.registry import configured_store


def unverified() -> QuerySet[ConversationState]:
    """Return the rows of conversations that were written since they were last verified."""
    return ConversationState.rows.using(conf.alias()).filter(UNVERIFIED)


def verify(ids: Iterable[str] | None = None) -> Iterator[Verified]:
    """Verify every conversation, or those named; yield the result of each.

    Every version in the tables is digested again, and compared with the stored digests and counts.
    If the numbers say that both stores are equal, legacy's document is compared with the tables by
    digests. If these differ, or a JSON column changes them, it is compared by the data. Takes no
    lock, unless a fault shows: then the conversation is checked again under its lock, so that no
    write in progress is reported.

    If a conversation is in order, its row notes that until the next write: see `unverified`.

    Conversations that are plainly in order are verified many at once (see `bulk`), the rest one by
    one.
    """
    legacy = configured_store()
    for page in pages_of(conversation_ids(ids)):
        for portion in portions(legacy, page):
            settled = verify_all(legacy, portion) if len(portion) > 1 else {}
            for conversation_id in portion:
                yield settled.get(conversation_id) or _verify_alone(legacy, conversation_id)


def _verify_alone(legacy: LegacyStore | None, conversation_id: str) -> Verified:
    check = _Check(conversation_id, legacy, NormalizedStore())
    try:
        with translated(conversation_id, emergency=decide(conversation_id).emergency), attempt():
            found = check.run()
            if found.mismatched:
                with transaction.atomic(using=conf.alias()):
                    lock(conversation_id)
                    found = check.run()
            check.note(found)
    except UnreadableState as error:
        failure(conversation_id, error)
        found = Verified(conversation_id, (Kind.UNREADABLE,), ("a value that cannot be read",))
    except Exception as error:  # noqa: BLE001 - a host's functions may raise anything
        failure(conversation_id, error)
        found = Verified(conversation_id, (Kind.FAILED,), (type(error).__name__,))
    return found


@dataclass(slots=True)
class _Check:
    conversation_id: str
    legacy: LegacyStore | None
    tables: NormalizedStore
    row: ConversationState | None = None

    def run(self) -> Verified:
        rows = ConversationState.rows.using(conf.alias())
        self.row = row = rows.filter(conversation_id=self.conversation_id).first()
        if row is None:
            return self._verified(self._without_row())
        versions = self.tables.versions(row, values=True)
        items = self.tables.items(row)[0]
        wrong = list(digest_mismatches(row, versions, items, self.tables.fields(row)))
        kind, places = self._against_legacy(row, versions, items)
        kinds = [kind]
        if wrong:
            kinds.append(Kind.DIGEST_LIES)
        if self._has_quarantined(row):
            kinds.append(Kind.QUARANTINED)
        return self._verified(*kinds, places=[*places, *wrong])

    def note(self, found: Verified) -> None:
        """Note in the row whether it is in order, unless it was written meanwhile."""
        row = self.row
        if row is None:
            return
        number = max(row.revision, row.legacy_revision) if found.in_order else -1
        if row.verified_revision != number:
            numbers = {"revision": row.revision, "legacy_revision": row.legacy_revision}
            rows = ConversationState.rows.using(conf.alias()).filter(pk=row.pk, **numbers)
            rows.update(verified_revision=number)

    def _verified(self, *kinds: Kind, places: Sequence[str] = ()) -> Verified:
        return Verified(self.conversation_id, kinds, tuple(places))

    def _without_row(self) -> Kind:
        held = self.legacy is not None and self.legacy.owner(self.conversation_id)[0]
        if deleted(self.conversation_id):
            return Kind.DELETED if held else Kind.UNKNOWN
        return Kind.MISSING_IN_TABLES if held else Kind.UNKNOWN

    def _has_quarantined(self, row: ConversationState) -> bool:
        records = ConversationConflict.rows.using(conf.alias()).filter(
            conversation_id=row.pk, kind=ConversationConflict.Kind.QUARANTINED
        )
        return bool(records.exists())

    def _against_legacy(
        self, row: ConversationState, versions: Sequence[Entry], items: Sequence[Entry]
    ) -> tuple[Kind, Sequence[str]]:
        if self.legacy is None:
            return Kind.TABLES_ONLY, ()
        kind = kind_of(row, truth_by_token(row, self.legacy))
        if kind != Kind.EQUAL:
            return kind, ()
        try:
            stored = self.legacy.load(self.conversation_id)
        except UnreadableState:
            return Kind.UNREADABLE, ("legacy",)
        if stored is None:
            return Kind.MISSING_IN_LEGACY, ()
        current = [entry.value for entry in versions if entry.superseded_in is None]
        ours = Document(self.tables.fields(row), current, [entry.value for entry in items])
        places = list(differences(ours, stored.document, exact=self.legacy.exact))
        return (Kind.DIFFERENT, places) if places else (kind, ())
