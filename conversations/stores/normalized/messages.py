"""Messages: a row per version, never changed but by redaction, only superseded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from django.db.models import Q, QuerySet

from conversations import conf
from conversations.codec import MESSAGE_COLUMNS, decode_message_row, encode_message
from conversations.digests import digest_of
from conversations.merge import UNREAD, Entry
from conversations.models import ConversationMessage, ConversationState

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


class MessageRows:
    """The part of NormalizedStore that reads and writes messages."""

    def _messages(self, row: ConversationState) -> QuerySet[ConversationMessage]:
        return ConversationMessage.rows.using(conf.alias()).filter(conversation_id=row.pk)

    def messages(
        self,
        row: ConversationState,
        *,
        revision: int | None = None,
        last: int | None = None,
        values: bool = True,
    ) -> list[Entry]:
        """Return the current messages in order; only the `last` if asked.

        With `revision`: those that were current then. Without `values`: only what a
        comparison needs.
        """
        columns = (*_VERSION_COLUMNS, *(MESSAGE_COLUMNS if values else ()))
        query = self._messages(row)
        if revision is None:
            query = query.filter(superseded_in__isnull=True)
        else:
            query = query.filter(added_in__lte=revision).filter(
                Q(superseded_in__isnull=True) | Q(superseded_in__gt=revision)
            )
        query = query.order_by("sequence" if last is None else "-sequence")[:last]
        found = [
            _entry(version[: len(_VERSION_COLUMNS)], version[len(_VERSION_COLUMNS) :])
            for version in query.values_list(*columns)
        ]
        return found if last is None else found[::-1]

    def versions(self, row: ConversationState, *, values: bool = False) -> list[Entry]:
        """Return every version of every message, current or not, by sequence and age."""
        columns = (*_VERSION_COLUMNS, *(MESSAGE_COLUMNS if values else ()))
        query = self._messages(row).order_by("sequence", "added_in").values_list(*columns)
        width = len(_VERSION_COLUMNS)
        return [_entry(found[:width], found[width:]) for found in query]

    def keyed(self, row: ConversationState, keys: Sequence[str]) -> list[Entry]:
        """Return every version, current or not, of the messages that have these keys."""
        query = self._messages(row).filter(key__in=keys).order_by("sequence", "added_in")
        return [_entry(found, ()) for found in query.values_list(*_VERSION_COLUMNS)]

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

    def page(self, row: ConversationState, query: Q, *, limit: int, backwards: bool) -> list[Entry]:
        """Return up to `limit` versions in ascending order: the last ones, or the first."""
        order = ("-sequence", "-added_in") if backwards else ("sequence", "added_in")
        width = len(_VERSION_COLUMNS)
        rows = self._messages(row).filter(query).order_by(*order)
        found = [
            _entry(version[:width], version[width:])
            for version in rows.values_list(*_VERSION_COLUMNS, *MESSAGE_COLUMNS)[:limit]
        ]
        return found[::-1] if backwards else found


def _entry(version: Sequence[Any], columns: Sequence[Any]) -> Entry:
    pk, sequence, digest, key, key_digest, supersedes, added_in, superseded_in = version
    return Entry(
        bytes(digest),
        decode_message_row(columns) if columns else UNREAD,
        sequence,
        pk,
        key,
        None if key_digest is None else bytes(key_digest),
        supersedes,
        superseded_in,
        added_in,
    )
