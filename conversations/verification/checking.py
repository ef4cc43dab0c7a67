"""Verifying that the stores hold what their numbers say: by digests, and by the data itself.

What is reported is ids, kinds and places, never content.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from django.db import transaction
from django.db.models import QuerySet

from conversations import conf
from conversations.batches import conversation_ids, failure
from conversations.digests import DIGEST_BYTES, EMPTY, digest_of, loose_digest, roll
from conversations.documents import DEFAULTS, Document, field_digests, fields_digest
from conversations.exceptions import UnreadableState
from conversations.locking import deleted, lock
from conversations.merge import Entry
from conversations.models import UNVERIFIED, ConversationConflict, ConversationState
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import NormalizedStore
from conversations.stores.registry import configured_store
from conversations.transactions import attempt, translated
from conversations.truth import Numbers, Truth, verdict


class Kind(StrEnum):
    """Where a conversation stands, or what is wrong with it."""

    EQUAL = "equal in both stores"
    TABLES_ONLY = "in the tables only"
    LEGACY_BEHIND = "legacy is behind"
    # Legacy has something that the tables get at the next write, load or sync.
    PENDING = "pending: legacy is ahead, or somebody else wrote into it"
    DELETED = "deleted; legacy holds a late write of it"
    QUARANTINED = "has a blob that was set aside"
    MISSING_IN_TABLES = "missing in the tables"
    MISSING_IN_LEGACY = "missing in legacy"
    DIFFERENT = "different in the two stores"
    DIGEST_LIES = "rows that differ from their digests or counts"
    UNREADABLE = "unreadable"
    UNKNOWN = "in no store"
    FAILED = "not verified"


MISMATCHES = frozenset(
    {
        Kind.MISSING_IN_TABLES,
        Kind.MISSING_IN_LEGACY,
        Kind.DIFFERENT,
        Kind.DIGEST_LIES,
        Kind.UNREADABLE,
    }
)
FAILURES = frozenset({Kind.UNKNOWN, Kind.FAILED})
IN_ORDER = frozenset({Kind.EQUAL, Kind.TABLES_ONLY, Kind.LEGACY_BEHIND, Kind.DELETED})


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found of one conversation: kinds, and the places that are meant."""

    conversation_id: str
    kinds: tuple[Kind, ...]
    places: tuple[str, ...] = ()

    @property
    def mismatched(self) -> bool:
        """Whether the stores do not hold what they should."""
        return not MISMATCHES.isdisjoint(self.kinds)

    @property
    def in_order(self) -> bool:
        """Whether the tables hold the latest content, and what legacy holds agrees with it."""
        return set(self.kinds) <= IN_ORDER

    @property
    def failed(self) -> bool:
        """Whether the conversation could not be verified."""
        return not FAILURES.isdisjoint(self.kinds)


def unverified() -> QuerySet[ConversationState]:
    """Return the rows of conversations that were written since they were last verified."""
    return ConversationState.rows.using(conf.alias()).filter(UNVERIFIED)


def verify(ids: Iterable[str] | None = None) -> Iterator[Verified]:
    """Verify every conversation, or those named; yield what was found of each.

    Every version in the tables is digested again and held against the stored digests and
    counts. Where the numbers say that both stores are equal, legacy's document is held
    against the tables: by digests, and where these differ, or where a JSON column changes
    digests, by the data. Takes no lock, unless something looks wrong: then it is looked at
    once more under the conversation's lock, so that no write in progress is reported.

    What was found in order is noted in its row, until the next write: see `unverified`.
    """
    legacy, tables = configured_store(), NormalizedStore()
    for conversation_id in conversation_ids(ids):
        check = _Check(conversation_id, legacy, tables)
        try:
            with translated(conversation_id), attempt():
                found = check.run()
                if found.mismatched:
                    with transaction.atomic(using=conf.alias()):
                        lock(conversation_id)
                        found = check.run()
                check.note(found)
        except Exception as error:  # noqa: BLE001 - a host's functions may raise anything
            failure(conversation_id, error)
            found = Verified(conversation_id, (Kind.FAILED,), (type(error).__name__,))
        yield found


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
        lies = list(_lies(row, versions, items, self.tables.fields(row)))
        kind, places = self._against_legacy(row, versions, items)
        kinds = [kind]
        if lies:
            kinds.append(Kind.DIGEST_LIES)
        if self._has_quarantined(row):
            kinds.append(Kind.QUARANTINED)
        return self._verified(*kinds, places=[*places, *lies])

    def note(self, found: Verified) -> None:
        """Note in the row, unless it was written meanwhile, whether it is in order."""
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
        known = row.legacy_token
        matches = self.legacy.token(self.conversation_id, known) == known
        truth = verdict(Numbers(row.revision, row.legacy_revision), token_matches=matches)
        if truth in (Truth.MERGE, Truth.LEGACY):
            return Kind.PENDING, ()
        if truth == Truth.NORMALIZED:
            return (Kind.LEGACY_BEHIND if row.legacy_revision else Kind.TABLES_ONLY), ()
        try:
            stored = self.legacy.load(self.conversation_id)
        except UnreadableState:
            return Kind.UNREADABLE, ("legacy",)
        if stored is None:
            return Kind.MISSING_IN_LEGACY, ()
        current = [entry.value for entry in versions if entry.superseded_in is None]
        ours = Document(self.tables.fields(row), current, [entry.value for entry in items])
        places = list(differences(ours, stored.document, exact=self.legacy.exact))
        return (Kind.DIFFERENT, places) if places else (Kind.EQUAL, ())


def _lies(
    row: ConversationState,
    versions: Sequence[Entry],
    items: Sequence[Entry],
    fields: dict[str, Any],
) -> Iterator[str]:
    """Yield the places whose stored digest or count is not that of the rows."""
    current = [entry for entry in versions if entry.superseded_in is None]
    for entry in versions:
        if digest_of(entry.value) != entry.digest:
            yield f"messages: sequence {entry.identity}, version of revision {entry.added_in}"
        if max(entry.added_in, entry.superseded_in or 0) > row.revision:
            yield f"messages: sequence {entry.identity}, later than revision {row.revision}"
    for place, item in enumerate(items):
        if digest_of(item.value) != item.digest:
            yield f"memory_context[{place}]"
    stored, state = bytes(row.messages_digest), bytes(row.state_digest)
    if stored != roll(EMPTY, [entry.digest for entry in current]):
        yield "messages_digest"
    if state[:DIGEST_BYTES] != fields_digest(field_digests(fields)):
        yield "state_digest of the fields"
    if state[DIGEST_BYTES:] != roll(EMPTY, [entry.digest for entry in items]):
        yield "state_digest of the context items"
    if row.message_count != len(current):
        yield f"message_count {row.message_count} for {len(current)} messages"
    if row.context_item_count != len(items):
        yield f"context_item_count {row.context_item_count} for {len(items)} items"
    if any((entry.identity or 0) >= row.next_sequence for entry in versions):
        yield f"next_sequence {row.next_sequence}"


def differences(ours: Document, theirs: Document, *, exact: bool) -> Iterator[str]:
    """Yield the places where two documents differ.

    With `exact` False, what a JSON column cannot tell apart is equal. Names that only the
    conversation itself knows are content: they are counted.
    """
    digest = digest_of if exact else loose_digest
    for name, mine, other in (
        ("conversation_history", ours.messages, theirs.messages),
        ("memory_context", ours.items, theirs.items),
    ):
        if len(mine) != len(other):
            yield f"{name}: {len(mine)} in the tables, {len(other)} in legacy"
        for place, (left, right) in enumerate(zip(mine, other, strict=False)):
            if digest(left) != digest(right):
                yield f"{name}[{place}]"
                break
    names = [*ours.fields, *(name for name in theirs.fields if name not in ours.fields)]
    differing = [
        name
        for name in names
        if (name in ours.fields) != (name in theirs.fields)
        or digest(ours.fields.get(name)) != digest(theirs.fields.get(name))
    ]
    yield from (name for name in differing if name in DEFAULTS)
    unknown = sum(name not in DEFAULTS for name in differing)
    if unknown:
        yield f"unknown fields: {unknown}"
    if exact and list(ours.fields) != list(theirs.fields):
        yield "order of the fields"
