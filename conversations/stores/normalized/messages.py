"""Messages: a row per version. Only redaction changes a row; other edits supersede it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from django.db import connections
from django.db.models import BooleanField, Q, QuerySet
from django.db.models.expressions import RawSQL
from django.utils import timezone

from conversations import conf
from conversations.content.codec import (
    BIGINT,
    MESSAGE_COLUMNS,
    decode_messages,
    encode_message,
    storable,
)
from conversations.content.digests import BLOCK, EMPTY, digest_of, roll, split
from conversations.content.entries import UNREAD, Entry, Given
from conversations.models import ConversationMessage, ConversationState
from conversations.stores.normalized.load import BATCH
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
# How many values are bound at once: older versions of SQLite accept no more than 999.
AT_ONCE = 900
_HISTORY = {
    "sequence": ("TRUE",),
    "key": ("superseded_in IS NULL", "superseded_in IS NOT NULL"),
}
# The successors of a version, up to the current one; an insertion before a message moves it.
_SUCCESSORS = f"""
    WITH RECURSIVE line (id) AS (
        SELECT CAST(%s AS bigint)
        UNION ALL
        SELECT next.id FROM line JOIN conversation_messages next ON next.supersedes = line.id
    )
    SELECT {", ".join(f"version.{name}" for name in _VERSION_COLUMNS)}
    FROM line JOIN conversation_messages version ON version.id = line.id
    WHERE version.conversation_id = %s AND version.superseded_in IS NULL
    ORDER BY version.added_in DESC LIMIT 1"""
_OF_BLOCK = """FROM conversation_messages
    WHERE conversation_id = %s AND superseded_in IS NULL AND sequence > %s AND sequence <= %s"""
# One row per block. SQLite promises no order of the joined values.
_BLOCK_DIGESTS = {
    "postgresql": f"SELECT %s, string_agg(digest, '' ORDER BY sequence) {_OF_BLOCK}",
    "sqlite": f"SELECT %s, group_concat(sequence || ':' || hex(digest)) {_OF_BLOCK}",
}


class MessageRows:
    """The part of NormalizedStore that reads and writes messages."""

    def _messages(self, row: ConversationState) -> QuerySet[ConversationMessage]:
        return ConversationMessage.rows.using(conf.alias()).filter(conversation_id=row.pk)

    def given_messages(
        self, row: ConversationState, *, revision: int, last: int | None = None
    ) -> Given:
        """Return the messages that were current at a revision, in order; only the `last` if asked.

        It reads only the columns that a load needs.
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

        Without `values`, it reads only the columns that a comparison needs.
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
        """Return every version, current or not, of the messages with these keys."""
        found: list[Entry] = []
        for some in _batches(keys):
            keyed = self._messages(row).filter(key__in=some).values_list(*_VERSION_COLUMNS)
            # Two queries, because each has an index: together, or in order, databases read all
            # messages.
            current, gone = (keyed.filter(superseded_in__isnull=none) for none in (True, False))
            found += [_entry(version) for version in current.union(gone, all=True)]
        return sorted(found, key=lambda entry: (entry.place, entry.added_in))

    def found(self, row: ConversationState, references: Sequence[int | str]) -> list[Entry]:
        """Return the current messages with these sequences (integers) or keys, in order."""
        found: dict[int, Entry] = {}
        for column, chosen in _by_column(references).items():
            for some in _batches(chosen):
                where = f"superseded_in IS NULL AND {column} IN ({_marks(some)})"
                entries = _entries(row, where, some, values=True)
                found |= {entry.place: entry for entry in entries}
        return [found[place] for place in sorted(found)]

    def newest(self, row: ConversationState, count: int) -> list[Entry]:
        """Return the last `count` current messages, in order."""
        where = "superseded_in IS NULL ORDER BY sequence DESC LIMIT %s"
        return _entries(row, where, [count], values=True)[::-1]

    def history(self, row: ConversationState, reference: int | str) -> list[Entry]:
        """Return every version, current or not, of a sequence (an integer) or of a key."""
        found: list[Entry] = []
        for column, chosen in _by_column([reference]).items():
            # Two look-ups for a key, because each has its own index.
            for where in _HISTORY[column]:
                found += _entries(row, f"{where} AND {column} = %s", chosen, values=True)
        return found

    def successor(self, row: ConversationState, entry: Entry) -> Entry | None:
        """Return the current version of a superseded one, None if it was removed."""
        with connections[conf.alias()].cursor() as cursor:
            cursor.execute(_SUCCESSORS, [entry.stored_row, row.pk])
            found = cursor.fetchone()
        return None if found is None else _entry(found)

    def digests(self, row: ConversationState) -> list[tuple[int, bytes]]:
        """Return the sequence and digest of each current message, in order."""
        where = "superseded_in IS NULL ORDER BY sequence"
        read = _read(row, ("sequence", "digest"), where, values=False)
        return [(sequence, bytes(digest)) for batch in read for sequence, digest in batch]

    def block_digests(self, row: ConversationState, numbers: Sequence[int]) -> dict[int, bytes]:
        """Return the digests of blocks of messages, by number, from one row per block."""
        connection = connections[conf.alias()]
        one = _BLOCK_DIGESTS[connection.vendor]
        rolled: dict[int, bytes] = {}
        for some in _batches(numbers, AT_ONCE // 10):
            parameters: list[int] = []
            for number in some:
                parameters += [number, row.pk, number * BLOCK, (number + 1) * BLOCK]
            with connection.cursor() as cursor:
                cursor.execute(" UNION ALL ".join([one] * len(some)), parameters)
                for number, joined in cursor.fetchall():
                    rolled[number] = roll(EMPTY, _digests_in(joined))
        return rolled

    def _supersede(self, row: ConversationState, rows: Sequence[int], *, revision: int) -> None:
        for some in _batches(rows):
            self._messages(row).filter(pk__in=some).update(
                superseded_in=revision, superseded_at=timezone.now()
            )

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

        Position, key and role stay. The first digest becomes that of the new content, so that no
        trace of the old one is left.
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

        `using` names a replica, which returns none unless it holds the row's revision.
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


def _batches(values: Sequence[Any], size: int = AT_ONCE) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _marks(values: Sequence[Any]) -> str:
    return ", ".join(["%s"] * len(values))


def _by_column(references: Sequence[int | str]) -> dict[str, list[int | str]]:
    """Return those sequences and keys that a column can hold, by column."""
    chosen: dict[str, list[int | str]] = {}
    for reference in dict.fromkeys(references):
        if isinstance(reference, str):
            if storable(reference):
                chosen.setdefault("key", []).append(reference)
        elif 0 < reference < BIGINT:
            chosen.setdefault("sequence", []).append(reference)
    return chosen


def _digests_in(joined: Any) -> list[bytes]:
    """Return the digests that `_BLOCK_DIGESTS` joined, in the order of their sequences."""
    if not isinstance(joined, str):
        return split(bytes(joined or b""))
    pairs = [each.split(":") for each in joined.split(",")]
    return [bytes.fromhex(digest) for _, digest in sorted(pairs, key=lambda pair: int(pair[0]))]


def _read(
    row: ConversationState,
    columns: Sequence[str],
    where: str,
    parameters: Sequence[Any] = (),
    *,
    values: bool = True,
) -> Iterator[list[tuple[Any, ...]]]:
    """Yield batches of columns of a conversation's messages, behind the codec's if `values`.

    `find_row` says why this is written in SQL.
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
    """Return entries; without `values`, only with the columns that a comparison needs."""
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
