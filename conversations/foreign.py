"""Taking in what legacy holds: our own last write exactly, and old code's by a merge.

The merge can add, and never removes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from django.db import Error

from conversations import conf, redactions
from conversations.digests import digest_of, loose_digest, same_values
from conversations.documents import Document
from conversations.exceptions import UnreadableState
from conversations.merge import Entry, entries_of, merge_foreign
from conversations.models import ConversationConflict, ConversationState
from conversations.owners import owner_columns, same_owner
from conversations.stores.base import Foreign, LegacyStore, Stored
from conversations.stores.normalized import Change, NormalizedStore, owner_of, replaced
from conversations.transactions import attempt, lost

logger = logging.getLogger("conversations")


def take_legacy(
    tables: NormalizedStore, legacy: LegacyStore, row: ConversationState, *, now: datetime
) -> None:
    """Make the tables hold exactly what legacy, which is ahead, holds.

    A blob that vanished, or that is another owner's, never replaces what the tables have.
    """
    stored = legacy.held(row.conversation_id, revision=row.legacy_revision, known=row.legacy_token)
    if stored is None and legacy.token(row.conversation_id, row.legacy_token) != row.legacy_token:
        merge(tables, legacy, row, now=now)
        return
    if stored is None:
        logger.error(
            "conversation %s: legacy revision %s vanished; the tables hold revision %s",
            row.conversation_id,
            row.legacy_revision,
            row.revision,
        )
        tables.write(row, Change(), revision=row.legacy_revision + 1, now=row.updated_at)
        return
    if stored.owner is not None and not same_owner(stored.owner, owner_of(row)):
        raise UnreadableState(
            f"legacy {stored.reference} belongs to another owner.", reason_class="other_owner"
        )
    document = restored(tables, legacy, row, stored).document
    known = redactions.of(row)
    if known:
        document = redactions.applied_to(document, known) or document
    written = active_at(stored, row, now)
    tables.take(row, document, revision=row.legacy_revision, now=written)


def merge(
    tables: NormalizedStore, legacy: LegacyStore, row: ConversationState, *, now: datetime
) -> None:
    """Take every blob that somebody else wrote into the tables, under the conversation's lock.

    Afterwards `row` knows legacy as it is now. Unreadable blobs, blobs of another owner and
    empty states are set aside with a reason.
    """
    if row.legacy_revision > row.revision:
        # Our own last write went to legacy alone. Where legacy still keeps it beside the
        # other's, take it in first, so that nothing of it depends on what old code read.
        own = legacy.held(row.conversation_id, revision=row.legacy_revision, known=row.legacy_token)
        if own is not None:
            own = restored(tables, legacy, row, own)
            written = active_at(own, row, now)
            tables.take(row, own.document, revision=row.legacy_revision, now=written)
    seen = legacy.survey(row.conversation_id, row.legacy_token)
    quarantined: list[str] = []
    equal = False
    known = redactions.of(row)
    for blob in legacy.foreign(row.conversation_id, row.legacy_token, seen):
        blob, seen = _redacted(legacy, row, blob, seen, known)
        problem = _problem(blob, row)
        if problem:
            quarantined.append(blob.reference)
            _record(row, ConversationConflict.Kind.QUARANTINED, problem, blob, {}, now)
            equal = False
            continue
        equal = _take(tables, legacy, row, blob, now=now)
    # Legacy now holds something else than the tables: let their number say so, also where our
    # own last write went to legacy alone and was overwritten there. What was set aside is never
    # the truth.
    revision = row.revision
    if row.revision <= row.legacy_revision and not equal:
        revision = row.legacy_revision + 1
    token = legacy.settle(
        row.conversation_id,
        revision=revision,
        known=row.legacy_token,
        seen=seen,
        quarantined=quarantined,
    )
    columns: dict[str, Any] = {"legacy_token": token, "foreign_written_at": now}
    if equal:
        revision = max(row.revision, row.legacy_revision)
        columns["legacy_revision"] = revision
    tables.write(row, Change(columns=columns), revision=revision, now=row.updated_at)


def active_at(stored: Stored, row: ConversationState, now: datetime) -> datetime:
    """Return when the conversation was last active: taking a blob in is no activity.

    A blob of the future was written by another clock.
    """
    return max(row.updated_at, min(stored.updated_at or now, now))


# Why a blob must not replace good data, and the class of each such reason.
UNREADABLE, OTHER_OWNER, EMPTY = "unreadable", "written for another owner", "an empty state"
_CLASSES = {UNREADABLE: "unreadable", OTHER_OWNER: "other_owner", EMPTY: "empty"}


def quarantine_class(reason: str) -> str:
    """Return the class of the reason for which a blob was set aside, a stable slug."""
    return _CLASSES.get(reason.split(":", 1)[0], "other")


# The digests of a conversation that says nothing.
NOTHING = Document.from_dict({}).state_digest + Document.from_dict({}).messages_digest


def _problem(blob: Foreign, row: ConversationState) -> str:
    """Return why a blob must not replace good data, or ""."""
    if blob.stored is None:
        return f"{UNREADABLE}: {blob.problem}"
    owner = owner_of(row)
    if None not in (blob.owner, owner) and not same_owner(blob.owner, owner):
        return OTHER_OWNER
    ours = bytes(row.state_digest) + bytes(row.messages_digest)
    if blob.stored.document.empty and ours != NOTHING:
        return EMPTY
    return ""


def _redacted(
    legacy: LegacyStore,
    row: ConversationState,
    blob: Foreign,
    seen: str,
    known: redactions.Redactions,
) -> tuple[Foreign, str]:
    """Put what was redacted in this conversation into its redacted form, in legacy as well.

    Returns: the blob, and the note of what was seen, as they are now.
    """
    if blob.stored is None:
        return blob, seen
    document = redactions.applied_to(blob.stored.document, known)
    if document is None:
        return blob, seen
    seen = legacy.correct(row.conversation_id, blob.reference, document, seen)
    return replace(blob, stored=replace(blob.stored, document=document)), seen


def _take(
    tables: NormalizedStore,
    legacy: LegacyStore,
    row: ConversationState,
    blob: Foreign,
    *,
    now: datetime,
) -> bool:
    """Merge one blob. Returns: whether the tables now hold exactly what the blob holds."""
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
        # Nobody's until now: old code would show it to this user alone.
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


def restored(
    tables: NormalizedStore, legacy: LegacyStore, row: ConversationState, stored: Stored
) -> Stored:
    """Return what legacy holds with what a JSON column changed put back, as far as it is known.

    Key order, 1.0 and -0.0 are as the tables have them, so that a message is the same in both.
    """
    if legacy.exact:
        return stored
    document = stored.document
    try:
        with attempt():
            items = tables.items(row)[0] if row.context_item_count else []
            exact = Document(
                _exact_fields(document.fields, tables.fields(row)),
                _exact(document.messages, tables.versions(row, values=True)),
                _exact(document.items, items),
            )
    except Error:
        if lost(conf.alias()):
            raise
        return stored
    return replace(stored, document=exact)


def _exact(theirs: Sequence[Any], known: Sequence[Entry]) -> list[Any]:
    """Return values as they are known, by turns where several look alike: {"n": 1}, {"n": 1.0}."""
    digests = [loose_digest(entry.value) for entry in known]
    alike: dict[bytes, list[Any]] = {}
    for digest, entry in zip(digests, known, strict=True):
        if entry.superseded_in is None:
            alike.setdefault(digest, []).append(entry.value)
    # Where none of them is current, the latest one.
    for digest, entry in zip(reversed(digests), reversed(known), strict=True):
        alike.setdefault(digest, [entry.value])
    exact = []
    for value in theirs:
        like = alike.get(loose_digest(value), [value])
        if len(like) == 1:
            # The last one stands for all that come behind.
            exact.append(like[0])
            continue
        # Mostly 1.0 comes back as it is.
        places = (place for place, each in enumerate(like) if same_values(each, value))
        exact.append(like.pop(next(places, 0)))
    return exact


def _exact_fields(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Undo what a JSON column did to fields that we know, and to their order."""
    known = {
        name: value
        for name, value in ours.items()
        if name in theirs and loose_digest(theirs[name]) == loose_digest(value)
    }
    ordered = [name for name in ours if name in theirs] + [n for n in theirs if n not in ours]
    return {name: known.get(name, theirs[name]) for name in ordered}


def _record(
    row: ConversationState,
    kind: ConversationConflict.Kind,
    reason: str,
    blob: Foreign,
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
        "conversation %s: legacy blob %s %s: %s", row.conversation_id, blob.reference, kind, reason
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
