"""Lines of our own format, and chats of other products, into the tables.

Our own format restores all that a load returns, with the owner, the origin, the times, and each
message's sequence and key. So an export, an import into an empty database and another export give
the same bytes.

Not carried: superseded versions, records of merges, redaction hashes, tombstones and metadata
rows, and revisions, which begin again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from django.db import transaction

from conversations import conf
from conversations.content import redaction
from conversations.content.digests import digest_of
from conversations.exceptions import InvalidState, UnreadableState
from conversations.formats.bulk_import import TOGETHER_BYTES, create_many
from conversations.formats.ownership import Owners, Refused, owner_of
from conversations.formats.reading import BadLine, Read
from conversations.formats.records import Record, parsed, record_of
from conversations.formats.snapshots import snapshot
from conversations.formats.writing import create, join, overwrite
from conversations.models import ConversationState
from conversations.routing.locks import deleted, lock
from conversations.routing.owners import same_owner
from conversations.routing.standing import decide, in_transaction
from conversations.stores.normalized import redactions_of


class Result(StrEnum):
    """The result of one conversation of a file."""

    CREATED = "created"
    # The database holds it already, with the same content.
    UNCHANGED = "unchanged"
    REPLACED = "replaced"
    # The database holds it with other content or another owner, or does not know its owner:
    # nothing was written.
    REFUSED = "refused"
    # It was deleted in this database, and its id is never used again.
    DELETED = "deleted"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class ImportOutcome:
    """The result of the conversation that begins in this line (from 1).

    `reason` explains the result, with places and never content; "" if there is nothing to explain.
    `conversation_id` is None if the line is invalid. `place` is its place in an array or among one
    user's chats. `reason_class` is a slug: "invalid", "unknown_owner", "no_owner", "other_owner",
    "other_content", "unreadable", "deleted" or "". `ownerless`: it was created without an owner.
    """

    line: int
    conversation_id: str | None
    result: Result
    reason: str = ""
    place: str = field(default="", compare=False)
    reason_class: str = field(default="", compare=False)
    ownerless: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of an import.

    `replace`: the file's content replaces other content in the database. `any_owner`: also in a
    conversation that has another owner in the database, and keeps that owner. `dry_run`: nothing
    is kept.
    """

    owners: Owners = field(default_factory=Owners)
    replace: bool = False
    any_owner: bool = False
    dry_run: bool = False


def import_lines(
    lines: Iterable[str],
    *,
    replace: bool = False,
    dry_run: bool = False,
    together: int = 1,
    owners: Owners | None = None,
    any_owner: bool = False,
) -> Iterator[ImportOutcome]:
    """Bring lines of `export_lines` into the tables; yield the result of each.

    A line is checked whole before any part of it is written. It is written in one transaction,
    whatever the switches say: the tables then hold the truth of it. Blank lines are skipped. A
    conversation that the database holds with equal content (state, sequences, keys) stays as it
    is, so a broken-off import can be run again. With other content it is refused. With `replace`,
    it gets the line's content, and its messages that differ are superseded. Its owner never
    changes, and only `any_owner` allows replacing another owner's. Deleted conversations stay
    deleted, and redacted texts stay redacted. A line is refused if its owner is not in the
    database, unless `owners` assigns one.

    The origin of a fork may come behind it: the two are joined when both are in the database. With
    `dry_run` nothing is kept, and the yielded results are those of a real import.

    `together` is how many lines are read ahead, up to some megabytes. The new ones among them are
    written in one transaction: six times as fast with 100 of them. If that fails, each is written
    by itself.

    Raises: StorageUnavailable if a store does not answer; the lines before are written.
    """
    return import_records(
        _records(lines),
        replace=replace,
        dry_run=dry_run,
        together=together,
        owners=owners,
        any_owner=any_owner,
    )


def import_records(
    records: Iterable[Read | BadLine],
    *,
    replace: bool = False,
    dry_run: bool = False,
    together: int = 1,
    owners: Owners | None = None,
    any_owner: bool = False,
) -> Iterator[ImportOutcome]:
    """Bring the results of `read_records` into the tables, as `import_lines` does.

    A chat names no places, so its messages are numbered from 1. Its times are those that it or its
    messages state, so that an old chat does not look recent. Its owner is the user of that name;
    see `ownership`.
    """
    rules = Rules(owners or Owners(), replace=replace, any_owner=any_owner, dry_run=dry_run)
    imports = _Imports(rules)
    for batch in _batches(records, together=together):
        yield from imports.outcomes(batch)


def _records(lines: Iterable[str]) -> Iterator[Read | BadLine]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield Read(number, replace(record_of(parsed(line)), size=len(line)))
        except InvalidState as error:
            yield BadLine(number, str(error))


def _batches(records: Iterable[Read | BadLine], *, together: int) -> Iterator[list[Read | BadLine]]:
    """Yield up to `together` lines, within `TOGETHER_BYTES`, each conversation once."""
    batch: list[Read | BadLine] = []
    ids: set[str] = set()
    size = 0
    for found in records:
        record = None if isinstance(found, BadLine) else found.record
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


@dataclass(frozen=True, slots=True)
class _Here:
    """The database's own conversation: its owner, and digests of its content and places."""

    owner: str | None
    content: bytes
    places: bytes | None

    @classmethod
    def of(cls, record: Record, owner: str | None) -> _Here:
        document = record.document
        named = None
        if record.places is not None:
            named = digest_of([[place.sequence, place.key] for place in record.places])
        return cls(owner, document.state_digest + document.messages_digest, named)

    def equals(self, other: _Here) -> bool:
        """Whether the content is the same, and the places too if both have some."""
        if self.content != other.content:
            return False
        return None in (self.places, other.places) or self.places == other.places


def _numbered(record: Record) -> bytes:
    """Return the digest of the places of a chat: it is numbered from 1."""
    count = len(record.document.messages)
    return digest_of([[sequence, None] for sequence in range(1, count + 1)])


@dataclass(slots=True)
class _Imports:
    """A run over lines: it remembers the forks whose origin has not come yet.

    In a dry run, it also remembers what an import would have written: some 200 bytes a
    conversation.
    """

    rules: Rules
    waiting: dict[str, set[str]] = field(default_factory=dict)
    imagined: dict[str, _Here] = field(default_factory=dict)

    def outcomes(self, batch: Sequence[Read | BadLine]) -> Iterator[ImportOutcome]:
        """Yield the result of each line."""
        created: Mapping[str, str | None] = {}
        if not self.rules.dry_run:
            records = [found.record for found in batch if not isinstance(found, BadLine)]
            alone = [record for record in records if self._stands_alone(record)]
            created = create_many(alone, self.rules.owners)
        for found in batch:
            if isinstance(found, BadLine):
                reason = f"line {found.line}{found.place}: {found.reason}"
                yield ImportOutcome(
                    found.line, None, Result.INVALID, reason, found.place, "invalid"
                )
            elif found.record.conversation_id in created:
                owner = created[found.record.conversation_id]
                yield _outcome(found, Result.CREATED, ownerless=owner is None)
            else:
                yield self.outcome(found)

    def _stands_alone(self, record: Record) -> bool:
        """Whether a conversation is no fork, and no fork of it waits."""
        return record.forked_from is None and record.conversation_id not in self.waiting

    def outcome(self, found: Read) -> ImportOutcome:
        """Return the result of a conversation that is imported by itself."""
        try:
            return self._import(found)
        except Refused as refusal:
            return _outcome(found, Result.REFUSED, str(refusal), refusal.reason_class)
        except UnreadableState:
            reason = "legacy holds an unreadable state under this id"
            return _outcome(found, Result.REFUSED, reason, "unreadable")

    def _import(self, found: Read) -> ImportOutcome:
        record = found.record
        with in_transaction(record.conversation_id):
            row = lock(record.conversation_id)
            if row is None and deleted(record.conversation_id):
                return _outcome(found, Result.DELETED, "it was deleted here", "deleted")
            result, owner = self._write(record, row)
            if self.rules.dry_run:
                reason = self._would_miss(record)
                transaction.set_rollback(True, using=conf.alias())
            else:
                reason = self._joined(record)
            nobodys = result == Result.CREATED and owner is None
            return _outcome(found, result, reason, ownerless=nobodys)

    def _write(self, record: Record, row: ConversationState | None) -> tuple[Result, str | None]:
        """Write a conversation beside the existing one. Returns: the result, and the owner then."""
        owner = owner_of(record, self.rules.owners)
        record = _redacted(record, row)
        wanted, here, foreign_ids = (
            _Here.of(record, owner),
            self.imagined.get(record.conversation_id),
            "",
        )
        imagined = here is not None
        if not imagined:
            legacy = decide(record.conversation_id).legacy
            # Before legacy is read: a blob that comes in between is not taken for one we know.
            foreign_ids = (
                legacy.foreign_ids(record.conversation_id, "") if legacy and row is None else ""
            )
            found = snapshot(record.conversation_id)
            here = None if found is None else _Here.of(found, found.owner or found.legacy_user)
        if here is None:
            create(record, owner, foreign_ids=foreign_ids)
            result, here = (
                Result.CREATED,
                replace(wanted, places=wanted.places or _numbered(record)),
            )
        else:
            result = self._judged(record, wanted, here)
            if result == Result.REPLACED and not imagined:
                overwrite(record)
            here = replace(wanted, owner=here.owner) if result == Result.REPLACED else here
        if self.rules.dry_run and result in (Result.CREATED, Result.REPLACED):
            self.imagined[record.conversation_id] = here
        return result, here.owner

    def _judged(self, record: Record, wanted: _Here, here: _Here) -> Result:
        """Return the result for a conversation that the database holds. Raises: Refused."""
        same = same_owner(wanted.owner, here.owner)
        equal = wanted.equals(here)
        # A chat without an owner claims none; if it is equal, nothing is written.
        silent = (
            record.places is None and wanted.owner is None and (equal or not self.rules.replace)
        )
        if not same and not silent and not self.rules.any_owner:
            raise Refused("it belongs to another owner here, or to none", "other_owner")
        if equal:
            return Result.UNCHANGED
        if not self.rules.replace:
            raise Refused("it is here with other content", "other_content")
        return Result.REPLACED

    def _joined(self, record: Record) -> str:
        """Join a conversation to its origin, and to its forks. Returns: what is missing."""
        for fork in sorted(self.waiting.pop(record.conversation_id, ())):
            join(fork, record.conversation_id)
        if record.forked_from is None or join(record.conversation_id, record.forked_from):
            return ""
        self.waiting.setdefault(record.forked_from, set()).add(record.conversation_id)
        return _NO_ORIGIN

    def _would_miss(self, record: Record) -> str:
        """Return the result of `_joined` in a dry run."""
        origin = record.forked_from
        rows = ConversationState.rows.using(conf.alias())
        if origin is None or origin in self.imagined:
            return ""
        return "" if rows.filter(conversation_id=origin).exists() else _NO_ORIGIN


_NO_ORIGIN = "the conversation it was forked from is not here yet"


def _outcome(
    found: Read,
    result: Result,
    reason: str = "",
    reason_class: str = "",
    *,
    ownerless: bool = False,
) -> ImportOutcome:
    name = found.record.conversation_id
    return ImportOutcome(found.line, name, result, reason, found.place, reason_class, ownerless)


def _redacted(record: Record, row: ConversationState | None) -> Record:
    """Return the record in redacted form, by the redactions of the conversation or its origin."""
    known = dict(redactions_of(row))
    if record.forked_from is not None:
        rows = ConversationState.rows.using(conf.alias())
        known |= redactions_of(rows.filter(conversation_id=record.forked_from).first())
    document = redaction.applied_to(record.document, known)
    return record if document is None else replace(record, document=document)
