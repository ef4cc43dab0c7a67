"""JSONFieldStore: a host's own model that keeps one JSON or text blob per conversation.

`CONVERSATIONS["LEGACY"]` maps "model", "conversation_id" and "state". Optional: "owner" and
"updated_at". "version", a column that the host changes with every write; without it, the token is
a digest of the stored value. "to_state" and "from_state", dotted paths of functions between the
host's JSON and `AgentState.to_dict()`. "newest_by", see `appended_rows`.

"conversation_id" names a column of texts, integers or UUIDs, or a list of columns; see `ids`. It
may also be the owner's column: then the id itself names the owner.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from django.core.checks import CheckMessage
from django.db import connections
from django.db.models import (
    DateTimeField,
    F,
    Func,
    IntegerField,
    QuerySet,
    TextField,
    UUIDField,
)
from django.db.models.expressions import Combinable
from django.db.models.functions import Cast
from django.utils import timezone

from conversations import conf
from conversations.content.document import Document
from conversations.exceptions import InvalidState, UnreadableState
from conversations.models import in_pages
from conversations.stores.jsonfield.checks import check_mapping
from conversations.stores.jsonfield.ids import NOWHERE
from conversations.stores.jsonfield.rows import HostRows
from conversations.stores.jsonfield.table import ABSENT
from conversations.stores.sql.expressions import (
    NEVER,
    between,
    byte_length,
    has_foreign_key,
    key_after,
    listed_behind,
    single_row,
)
from conversations.stores.types import (
    Blobs,
    BlobState,
    ForeignBlob,
    IdRefused,
    Leftovers,
    Pruned,
    Stored,
    Summary,
)
from flags.phases import StoreName
from flags.texts import shown

LONGEST_STEP = 1000


class JSONFieldStore(HostRows):
    """One upserted row per conversation in a host's table."""

    name = StoreName.LEGACY.value
    # The host's own rows stay theirs.
    removable = False

    @classmethod
    def check(cls, legacy: Mapping[Any, Any]) -> Iterable[CheckMessage]:
        return check_mapping(legacy)

    @property
    def names_owners(self) -> bool:
        return self.owner_name is not None

    def owner_by_id(self, conversation_id: str) -> str | None:
        values = self.host_ids.values(conversation_id)
        if values is None or self.owner_name not in self.host_ids.names:
            return None
        return str(values[self.host_ids.names.index(self.owner_name)])

    def _owner(self, row: Any) -> str | None:
        owner = None if self.owner_name is None else getattr(row, self.owner_name)
        return None if owner is None else str(owner)

    def last_ours_from(self, text: str | None, *, known: str) -> Stored | None:
        # A null although there may be a row: `last_ours` handles that.
        if text is None:
            return None
        value: Any = text
        if self.format.as_json:
            value = self.state_field.from_db_value(text, None, connections[conf.alias()])
        try:
            document = self.format.document_of(value)
        except InvalidState as error:
            raise UnreadableState(f"legacy holds no state: {error}") from error
        return Stored(document, owner=None, version=known, updated_at=None)

    def _stored(self, row: Any) -> Stored:
        return Stored(
            self.format.document_of(getattr(row, self.state_name)),
            owner=self._owner(row),
            version=self.token_of(row.store_token, ""),
            updated_at=getattr(row, self.updated_name) if self.updated_name else None,
            reference=str(row.pk),
        )

    def load(self, conversation_id: str) -> Stored | None:
        row = self._row(conversation_id).first()
        return None if row is None else self._readable(row)

    def _readable(self, row: Any) -> Stored:
        try:
            return self._stored(row)
        except InvalidState as error:
            raise UnreadableState(f"legacy row {shown(row.pk)} holds no state: {error}") from error

    def save(
        self,
        conversation_id: str,
        document: Document,
        *,
        owner: str | None = None,
        revision: int = 0,
        known: str = "",
    ) -> str:
        value = self.format.value_of(document, held=self._value(conversation_id))
        values = {self.state_name: value, **self._owned_by(owner)}
        if self.version_name:
            values[self.version_name] = self._next_version()
        if self.updated_name:
            values[self.updated_name] = timezone.now()
        if not self._row(conversation_id).update(**values):
            if self.version_name and isinstance(values[self.version_name], Combinable):
                # There is no number yet to count on from.
                values[self.version_name] = 1
            self._rows().create(**self._new_id(conversation_id, owner), **values)
        return self.token(conversation_id)

    def _value(self, conversation_id: str) -> Any:
        """Return a conversation's value in the column, if a save keeps its shape."""
        if self.format.from_state is not None:
            return None
        held = self._row(conversation_id).values_list(self.state_name, flat=True)
        return next(iter(held[:1]), None)

    def _owned_by(self, owner: str | None) -> dict[str, Any]:
        """Return the owner's column, unless the id is that column."""
        if owner is None or self.owner_name is None or self.owner_name in self.host_ids.names:
            return {}
        # Also if a writer gave the row to another owner: that owner must not find this content.
        return {self.owner_name: owner}

    def _new_id(self, conversation_id: str, owner: str | None) -> dict[str, Any]:
        """Return the columns that name a new row. Raises: IdRefused."""
        if problem := self.refusal(conversation_id, owner=owner):
            raise IdRefused(problem, path="conversation_id")
        values = self.host_ids.values(conversation_id)
        assert values is not None
        return self.host_ids.pairs(values)

    def _next_version(self) -> Any:
        assert self.version_name is not None
        column = self.model._meta.get_field(self.version_name)
        if isinstance(column, IntegerField):
            # A host that adds 1 to a version it read long ago must not arrive at our number.
            return F(self.version_name) + 2 + secrets.randbelow(LONGEST_STEP)
        if isinstance(column, DateTimeField):
            return timezone.now()
        return uuid.uuid4() if isinstance(column, UUIDField) else uuid.uuid4().hex

    def delete(self, conversation_id: str) -> bool:
        deleted, _ = self._row(conversation_id).delete()
        return bool(deleted)

    def list(
        self,
        *,
        owner: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int | None = None,
    ) -> Sequence[Summary]:
        """Return summaries; ordered by id alone if the mapping names no "updated_at"."""
        rows = self._listed() if owner is None else self._owned(self._listed(), owner)
        time, order = self._time_name, self.host_ids.order("-")
        if before is not None and time:
            rows = rows.filter(
                listed_behind(before, time=time, lower=self.host_ids.below(before[1]))
            )
        elif before is not None and before[0] == NEVER:
            rows = rows.filter(self.host_ids.below(before[1]))
        first = [F(time).desc(nulls_last=True)] if time else []
        # The owner's column may be among those that name the conversation.
        columns = dict.fromkeys([*self.host_ids.names, time, self.owner_name])
        names = [column for column in columns if column is not None]
        return [self._summary(row) for row in rows.order_by(*first, *order).values(*names)[:limit]]

    def _summary(self, row: Mapping[str, Any]) -> Summary:
        """Return the line of a row; a column that the host does not have is None."""
        name = self.host_ids.text([row[column] for column in self.host_ids.names])
        time, owner = row.get(self._time_name or ""), row.get(self.owner_name or "")
        return Summary(name, time, None, self.name, None if owner is None else str(owner))

    def _listed(self) -> QuerySet[Any]:
        """Return one row of each conversation."""
        return self._rows()

    @property
    def _time_name(self) -> str | None:
        """Return the column that orders lists."""
        return self.updated_name

    def _owned(self, rows: QuerySet[Any], owner: str) -> QuerySet[Any]:
        """Return an owner's rows: none if no column names owners."""
        if self.owner_name is None:
            return rows.filter(NOWHERE)
        return rows.filter(**{self.owner_name: owner})

    def token(self, conversation_id: str, known: str = "") -> str:
        """Return the token, and keep others from writing until the transaction ends.

        There is only one row: a write between this and ours would be lost.
        """
        rows = self._row(conversation_id)
        if connections[conf.alias()].in_atomic_block and self._vendor == "postgresql":
            rows = rows.select_for_update(of=("self",), no_key=True)
        row = next(iter(rows.values_list("store_token")), None)
        return ABSENT if row is None else self.token_of(row[0], known)

    @property
    def tables(self) -> Sequence[str]:
        return (self.model._meta.db_table,)

    def blobs(self) -> Blobs:
        quote = connections[conf.alias()].ops.quote_name
        text = f"CAST({quote(self._column(self.state_name))} AS text)"
        size = byte_length(text, self._vendor)
        return Blobs(*single_row(f"SELECT COUNT(*), SUM({size}) FROM {self._counted}"))

    def leftovers(self) -> Leftovers:
        """Count late writes: with one row per conversation, nothing is overtaken or orphaned."""
        quote = connections[conf.alias()].ops.quote_name
        (late,) = single_row(
            f"SELECT COUNT(*) FROM {quote(self.model._meta.db_table)} host"
            " JOIN conversation_tombstones gone"
            f" ON {self.host_ids.sql('host', 'gone.conversation_id')}"
        )
        return Leftovers(of_deleted=late)

    def overtaken(self) -> Blobs:
        return Blobs()

    def crowded(self, ids: Sequence[str], *, keep: int) -> Sequence[str]:
        return ()

    def prune(
        self,
        conversation_id: str,
        *,
        keep: int,
        needed: int,
        behind: Any = None,
        dry_run: bool = False,
        measured: bool = True,
    ) -> Pruned:
        """Remove nothing: with one row per conversation, nothing is ever overtaken."""
        return Pruned()

    def foreign_ids(self, conversation_id: str, known: str) -> str:
        return self.token(conversation_id)

    def list_foreign(
        self, conversation_id: str, known: str, foreign_ids: str
    ) -> Sequence[ForeignBlob]:
        row = self._row(conversation_id).first()
        if row is None or self.token_of(row.store_token, "") == known:
            return []
        return [self._foreign(row)]

    def _foreign(self, row: Any) -> ForeignBlob:
        try:
            return ForeignBlob(str(row.pk), self._owner(row), stored=self._stored(row))
        except InvalidState as error:
            return ForeignBlob(str(row.pk), self._owner(row), problem=str(error))

    def last_ours(self, conversation_id: str, *, revision: int, known: str) -> Stored | None:
        row = self._row(conversation_id).first()
        # A blob that others wrote need not even be readable.
        if row is None or self.token_of(row.store_token, "") != known:
            return None
        return self._readable(row)

    def correct(
        self, conversation_id: str, reference: str, document: Document, foreign_ids: str
    ) -> str:
        return self.save(conversation_id, document)

    def mark_ingested(
        self,
        conversation_id: str,
        *,
        revision: int,
        known: str,
        foreign_ids: str,
        quarantined: Sequence[str] = (),
    ) -> str:
        return foreign_ids

    def sizes(self, ids: Sequence[str]) -> Mapping[str, int]:
        text = Cast(F(self.state_name), TextField())
        template = byte_length("%(expressions)s", self._vendor)
        size = Func(text, template=template, output_field=IntegerField())
        rows = self.host_ids.among(self._listed(), ids).annotate(store_size=size)
        found = rows.values_list(*self.host_ids.names, "store_size")
        return {self.host_ids.text(row[:-1]): int(row[-1] or 0) for row in found}

    def read_many(self, ids: Sequence[str]) -> Sequence[BlobState]:
        """Lock nothing: state and token are of one moment, and a later write has another token."""
        rows = self.host_ids.among(self._tokened(self._listed()), ids)
        found = {self.host_ids.of(row): row for row in rows}
        # A column that accepts two spellings of one id returns another one than was asked for.
        respelled = not found.keys() <= set(ids)
        return [
            self._look(name, found[name])
            if name in found
            else BlobState(name, held=respelled, token=ABSENT)
            for name in ids
        ]

    def _look(self, name: str, row: Any) -> BlobState:
        token = self.token_of(row.store_token, "")
        try:
            return BlobState(
                name, held=True, token=token, stored=self._stored(row), foreign_ids=token
            )
        except InvalidState:
            return BlobState(name, held=True, token=token, foreign_ids=token)

    def mark_many_ingested(self, looks: Sequence[BlobState], *, revision: int) -> None:
        """Do nothing: a row has no mark of its own."""

    def renumber(self, conversation_id: str, *, old: int, new: int) -> None:
        """Do nothing: a row has no number of its own."""

    def owner(self, conversation_id: str) -> tuple[bool, str | None]:
        name = self.owner_name or "pk"
        found = next(iter(self._row(conversation_id).values_list(name)[:1]), None)
        if found is None or self.owner_name is None or found[0] is None:
            return found is not None, None
        return True, str(found[0])

    def takes_any_owner(self) -> bool:
        if self.owner_name is None:
            return True
        return not has_foreign_key(self.model, self._column(self.owner_name))

    def claim(self, conversation_id: str, owner: str) -> None:
        if self.owner_name is not None:
            self._row(conversation_id).update(**{self.owner_name: owner})

    def rewrite(
        self, conversation_id: str, change: Callable[[Document], Document | None], *, known: str
    ) -> str:
        stored = self.load(conversation_id)
        document = None if stored is None else change(stored.document)
        if stored is None or document is None:
            return self.token(conversation_id)
        return self.correct(conversation_id, stored.reference, document, foreign_ids="")

    def conversations_of(self, owner: str) -> Sequence[str]:
        return self._names(self._owned(self._rows(), owner))

    def _names(self, rows: QuerySet[Any], limit: int | None = None) -> Sequence[str]:
        """Return the ids of rows, each once, in ascending order."""
        names = rows.order_by(*self.host_ids.order()).values_list(*self.host_ids.names)
        return [self.host_ids.text(found) for found in names[:limit]]

    def ids(self, *, after: str = "", limit: int = 500) -> Sequence[str]:
        return self._names(self._rows().filter(self.host_ids.above(after)), limit)

    def last_key(self) -> Any:
        last = self._rows().order_by("-pk").values_list("pk", flat=True).first()
        return None if last is None else _json_key(last)

    def key_after(self, low: Any, upper: Any, *, count: int) -> Any:
        found = key_after(self._rows(), low, upper, count=count)
        return None if found is None else _json_key(found)

    def ids_between(self, low: Any, high: Any, *, settled: datetime | None = None) -> Sequence[str]:
        rows = between(self._rows(), low, high, name="pk").order_by("pk")
        return [self.host_ids.text(found) for found in rows.values_list(*self.host_ids.names)]

    def met(self, ids: Sequence[str], low: Any) -> Collection[str]:
        """Return nothing: a conversation has one row."""
        return ()

    def mark(self) -> str:
        return timezone.now().isoformat()

    def ids_written_since(self, mark: str) -> Iterable[str]:
        """Return the ids updated since by the host's time; all ids without such a column."""
        rows = self._rows()
        if self._time_name:
            rows = rows.filter(**{f"{self._time_name}__gte": datetime.fromisoformat(mark)})
        return (self.host_ids.text(found) for found in in_pages(rows, *self.host_ids.names))


def _json_key(key: Any) -> Any:
    """Return a primary key as JSON holds it: a number, or the text of any other type."""
    return key if isinstance(key, int) else str(key)
