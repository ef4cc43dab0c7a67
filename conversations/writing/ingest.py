"""Ingest legacy's content: our own last write exactly, and old code's writes by a merge.

The merge only adds.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any

from conversations import conf
from conversations.content import redaction
from conversations.content.changes.change import Change
from conversations.content.digests import digest_of
from conversations.content.document import Document
from conversations.content.entries import Entry, entries_of
from conversations.content.merge import merge_foreign
from conversations.exceptions import UnreadableState
from conversations.models import ConversationConflict, ConversationState, SyncBatch, SyncRun
from conversations.routing.owners import owner_columns, same_owner
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import NormalizedStore, owner_of, redactions_of, replaced
from conversations.stores.types import ForeignBlob, Stored
from conversations.writing.json_columns import restored
from flags import records
from flags.texts import shown

logger = logging.getLogger("conversations")


def take_legacy(
    tables: NormalizedStore, legacy: LegacyStore, row: ConversationState, *, now: datetime
) -> None:
    """Replace the tables' content by that of legacy, which is ahead.

    A vanished blob, or one of another owner, leaves the tables' content in place.
    """
    stored = last_write(legacy, row)
    if stored is None and legacy.token(row.conversation_id, row.legacy_token) != row.legacy_token:
        merge(tables, legacy, row, now=now)
        return
    if stored is None:
        logger.error(
            "conversation %s: legacy revision %s vanished; the tables hold revision %s",
            shown(row.conversation_id),
            row.legacy_revision,
            row.revision,
        )
        tables.write(row, Change(), revision=row.legacy_revision + 1, now=row.updated_at)
        return
    _take_last_write(tables, legacy, row, stored, now=now)


def _take_last_write(
    tables: NormalizedStore,
    legacy: LegacyStore,
    row: ConversationState,
    stored: Stored,
    *,
    now: datetime,
) -> None:
    """Replace the tables' content by our last write, which only legacy holds."""
    document = restored(tables, legacy, row, stored).document
    known = redactions_of(row)
    if known:
        document = redaction.applied_to(document, known) or document
    columns = {}
    if owner_of(row) is None and stored.owner is not None:
        # It had no owner until now. Old code would show it to this user alone.
        columns = owner_columns(stored.owner)
    written = active_at(stored, row, now)
    tables.take(row, document, revision=row.legacy_revision, now=written, columns=columns)


def last_write(legacy: LegacyStore, row: ConversationState) -> Stored | None:
    """Return our own last write as legacy holds it, None where it is gone.

    Raises: UnreadableState, also when another owner has it now.
    """
    stored = legacy.last_ours(
        row.conversation_id, revision=row.legacy_revision, known=row.legacy_token
    )
    owner = owner_of(row)
    if stored is None or stored.owner is None or owner is None or same_owner(stored.owner, owner):
        return stored
    raise UnreadableState(
        f"legacy {shown(stored.reference)} belongs to another owner.",
        reason_class="other_owner",
    )


def check_takable(legacy: LegacyStore, row: ConversationState, *, foreign: bool) -> None:
    """Raise the error that ingesting legacy's newer content would raise; read only.

    `foreign`: old code wrote as well. A fault in one of its blobs only sets that blob aside.
    """
    if not foreign or row.legacy_revision > row.revision:
        last_write(legacy, row)


def merge(
    tables: NormalizedStore, legacy: LegacyStore, row: ConversationState, *, now: datetime
) -> None:
    """Merge every blob of old code into the tables, under the conversation's lock.

    Afterwards `row` has legacy's current token. Unreadable blobs, blobs of another owner and empty
    states are set aside with a reason.
    """
    if row.legacy_revision > row.revision:
        # Our own last write went to legacy alone. If legacy still keeps it, ingest it first: old
        # code may have written its blob without reading it.
        own = last_write(legacy, row)
        if own is not None:
            _take_last_write(tables, legacy, row, own, now=now)
    foreign_ids = legacy.foreign_ids(row.conversation_id, row.legacy_token)
    quarantined: list[str] = []
    equal = False
    known = redactions_of(row)
    for blob in legacy.list_foreign(row.conversation_id, row.legacy_token, foreign_ids):
        blob, foreign_ids = _redacted(legacy, row, blob, foreign_ids, known)
        problem = _problem(blob, row)
        if problem:
            quarantined.append(blob.reference)
            _record(row, ConversationConflict.Kind.QUARANTINED, problem, blob, {}, now)
            equal = False
            continue
        equal = _take(tables, legacy, row, blob, now=now)
    # Where the tables and legacy now differ, the tables get the higher number. This also holds
    # when old code overwrote our own last write in legacy. A blob set aside is never the truth.
    revision = row.revision
    if row.revision <= row.legacy_revision and not equal:
        revision = row.legacy_revision + 1
    token = legacy.mark_ingested(
        row.conversation_id,
        revision=revision,
        known=row.legacy_token,
        foreign_ids=foreign_ids,
        quarantined=quarantined,
    )
    columns: dict[str, Any] = {"legacy_token": token, "foreign_written_at": now}
    if equal:
        revision = max(row.revision, row.legacy_revision)
        columns["legacy_revision"] = revision
    tables.write(row, Change(columns=columns), revision=revision, now=row.updated_at)


def active_at(stored: Stored, row: ConversationState, now: datetime) -> datetime:
    """Return when the conversation was last active: the time of the blob, not of the ingest.

    A time in the future comes from another clock, and counts as now.
    """
    return max(row.updated_at, min(stored.updated_at or now, now))


class Newcomers:
    """The conversations that old code created in a legacy without times, since the last full sync.

    A sync that began after every save wrote the tables has passed all of legacy. A conversation
    that only legacy holds after it is new, unless that sync failed on it. Read once, when needed.
    """

    def __contains__(self, conversation_id: str) -> bool:
        return self._left is not None and conversation_id not in self._left

    @cached_property
    def _left(self) -> frozenset[str] | None:
        """Return the conversations on which that sync failed, None without such a sync."""
        since = records.tables_written_since()
        if since is None:
            return None
        runs = SyncRun.rows.using(conf.alias()).filter(target=_TABLES, state=SyncRun.State.FINISHED)
        run = runs.filter(started_at__gte=since).order_by("-pk").first()
        if run is None:
            return None
        batches = SyncBatch.rows.using(conf.alias()).filter(run=run, failed__gt=0)
        noted = batches.values_list("noted", flat=True)
        return frozenset(name for each in noted for name, *_ in json.loads(each))


# The target of a sync to the tables.
_TABLES = "tables"


def appeared_at(
    conversation_id: str, stored: Stored, newcomers: Newcomers, *, now: datetime
) -> datetime | None:
    """Return when old code may have written content that the tables now ingest first.

    That is legacy's own time, where it has one; `findings` judges whether it is evidence.
    """
    if stored.updated_at is not None:
        return min(stored.updated_at, now)
    return now if conversation_id in newcomers else None


# The reasons to set a blob aside, and the class of each.
UNREADABLE, OTHER_OWNER, EMPTY = "unreadable", "written for another owner", "an empty state"
_CLASSES = {UNREADABLE: "unreadable", OTHER_OWNER: "other_owner", EMPTY: "empty"}


def quarantine_class(reason: str) -> str:
    """Return the class of the reason for which a blob was set aside, a stable slug."""
    return _CLASSES.get(reason.split(":", 1)[0], "other")


# The digest of a conversation with default fields and no items.
NOTHING = Document.from_dict({}).state_digest


def _problem(blob: ForeignBlob, row: ConversationState) -> str:
    """Return why a blob must not replace good data, or ""."""
    if blob.stored is None:
        return f"{UNREADABLE}: {blob.problem}"
    owner = owner_of(row)
    # Old code may give a conversation without an owner to a user. But if legacy never held it, old
    # code never read it. Then the blob is another conversation, begun under this id during an
    # outage of the tables.
    given_away = owner is None and row.legacy_revision > 0
    if blob.owner is not None and not given_away and not same_owner(blob.owner, owner):
        return OTHER_OWNER
    nothing = not row.message_count and bytes(row.state_digest) == NOTHING
    if blob.stored.document.empty and not nothing:
        return EMPTY
    return ""


def _redacted(
    legacy: LegacyStore,
    row: ConversationState,
    blob: ForeignBlob,
    foreign_ids: str,
    known: redaction.Redactions,
) -> tuple[ForeignBlob, str]:
    """Redact the texts that were redacted in this conversation, in legacy as well.

    Returns: the blob and the note of foreign ids, after that.
    """
    if blob.stored is None:
        return blob, foreign_ids
    document = redaction.applied_to(blob.stored.document, known)
    if document is None:
        return blob, foreign_ids
    foreign_ids = legacy.correct(row.conversation_id, blob.reference, document, foreign_ids)
    return replace(blob, stored=replace(blob.stored, document=document)), foreign_ids


def _take(
    tables: NormalizedStore,
    legacy: LegacyStore,
    row: ConversationState,
    blob: ForeignBlob,
    *,
    now: datetime,
) -> bool:
    """Merge one blob. Returns: whether the tables and the blob are now equal."""
    assert blob.stored is not None
    document = restored(tables, legacy, row, blob.stored).document
    versions = tables.versions(row)
    by_row = {entry.row: entry for entry in versions}
    current = [by_row[entry.row] for entry in tables.messages(row, values=False)]
    theirs = entries_of(document.messages)
    fields = tables.fields(row)
    items = tables.items(row)[0] if row.context_item_count else []
    their_items, their_fields = entries_of(document.items), document.fields
    merged = merge_foreign(versions=versions, current=current, theirs=theirs)
    change = Change()
    if owner_of(row) is None and blob.owner is not None:
        # It had no owner until now. Old code would show it to this user alone.
        change.columns = owner_columns(blob.owner)
    if merged.added:
        change.messages = (current, merged.entries)
    ahead = row.revision > row.legacy_revision
    same_fields = digest_of(list(fields.items())) == digest_of(list(their_fields.items()))
    same_items = [e.digest for e in items] == [e.digest for e in their_items]
    kept: dict[str, Any] = {}
    if not same_fields:
        if ahead:
            kept["fields"] = their_fields
        else:
            change.fields = their_fields
    if not same_items:
        if ahead:
            kept["items"] = [entry.value for entry in their_items]
        else:
            change.items = (items, replaced(items, their_items))
    if merged.omitted or kept:
        detail = {"added": merged.added, "omitted": merged.omitted, **kept}
        reason = "the tables were ahead" if kept else "old code left messages out"
        _record(row, ConversationConflict.Kind.MERGED, reason, blob, detail, now)
    if not change.nothing:
        revision = max(row.revision, row.legacy_revision) + 1
        tables.write(row, change, revision=revision, now=active_at(blob.stored, row, now))
    digests = [entry.digest for entry in merged.entries]
    return not kept and digests == [entry.digest for entry in theirs]


def _record(
    row: ConversationState,
    kind: ConversationConflict.Kind,
    reason: str,
    blob: ForeignBlob,
    detail: dict[str, Any],
    now: datetime,
) -> None:
    ConversationConflict.rows.using(conf.alias()).create(
        conversation_id=row.pk,
        kind=kind,
        reason=reason[:255],
        revision=row.revision,
        detail=json.dumps({"legacy": blob.reference, **detail}),
        created_at=now,
    )
    logger.warning(
        "conversation %s: legacy blob %s %s: %s",
        shown(row.conversation_id),
        shown(blob.reference),
        kind,
        reason,
    )


def record_overwritten(
    row: ConversationState, overwritten: Sequence[Entry], *, now: datetime
) -> None:
    """Report the edits that a later edit superseded: sequences and versions, no content."""
    ConversationConflict.rows.using(conf.alias()).bulk_create(
        [
            ConversationConflict(
                conversation_id=row.pk,
                kind=ConversationConflict.Kind.OVERWRITTEN,
                reason="two writers edited one message; the later one stands",
                revision=row.revision,
                detail=json.dumps({"sequence": entry.identity, "message": entry.row}),
                created_at=now,
            )
            for entry in overwritten
        ]
    )
