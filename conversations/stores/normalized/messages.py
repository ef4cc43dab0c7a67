"""Messages: a row per version, never changed but by redaction, only superseded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from django.db import connections
from django.db.models import BooleanField, Q, QuerySet
from django.db.models.expressions import RawSQL

from conversations import conf
from conversations.codec import MESSAGE_COLUMNS, decode_messages, encode_message
from conversations.digests import digest_of, split
from conversations.merge import UNREAD, Entry, Given
from conversations.models import ConversationMessage, ConversationState
from conversations.stores.normalized.loading import BATCH
from conversations.stores.normalized.rows import replayed

_VERSION_COLUMNS = (
    "id",
    "sequence",
    "digest",
    "key",
    "key_digest",
    "supersedes",
    "added_in",
    "superseded_in",
)
_AS_OF = "added_in <= %s AND (superseded_in IS NULL OR superseded_in > %s)"
_WIDTH = len(MESSAGE_COLUMNS)


class MessageRows:
    """The part of NormalizedStore that reads and writes messages."""

    def _messages(self, row: ConversationState) -> QuerySet[ConversationMessage]:
        return ConversationMessage.rows.using(conf.alias()).filter(conversation_id=row.pk)

    def given_messages(
        self, row: ConversationState, *, revision: int, last: int | None = None
    ) -> Given:
        """Return the messages that were current at a revision, in order; only the `last` if asked.

        This is what a load needs, and nothing more.
        """
        where = f"{_AS_OF} ORDER BY sequence"
        parameters = [revision, revision]
        if last is not None:
            where += " DESC LIMIT %s"
            parameters.append(last)
        sequences: list[int] = []
        digests = bytearray()
        values: list[Any] = []
        for batch in _read(row, ("sequence", "digest"), where, parameters):
            sequences += [version[_WIDTH] for version in batch]
            digests += b"".join([version[_WIDTH + 1] for version in batch])
            values += decode_messages(batch)
        if last is not None:
            sequences.reverse()
            values.reverse()
            digests = bytearray().join(reversed(split(bytes(digests))))
        return Given(sequences, bytes(digests), values)

    def messages(
        self, row: ConversationState, *, revision: int | None = None, values: bool = True
    ) -> list[Entry]:
        """Return the messages current now, or at a revision, in order.

        Without `values`: only what a comparison needs.
        """
        where = "superseded_in IS NULL"
        parameters: Sequence[int] = ()
        if revision is not None:
            where, parameters = _AS_OF, (revision, revision)
        where = f"{where} ORDER BY sequence"
        return _entries(row, where, parameters, values=values)

    def versions(self, row: ConversationState, *, values: bool = False) -> list[Entry]:
        """Return every version of every message, current or not, by sequence and age."""
        where = "TRUE ORDER BY sequence, added_in"
        return _entries(row, where, values=values)

    def keyed(self, row: ConversationState, keys: Sequence[str]) -> list[Entry]:
        """Return every version, current or not, of the messages that have these keys."""
        keyed = self._messages(row).filter(key__in=keys).values_list(*_VERSION_COLUMNS)
        # Each has an index of its own: together, or in order, databases go through all messages.
        current, gone = (keyed.filter(superseded_in__isnull=none) for none in (True, False))
        found = [_entry(version) for version in current.union(gone, all=True)]
        return sorted(found, key=lambda entry: (entry.place, entry.added_in))

    def _insert_messages(
        self, row: ConversationState, entries: Iterable[Entry], *, revision: int, now: datetime
    ) -> None:
        entries = list(entries)
        unread = [entry.supersedes for entry in entries if entry.value is UNREAD]
        copies = self._messages(row).in_bulk(unread) if unread else {}
        made = []
        for entry in entries:
            if entry.value is UNREAD:
                source = copies[entry.supersedes]
                columns = {name: getattr(source, name) for name in MESSAGE_COLUMNS}
                columns["timestamp"] = source.timestamp
            else:
                columns = encode_message(entry.value, now=now)
            made.append(
                ConversationMessage(
                    conversation_id=row.pk,
                    sequence=entry.place,
                    key=entry.key,
                    key_digest=entry.key_digest,
                    digest=entry.digest,
                    supersedes=entry.supersedes,
                    added_in=revision,
                    **columns,
                )
            )
        ConversationMessage.rows.using(conf.alias()).bulk_create(made)
        for entry, message in zip(entries, made, strict=True):
            entry.row, entry.added_in = message.pk, revision

    def rewrite_version(
        self, row: ConversationState, entry: Entry, value: Any, *, now: datetime
    ) -> None:
        """Change the content of a stored version in place: for redaction, and nothing else.

        Position, key and role stay; the first digest becomes that of the new content, so that
        nothing of the old one is left.
        """
        entry.value, entry.digest = value, digest_of(value)
        columns = encode_message(value, now=now)
        del columns["timestamp"]
        if entry.key is not None:
            columns["key_digest"] = entry.key_digest = entry.digest
        self._messages(row).filter(pk=entry.stored_row).update(digest=entry.digest, **columns)

    def count(self, row: ConversationState, query: Q) -> int:
        """Return how many versions match."""
        return self._messages(row).filter(query).count()

    def page(
        self,
        row: ConversationState,
        query: Q,
        *,
        limit: int,
        backwards: bool,
        using: str | None = None,
    ) -> list[Entry]:
        """Return up to `limit` versions in ascending order: the last ones, or the first.

        `using` names a replica, which gives none unless it holds what the row says.
        """
        order = ("-sequence", "-added_in") if backwards else ("sequence", "added_in")
        rows = self._messages(row).filter(query).order_by(*order)
        if using is not None:
            held = RawSQL(*replayed(row), output_field=BooleanField())
            rows = rows.using(using).filter(held)
        columns = (*MESSAGE_COLUMNS, *_VERSION_COLUMNS)
        found = list(rows.values_list(*columns)[:limit])
        entries = [
            _entry(version[_WIDTH:], message)
            for version, message in zip(found, decode_messages(found), strict=True)
        ]
        return entries[::-1] if backwards else entries


def _read(
    row: ConversationState,
    columns: Sequence[str],
    where: str,
    parameters: Sequence[Any] = (),
    *,
    values: bool = True,
) -> Iterator[list[tuple[Any, ...]]]:
    """Yield batches of columns of a conversation's messages, behind the codec's if `values`.

    See `found_row` for why it is spelled in SQL.
    """
    selected = ", ".join((*MESSAGE_COLUMNS, *columns) if values else columns)
    sql = f"SELECT {selected} FROM conversation_messages WHERE conversation_id = %s AND {where}"
    with connections[conf.alias()].cursor() as cursor:
        cursor.execute(sql, [row.pk, *parameters])
        while batch := cursor.fetchmany(BATCH):
            yield batch


def _entries(
    row: ConversationState, where: str, parameters: Sequence[Any] = (), *, values: bool
) -> list[Entry]:
    """Return entries; without `values`, only what a comparison needs."""
    entries: list[Entry] = []
    for batch in _read(row, _VERSION_COLUMNS, where, parameters, values=values):
        if values:
            pairs = zip(batch, decode_messages(batch), strict=True)
            entries += [_entry(version[_WIDTH:], message) for version, message in pairs]
        else:
            entries += [_entry(version) for version in batch]
    return entries


def _entry(version: Sequence[Any], message: Any = UNREAD) -> Entry:
    pk, sequence, digest, key, key_digest, supersedes, added_in, superseded_in = version
    return Entry(
        bytes(digest),
        message,
        sequence,
        pk,
        key,
        None if key_digest is None else bytes(key_digest),
        supersedes,
        superseded_in,
        added_in,
    )
