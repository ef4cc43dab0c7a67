"""Every conversation as a line of JSON, and lines back into the tables, without loss.

What comes back is what a load gives, and with it owner, origin, times, and each message's
sequence and key: export, import into an empty database and export again give the same bytes.

Not carried: superseded versions, records of merges, redaction hashes, tombstones and metadata
rows, and revisions, which begin again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from django.contrib.auth import get_user_model
from django.db import transaction

from conversations import conf, redactions
from conversations.exceptions import InvalidOwner, InvalidState, UnreadableState
from conversations.formats.reading import BadLine
from conversations.formats.records import Record, parsed, record_of
from conversations.formats.snapshots import snapshot, snapshots
from conversations.formats.together import TOGETHER_BYTES, created_together
from conversations.formats.writing import create, join, overwrite
from conversations.locking import deleted, lock
from conversations.models import ConversationState
from conversations.owners import owner_key, same_owner, user_exists
from conversations.stores.registry import legacy_store
from conversations.transactions import translated


class Result(StrEnum):
    """What became of one line."""

    CREATED = "created"
    # It is here already, with the same content.
    UNCHANGED = "unchanged"
    REPLACED = "replaced"
    # It is here with other content, or its owner is not here: nothing was written.
    REFUSED = "refused"
    # It was deleted here, and its id is never used again.
    DELETED = "deleted"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class ImportOutcome:
    """What became of the line with this number (from 1).

    `reason` says why, naming places and never content; "" where there is nothing to say.
    `conversation_id` is None when the line is invalid.
    """

    line: int
    conversation_id: str | None
    result: Result
    reason: str = ""


def export_lines(ids: Iterable[str] | None = None) -> Iterator[str]:
    """Yield a line, without its end, for every conversation, or for those named.

    Each is as of one revision, wherever its truth is; what old code wrote meanwhile is merged
    first, as at a load. Lines come by the age of the rows, so that the origin of a fork is
    before it, then those that only legacy holds; named ones in the order of the names. One
    conversation is in memory at a time.

    Raises: ConversationNotFound for a named id that is missing or deleted, StorageUnavailable
    (also for what is unreadable): an export with holes would be taken for a whole one.
    """
    for record in snapshots(ids):
        yield record.to_line()


def import_lines(
    lines: Iterable[str], *, replace: bool = False, dry_run: bool = False, together: int = 1
) -> Iterator[ImportOutcome]:
    """Bring lines of `export_lines` into the tables; yield what became of each.

    A line is checked whole before anything of it is written, and written in one transaction,
    whatever the switches say: the tables are then the truth of it. Blank lines are passed
    over. A conversation that is here with equal content (state, sequences, keys) stays as it
    is, so a broken-off import can be run again. With other content it is refused; with
    `replace` it becomes what the line says, and its messages that differ are superseded. Its
    owner never changes, what was deleted stays deleted, and what was redacted here stays so.

    The origin of a fork may come behind it: the two are joined when both are here. With
    `dry_run` nothing is kept, so each line is judged as if it were the only one.

    `together` is how many lines are read ahead, up to some megabytes, so that those that are new
    here are written in one transaction: six times as fast with 100 of them. Where that fails,
    each is written by itself.

    Raises: StorageUnavailable when a store does not answer; the lines before are written.
    """
    return import_records(_records(lines), replace=replace, dry_run=dry_run, together=together)


def import_records(
    records: Iterable[tuple[int, Record] | BadLine],
    *,
    replace: bool = False,
    dry_run: bool = False,
    together: int = 1,
) -> Iterator[ImportOutcome]:
    """Bring what `read_records` found into the tables, as `import_lines` does.

    A chat names no places, so its messages are numbered from 1, and no times, so it is new.
    Its owner is the user of that name, or nobody.
    """
    imports = _Imports(replace=replace, dry_run=dry_run)
    for batch in _batches(records, together=together):
        yield from imports.outcomes(batch)


def _records(lines: Iterable[str]) -> Iterator[tuple[int, Record] | BadLine]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, replace(record_of(parsed(line)), size=len(line))
        except InvalidState as error:
            yield BadLine(number, str(error))


def _batches(
    records: Iterable[tuple[int, Record] | BadLine], *, together: int
) -> Iterator[list[tuple[int, Record] | BadLine]]:
    """Yield up to `together` lines, and up to so many bytes, each conversation once."""
    batch: list[tuple[int, Record] | BadLine] = []
    ids: set[str] = set()
    size = 0
    for found in records:
        record = None if isinstance(found, BadLine) else found[1]
        if record is not None and record.conversation_id in ids:
            yield batch
            batch, ids, size = [], set(), 0
        batch.append(found)
        if record is not None:
            ids.add(record.conversation_id)
            size += record.size
        if len(batch) >= together or size >= TOGETHER_BYTES:
            yield batch
            batch, ids, size = [], set(), 0
    if batch:
        yield batch


class _Refused(Exception):
    """The line cannot be written; the message is the reason."""


@dataclass(slots=True)
class _Imports:
    """A run over lines: it remembers only the forks whose origin has not come yet."""

    replace: bool
    dry_run: bool
    waiting: dict[str, set[str]] = field(default_factory=dict)

    def outcomes(self, batch: Sequence[tuple[int, Record] | BadLine]) -> Iterator[ImportOutcome]:
        """Yield what became of each line."""
        created: Collection[str] = ()
        if not self.dry_run:
            records = [found[1] for found in batch if not isinstance(found, BadLine)]
            created = created_together([one for one in records if self._stands_alone(one)])
        for found in batch:
            if isinstance(found, BadLine):
                reason = f"line {found.number}: {found.reason}"
                yield ImportOutcome(found.number, None, Result.INVALID, reason)
            elif found[1].conversation_id in created:
                yield ImportOutcome(found[0], found[1].conversation_id, Result.CREATED)
            else:
                yield self.outcome(*found)

    def _stands_alone(self, record: Record) -> bool:
        """Whether a conversation is no fork, and no fork of it waits."""
        return record.forked_from is None and record.conversation_id not in self.waiting

    def outcome(self, number: int, record: Record) -> ImportOutcome:
        conversation_id = record.conversation_id
        try:
            result, reason = self._import(record)
        except _Refused as refusal:
            result, reason = Result.REFUSED, str(refusal)
        except UnreadableState:
            result, reason = Result.REFUSED, "legacy holds something unreadable under this id"
        return ImportOutcome(number, conversation_id, result, reason)

    def _import(self, record: Record) -> tuple[Result, str]:
        conversation_id = record.conversation_id
        with translated(conversation_id), transaction.atomic(using=conf.alias()):
            row = lock(conversation_id)
            if row is None and deleted(conversation_id):
                return Result.DELETED, "it was deleted here"
            result = self._write(record, row)
            if self.dry_run:
                transaction.set_rollback(True, using=conf.alias())
                return result, ""
            return result, self._joined(record)

    def _write(self, record: Record, row: ConversationState | None) -> Result:
        owner = _owner_of(record)
        record = _redacted(record, row)
        legacy = legacy_store()
        # Before legacy is read: a blob that comes in between is not taken for one we know.
        seen = legacy.survey(record.conversation_id, "") if legacy and row is None else ""
        found = snapshot(record.conversation_id)
        if found is None:
            create(record, owner, seen=seen)
            return Result.CREATED
        # A chat that names no user who is here says nothing of the owner.
        silent = record.places is None and owner is None
        if not silent and not same_owner(owner, found.owner or found.legacy_user):
            raise _Refused("it belongs to another owner here, or to none")
        if _equal(record, found):
            return Result.UNCHANGED
        if not self.replace:
            raise _Refused("it is here with other content")
        overwrite(record)
        return Result.REPLACED

    def _joined(self, record: Record) -> str:
        """Join a conversation to its origin, and to its forks. Returns: what is missing."""
        for fork in sorted(self.waiting.pop(record.conversation_id, ())):
            join(fork, record.conversation_id)
        if record.forked_from is None or join(record.conversation_id, record.forked_from):
            return ""
        self.waiting.setdefault(record.forked_from, set()).add(record.conversation_id)
        return "the conversation it was forked from is not here yet"


def _owner_of(record: Record) -> str | None:
    """Return the owner's key. Raises: _Refused for a user who is not here."""
    if record.username is not None:
        return _owner_named(record.username)
    name = "user" if record.legacy_user is None else "legacy_user"
    try:
        owner = owner_key(record.owner or record.legacy_user, required=False)
    except InvalidOwner:
        raise _Refused(f"{name}: can be no user's primary key here") from None
    if record.owner is not None and owner is not None and not user_exists(owner):
        raise _Refused("user: there is no such user here")
    return owner


def _owner_named(username: str) -> str | None:
    model: Any = get_user_model()
    users = model._base_manager.using(conf.alias())
    key = users.filter(**{model.USERNAME_FIELD: username}).values_list("pk", flat=True).first()
    return None if key is None else str(key)


def _redacted(record: Record, row: ConversationState | None) -> Record:
    """Return the record with what was redacted here, or in its origin, in its redacted form."""
    known = dict(redactions.of(row))
    if record.forked_from is not None:
        rows = ConversationState.rows.using(conf.alias())
        known |= redactions.of(rows.filter(conversation_id=record.forked_from).first())
    document = redactions.applied_to(record.document, known)
    return record if document is None else replace(record, document=document)


def _equal(record: Record, found: Record) -> bool:
    """Whether what is here has the content of the record, at the same places if it has any."""
    one, other = record.document, found.document
    if (one.state_digest, one.messages_digest) != (other.state_digest, other.messages_digest):
        return False
    if record.places is None or found.places is None:
        return True
    named = [(place.sequence, place.key) for place in record.places]
    return named == [(place.sequence, place.key) for place in found.places]
