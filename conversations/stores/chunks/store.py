"""ChunkStore: the legacy tables, exactly as old code uses them.

Every save inserts a whole state and eight metadata rows. Ids commit out of order, and metadata
rows come late, so the newest id is no version counter. Blobs that we wrote or ingested carry a row
`store.revision`, which old code ignores. A blob of other code is a state blob without that row,
above a floor. Below the floor, every blob is accounted for, and is older than any write in flight.
The token is that floor (an id), with a "+" if there are such blobs.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.core.checks import CheckMessage
from django.db import connections
from django.db.models import Exists, F, Max, OuterRef, Q, QuerySet, Value
from django.db.models.functions import Concat
from django.utils import timezone

from conversations import conf
from conversations.content.document import Document
from conversations.exceptions import InvalidState, UnreadableState
from conversations.stores.chunks import bulk_read, lists
from conversations.stores.chunks.counts import ChunkTables
from conversations.stores.chunks.format import (
    CONVERSATION_ID,
    FOREIGN_BLOB,
    HELD_BLOB,
    NEWEST,
    NEWEST_OF_REVISION,
    OWNER_OF_NEWEST,
    QUARANTINE_MARK,
    REVISION_MARK,
    UNMARKED,
    metadata_of,
    parsed,
    taken_in,
)
from conversations.stores.chunks.watermark import before_a_save, bounds_above, floor_of, raised
from conversations.stores.sql.expressions import (
    EVERY_KEY,
    LAST_MOMENT,
    between,
    has_foreign_key,
    key_after,
)
from conversations.stores.types import BlobState, ForeignBlob, Stored, Summary
from flags.phases import StoreName
from memory.models import MemoryChunk, MemoryMetadata

logger = logging.getLogger("conversations")

# Blobs that are read at once for a rewrite: each may have megabytes.
_REWRITTEN = 50


class ChunkStore(ChunkTables):
    """The legacy chunk tables behind the store protocol."""

    name = StoreName.LEGACY.value
    exact = True
    removable = True
    names_owners = True

    @classmethod
    def check(cls, legacy: Mapping[Any, Any]) -> Iterable[CheckMessage]:
        return ()

    def _chunks(self) -> QuerySet[MemoryChunk]:
        return MemoryChunk.objects.using(conf.alias())

    def _metadata(self) -> QuerySet[MemoryMetadata]:
        return MemoryMetadata.objects.using(conf.alias())

    def _typed(self, chunk: Any) -> Exists:
        return Exists(self._metadata().filter(chunk_id=chunk, key="type", value="state"))

    def _named(self) -> QuerySet[MemoryMetadata]:
        """Return the rows that name a state blob, to be found by its key: see `names_its_chunk`.

        An empty name belongs to no conversation: no list returns it, and no load accepts it.
        """
        rows = self._metadata().annotate(said=Concat("key", Value("")))
        rows = rows.exclude(Q(value=None) | Q(value=""))
        return rows.filter(self._typed(OuterRef("chunk_id")), said=CONVERSATION_ID)

    def _blobs(self, conversation_id: Any) -> QuerySet[MemoryMetadata]:
        """Return the rows that name a state blob of the conversation."""
        return self._metadata().filter(
            self._typed(OuterRef("chunk_id")), key=CONVERSATION_ID, value=conversation_id
        )

    def _unmarked(self, conversation_id: str, floor: int, clause: str = "") -> Sequence[int]:
        """Return the ids of the blobs of other code above the floor."""
        with connections[conf.alias()].cursor() as cursor:
            cursor.execute(UNMARKED + clause, [conversation_id, floor])
            return [pk for (pk,) in cursor.fetchall()]

    def _first(self, sql: str, *parameters: str) -> MemoryChunk | None:
        return next(iter(MemoryChunk.objects.raw(sql, parameters, using=conf.alias())), None)

    def _stored(self, chunk: MemoryChunk) -> Stored:
        return Stored(
            parsed(chunk.content),
            owner=_text(chunk.user_id),
            version=str(chunk.pk),
            updated_at=chunk.created_at,
            reference=str(chunk.pk),
        )

    def _readable(self, chunk: MemoryChunk | None) -> Stored | None:
        if chunk is None:
            return None
        try:
            return self._stored(chunk)
        except InvalidState as error:
            raise _unreadable(chunk.pk, error) from error

    def load(self, conversation_id: str) -> Stored | None:
        """Read as old code does: the newest blob by created_at, then by id."""
        return self._readable(self._first(NEWEST, conversation_id))

    def save(
        self,
        conversation_id: str,
        document: Document,
        *,
        owner: str | None = None,
        revision: int = 0,
        known: str = "",
    ) -> str:
        """Insert a blob, stamped later than the newest so that old code reads this one.

        The floor rises to the blobs that settled long ago, since a load reads all blobs above it.
        It never passes a blob of others, even if the save did not read legacy and used only
        `known`.
        """
        # Old code also reads blobs that we set aside, so the newest of all counts.
        newest, floor = before_a_save(conversation_id, floor_of(known))
        now = timezone.now()
        if newest is not None:
            # A clock that ran to the end of time leaves no later moment; the id decides then.
            now = max(now, min(newest, LAST_MOMENT) + timedelta(microseconds=1))
        chunk = self._chunks().create(
            user_id=None if owner is None else _user_key(owner),
            content=document.to_json(),
            created_at=now,
        )
        rows = metadata_of(conversation_id, document, now)
        if revision:
            rows[REVISION_MARK] = str(revision)
        self._metadata().bulk_create(
            [MemoryMetadata(chunk=chunk, key=key, value=value) for key, value in rows.items()]
        )
        return str(floor)

    def delete(self, conversation_id: str) -> bool:
        """Remove every state blob of the conversation, and metadata rows that lost theirs."""
        ids = list(self._blobs(conversation_id).values_list("chunk_id", flat=True))
        for start in range(0, len(ids), 500):
            batch = ids[start : start + 500]
            self._metadata().filter(chunk_id__in=batch)._raw_delete(conf.alias())
            self._chunks().filter(pk__in=batch)._raw_delete(conf.alias())
        return bool(ids)

    def list(
        self,
        *,
        owner: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int | None = None,
    ) -> Sequence[Summary]:
        """Return summaries; the owner is that of the newest blob, as in a load."""
        key = None if owner is None else _user_key(owner)
        page = lists.newest(owner=key, before=before, limit=limit)
        return [
            Summary(line.name, line.created_at, None, self.name, _text(line.owner)) for line in page
        ]

    def token(self, conversation_id: str, known: str = "") -> str:
        """Return the known floor, with a "+" if others have written above it."""
        floor = floor_of(known)
        return self.token_of(self._unmarked(conversation_id, floor, " LIMIT 1"), known)

    def token_sql(self) -> str:
        """Whether others have written above the floor that the row remembers."""
        return FOREIGN_BLOB

    def token_of(self, value: Any, known: str) -> str:
        """Return `known` if only we have written, else a different token."""
        return f"{known}+" if value else known

    def token_unchanged_sql(self) -> str:
        return f"NOT {FOREIGN_BLOB}"

    def foreign_ids(self, conversation_id: str, known: str) -> str:
        """Return the ids of the unmarked blobs above the floor."""
        return ",".join(map(str, self._unmarked(conversation_id, floor_of(known))))

    def list_foreign(
        self, conversation_id: str, known: str, foreign_ids: str
    ) -> Sequence[ForeignBlob]:
        """Return the blobs seen, by created_at and id."""
        found = []
        chunks = self._chunks().filter(pk__in=_ids(foreign_ids)).defer("embedding")
        for chunk in chunks.order_by(F("created_at").asc(nulls_first=True), "pk"):
            owner = _text(chunk.user_id)
            try:
                found.append(ForeignBlob(str(chunk.pk), owner, stored=self._stored(chunk)))
            except InvalidState as error:
                found.append(ForeignBlob(str(chunk.pk), owner, problem=str(error)))
        ids_in_order = [int(blob.reference) for blob in found]
        if ids_in_order != sorted(ids_in_order):
            logger.warning(
                "legacy chunks %s of one conversation disagree in id and created_at", ids_in_order
            )
        return found

    def last_ours(self, conversation_id: str, *, revision: int, known: str) -> Stored | None:
        """Return the newest readable blob with the mark of that revision."""
        chunk = self._first(NEWEST_OF_REVISION, conversation_id, str(revision))
        return self._readable(chunk)

    def last_ours_sql(self) -> tuple[str, ...]:
        return (FOREIGN_BLOB, HELD_BLOB)

    def last_ours_from(self, text: str | None, *, known: str) -> Stored | None:
        if text is None:
            return None
        pk, _, content = text.partition(" ")
        try:
            return Stored(parsed(content), owner=None, version=pk, updated_at=None, reference=pk)
        except InvalidState as error:
            raise _unreadable(pk, error) from error

    def correct(
        self, conversation_id: str, reference: str, document: Document, foreign_ids: str
    ) -> str:
        """Rewrite the content, and drop the embedding of the old text."""
        chunk = self._chunks().filter(pk=reference)
        chunk.update(content=document.to_json(), embedding=None)
        return foreign_ids

    def mark_ingested(
        self,
        conversation_id: str,
        *,
        revision: int,
        known: str,
        foreign_ids: str,
        quarantined: Sequence[str] = (),
    ) -> str:
        """Mark the blobs seen, and raise the floor as far as no write in flight can pass it."""
        floor = floor_of(known)
        higher = raised(floor, *bounds_above(conversation_id, floor))
        newest = self._first(OWNER_OF_NEWEST, conversation_id)
        if newest is not None:
            # The floor must not pass the blob that a load reads, even if ids and times disagree.
            higher = max(floor, min(higher, newest.pk))
        needed = {chunk_id for chunk_id in _ids(foreign_ids) if chunk_id > higher}
        # The blob that old code would read is always marked: it may have to be found again.
        if newest is not None and newest.pk in _ids(foreign_ids):
            needed.add(newest.pk)
        aside = {int(chunk_id) for chunk_id in quarantined}
        marks = {chunk_id: {QUARANTINE_MARK: str(revision)} for chunk_id in aside}
        marks |= {chunk_id: taken_in(revision) for chunk_id in needed - aside}
        self._metadata().bulk_create(
            [
                MemoryMetadata(chunk_id=chunk_id, key=key, value=value)
                for chunk_id, rows in sorted(marks.items())
                for key, value in rows.items()
            ]
        )
        return str(higher)

    def sizes(self, ids: Sequence[str]) -> Mapping[str, int]:
        return bulk_read.sizes(ids)

    def read_many(self, ids: Sequence[str]) -> Sequence[BlobState]:
        return bulk_read.read_many(ids, self._stored)

    def mark_many_ingested(self, looks: Sequence[BlobState], *, revision: int) -> None:
        bulk_read.mark_ingested(looks, revision=revision)

    def renumber(self, conversation_id: str, *, old: int, new: int) -> None:
        chunks = list(self._blobs(conversation_id).values_list("chunk_id", flat=True))
        marks = self._metadata().filter(chunk_id__in=chunks, key=REVISION_MARK, value=str(old))
        marks.update(value=str(new))

    def owner(self, conversation_id: str) -> tuple[bool, str | None]:
        chunk = self._first(OWNER_OF_NEWEST, conversation_id)
        if chunk is None:
            return False, None
        return True, _text(chunk.user_id)

    def owner_by_id(self, conversation_id: str) -> None:
        """An id is any text, and names no owner."""

    def refusal(self, conversation_id: str, *, owner: str | None) -> str:
        return ""

    def specimen(self) -> str:
        return str(uuid.uuid4())

    def takes_any_owner(self) -> bool:
        return not has_foreign_key(MemoryChunk, "user_id")

    def claim(self, conversation_id: str, owner: str) -> None:
        """Give the conversation's state blobs to a user, except blobs with another owner."""
        ids = self._blobs(conversation_id).values_list("chunk_id", flat=True)
        chunks = self._chunks().filter(pk__in=list(ids), user__isnull=True)
        chunks.update(user_id=_user_key(owner))

    def rewrite(
        self, conversation_id: str, change: Callable[[Document], Document | None], *, known: str
    ) -> str:
        ids = list(self._blobs(conversation_id).values_list("chunk_id", flat=True))
        for start in range(0, len(ids), _REWRITTEN):
            batch = self._chunks().filter(pk__in=ids[start : start + _REWRITTEN])
            for chunk in batch.defer("embedding"):
                self._rewrite_one(conversation_id, chunk, change)
        return known

    def _rewrite_one(
        self,
        conversation_id: str,
        chunk: MemoryChunk,
        change: Callable[[Document], Document | None],
    ) -> None:
        try:
            document = change(parsed(chunk.content))
        except InvalidState as error:
            raise _unreadable(chunk.pk, error) from error
        if document is not None:
            self.correct(conversation_id, str(chunk.pk), document, foreign_ids="")

    def conversations_of(self, owner: str) -> Sequence[str]:
        """Return the ids of conversations with a state blob of this owner."""
        rows = self._metadata().filter(
            self._typed(OuterRef("chunk_id")),
            key=CONVERSATION_ID,
            chunk__user_id=_user_key(owner),
        )
        found = rows.values_list("value", flat=True).distinct().order_by("value")
        return [str(value) for value in found]

    def ids(self, *, after: str = "", limit: int = 500) -> Sequence[str]:
        """Return the ids of every conversation with a state blob, in ascending order."""
        return lists.names(after=after, limit=limit)

    def last_key(self) -> Any:
        return self._chunks().aggregate(last=Max("pk"))["last"]

    def key_after(self, low: Any, upper: Any, *, count: int) -> Any:
        return key_after(self._chunks(), low, upper, count=count)

    def ids_between(self, low: Any, high: Any, *, settled: datetime | None = None) -> Sequence[str]:
        rows = self._named()
        if low is not None and settled is not None:
            before = self._blobs(OuterRef("value")).filter(
                chunk_id__lte=low, chunk__created_at__lt=settled
            )
            rows = rows.filter(~Exists(before))
        # Bounded on both sides: see EVERY_KEY.
        low = -EVERY_KEY if low is None else low
        found = between(rows, low, high, name="chunk_id").values_list("value", flat=True)
        return [str(value) for value in found.distinct().order_by("value")]

    def met(self, ids: Sequence[str], low: Any) -> Collection[str]:
        return bulk_read.met(ids, low)

    def mark(self) -> str:
        newest = self._chunks().aggregate(newest=Max("pk"))["newest"]
        return str(newest or 0)

    def ids_written_since(self, mark: str) -> Iterable[str]:
        """Return the ids of conversations with a later state blob."""
        rows = between(self._named(), int(mark), EVERY_KEY, name="chunk_id")
        # Not distinct() in SQL: SQLite would read all values in their order.
        return [str(value) for value in dict.fromkeys(rows.values_list("value", flat=True))]


def _unreadable(pk: Any, error: InvalidState) -> UnreadableState:
    return UnreadableState(f"legacy chunk {pk} holds no state: {error}")


def _ids(foreign_ids: str) -> list[int]:
    return [int(chunk_id) for chunk_id in foreign_ids.split(",") if chunk_id]


def _text(key: Any) -> str | None:
    return None if key is None else str(key)


def _user_key(owner: str) -> Any:
    field: Any = MemoryChunk._meta.get_field("user")
    return field.target_field.to_python(owner)
