"""A host's own table with several rows per conversation: each write of the host adds one.

The mapping's "newest_by" names the column that orders the rows (a time, or a number; ties go to
the greater primary key). A load takes the newest row. A save inserts a row behind it, as the host
does, and changes no other row, so no row of the host is lost. The token is the primary key of the
newest row, with a digest of its value. Every row behind the token's row was written by others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from django.db import connections
from django.db.models import DateTimeField, Exists, F, Field, Func, OuterRef, Q, QuerySet, Subquery
from django.utils import timezone

from conversations import conf
from conversations.content.digests import digest_of
from conversations.content.document import Document
from conversations.stores.jsonfield.store import JSONFieldStore
from conversations.stores.jsonfield.table import ABSENT
from conversations.stores.sql.expressions import LAST_MOMENT, between, byte_length, single_row
from conversations.stores.types import Blobs, ForeignBlob, Leftovers, Pruned, Stored

# The text between the key and the value of a token.
_DIGESTED, _WHOLE = " s:", " d:"


class AppendedRows(JSONFieldStore):
    """Rows in a host's table, of which each write adds one."""

    newest_name: str

    @property
    def _dated(self) -> bool:
        return isinstance(self.model._meta.get_field(self.newest_name), DateTimeField)

    @property
    def _time_name(self) -> str | None:
        return self.updated_name or (self.newest_name if self._dated else None)

    def _ordered(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        return rows.order_by(f"-{self.newest_name}", "-pk")

    def _row(self, conversation_id: str) -> QuerySet[Any]:
        return self._ordered(super()._row(conversation_id))

    def _listed(self) -> QuerySet[Any]:
        """Return the newest row of each conversation."""
        same = {name: OuterRef(name) for name in self.host_ids.names}
        newest = self._ordered(self._rows().filter(**same)).values("pk")[:1]
        return self._rows().filter(pk=Subquery(newest))

    def _behind(self, row: Any) -> Q:
        """Return the condition of being newer than a row."""
        newest = getattr(row, self.newest_name)
        later = Q(**{f"{self.newest_name}__gt": newest})
        return later | Q(**{self.newest_name: newest, "pk__gt": row.pk})

    # Tokens

    @property
    def _first_of(self) -> str:
        quoted = connections[conf.alias()].ops.quote_name
        newest, key = (
            f"host.{quoted(self._column(name))}" for name in (self.newest_name, self._key_name)
        )
        return f" ORDER BY {newest} DESC, {key} DESC LIMIT 1"

    @property
    def _key_name(self) -> str:
        key = self.model._meta.pk
        assert key is not None
        return key.name

    def _parts(self) -> tuple[str, str, str]:
        """Return the SQL around and between the two parts of a token, the key and the value."""
        if self._vendor == "postgresql":
            digest = "encode(sha256(convert_to(CAST("
            return (
                "CAST(",
                f" AS text) || '{_DIGESTED}' || COALESCE({digest}",
                " AS text), 'UTF8')), 'hex'), '')",
            )
        return "CAST(", f" AS text) || '{_WHOLE}' || COALESCE(CAST(", " AS text), '')"

    def _raw_token(self) -> Func:
        before, between_, behind = self._parts()
        return Func(
            F("pk"),
            F(self.state_name),
            template=f"{before}%(expressions)s{behind}",
            arg_joiner=between_,
            output_field=Field(),
        )

    def token_sql(self) -> str:
        before, between_, behind = self._parts()
        key = connections[conf.alias()].ops.quote_name(self._column(self._key_name))
        return self._beside(
            self.state_name, lambda column: f"{before}host.{key}{between_}{column}{behind}"
        )

    def last_ours_sql(self) -> tuple[str, ...] | None:
        found = super().last_ours_sql()
        return None if found is None else (self.token_sql(), found[-1])

    def token_of(self, found: Any, known: str) -> str:
        if found is None:
            return ABSENT
        key, _, value = str(found).partition(_WHOLE)
        if self._vendor == "postgresql":
            return str(found)
        return f"{key}{_WHOLE}{digest_of(value).hex()}"

    def token_unchanged_sql(self) -> str | None:
        if self._vendor != "postgresql":
            return None
        return f"COALESCE({self.token_sql()}, '{ABSENT}') = conversation_states.legacy_token"

    def token(self, conversation_id: str, known: str = "") -> str:
        """Return the token without blocking other writers: their rows stay beside ours."""
        found = next(iter(self._row(conversation_id).values_list("store_token")[:1]), None)
        return ABSENT if found is None else self.token_of(found[0], known)

    def _known_row(self, conversation_id: str, known: str) -> Any:
        """Return the row that a token names; None if it names none, or the row is gone."""
        key = known.partition(" ")[0]
        if not known or known == ABSENT:
            return None
        return self._row(conversation_id).filter(pk=key).first()

    # Writing

    def save(
        self,
        conversation_id: str,
        document: Document,
        *,
        owner: str | None = None,
        revision: int = 0,
        known: str = "",
    ) -> str:
        """Insert a row behind the newest; it copies that row's unmapped columns."""
        newest = self._row(conversation_id).first()
        held = None if newest is None else getattr(newest, self.state_name)
        value = self.format.value_of(document, held=held)
        values = {self.state_name: value, **self._owned_by(owner)}
        if newest is None:
            values |= self._new_id(conversation_id, owner)
        else:
            values = self._as_in(newest) | values
        if self.updated_name:
            values[self.updated_name] = timezone.now()
        self._insert(values, newest)
        token = self.token(conversation_id)
        before = self._known_row(conversation_id, known)
        if before is not None:
            behind = self._rows().filter(self.host_ids.named(conversation_id), self._behind(before))
            if behind.count() > 1:
                # One of the rows came in meanwhile from another writer, and must still be ingested.
                return known
        return token

    def _as_in(self, row: Any) -> dict[str, Any]:
        """Return the columns of a row that a further row of its conversation shares."""
        return {
            field.attname: getattr(row, field.attname)
            for field in self.model._meta.concrete_fields
            if not (field.primary_key or field.unique or field.generated)
            and field.name != self.newest_name
        }

    def _insert(self, values: dict[str, Any], newest: Any) -> None:
        if self.newest_name == self._key_name:
            self._rows().create(**values)
            return
        last = None if newest is None else getattr(newest, self.newest_name)
        if self._dated:
            # A clock that ran to the end of time leaves no later moment; the key decides then.
            moment = timezone.now()
            if last is not None:
                moment = max(moment, min(last, LAST_MOMENT) + timedelta(microseconds=1))
            place: Any = moment
        else:
            place = 1 if last is None else last + 1
        # The column may also be the one of the latest activity: the place is later than all others.
        made = self._rows().create(**values | {self.newest_name: place})
        if getattr(made, self.newest_name) != place:
            # auto_now_add uses this process's clock, which may be behind that of the last writer.
            self._rows().filter(pk=made.pk).update(**{self.newest_name: place})

    def correct(
        self, conversation_id: str, reference: str, document: Document, foreign_ids: str
    ) -> str:
        row = self._row(conversation_id).get(pk=reference)
        self._rewrite_row(row, document)
        return self._seen_now(conversation_id, row, foreign_ids)

    def _rewrite_row(self, row: Any, document: Document) -> None:
        value = self.format.value_of(document, held=getattr(row, self.state_name))
        self._rows().filter(pk=row.pk).update(**{self.state_name: value})

    def _seen_now(self, conversation_id: str, row: Any, token: str) -> str:
        """Return the token of a row, after a possible rewrite of it."""
        if self.token_of(row.store_token, "") != token:
            return token
        return self.token_of(self._row(conversation_id).get(pk=row.pk).store_token, "")

    def rewrite(
        self, conversation_id: str, change: Callable[[Document], Document | None], *, known: str
    ) -> str:
        # One by one: each may have megabytes.
        for key in list(self._row(conversation_id).values_list("pk", flat=True)):
            row = self._row(conversation_id).get(pk=key)
            document = change(self._readable(row).document)
            if document is not None:
                self._rewrite_row(row, document)
                known = self._seen_now(conversation_id, row, known)
        return known

    def claim(self, conversation_id: str, owner: str) -> None:
        """Give the conversation's rows to a user, except rows with another owner."""
        if self.owner_name is not None:
            rows = self._rows().filter(self.host_ids.named(conversation_id))
            rows.filter(**{f"{self.owner_name}__isnull": True}).update(**self._owned_by(owner))

    def delete(self, conversation_id: str) -> bool:
        deleted, _ = self._rows().filter(self.host_ids.named(conversation_id)).delete()
        return bool(deleted)

    # Reading

    def list_foreign(
        self, conversation_id: str, known: str, foreign_ids: str
    ) -> Sequence[ForeignBlob]:
        """Return the rows behind the known one, in the order of writing.

        If the known row is gone (hosts prune), only the newest one is returned, as a load reads it.
        """
        rows = self._row(conversation_id)
        last = self._known_row(conversation_id, foreign_ids)
        if last is None:
            return []
        rows = rows.exclude(self._behind(last))
        first = self._known_row(conversation_id, known)
        if first is not None:
            # The host may have changed the known row itself in place.
            rows = rows.filter(self._behind(first) | Q(pk=first.pk))
        elif known not in ("", ABSENT):
            rows = rows.filter(pk=last.pk)
        return [
            self._foreign(row)
            for row in rows.reverse()
            if self.token_of(row.store_token, "") != known
        ]

    def last_ours(self, conversation_id: str, *, revision: int, known: str) -> Stored | None:
        row = self._known_row(conversation_id, known)
        if row is None or self.token_of(row.store_token, "") != known:
            return None
        return self._readable(row)

    def conversations_of(self, owner: str) -> Sequence[str]:
        return self._names(self._owned(self._rows(), owner).distinct())

    def ids(self, *, after: str = "", limit: int = 500) -> Sequence[str]:
        return self._names(self._rows().filter(self.host_ids.above(after)).distinct(), limit)

    def ids_between(self, low: Any, high: Any, *, settled: datetime | None = None) -> Sequence[str]:
        rows = between(self._rows(), low, high, name="pk")
        if low is not None and settled is not None and self._dated:
            same = {name: OuterRef(name) for name in self.host_ids.names}
            before = {"pk__lte": low, f"{self.newest_name}__lt": settled}
            rows = rows.filter(~Exists(self._rows().filter(**same, **before)))
        return self._names(rows.distinct())

    def met(self, ids: Sequence[str], low: Any) -> Collection[str]:
        rows = self.host_ids.among(self._rows().filter(pk__lte=low), ids)
        return frozenset(self._names(rows.distinct()))

    def leftovers(self) -> Leftovers:
        late = self.overtaken()
        return replace(super().leftovers(), overtaken=late.count, overtaken_bytes=late.bytes)

    def overtaken(self) -> Blobs:
        every, read = self.blobs(), self._newest_blobs()
        return Blobs(every.count - read.count, every.bytes - read.bytes)

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
        """Remove nothing: no row says that we wrote it, so `crowded` names no conversation."""
        return Pruned()

    def _newest_blobs(self) -> Blobs:
        """Count the newest row of each conversation."""
        quote = connections[conf.alias()].ops.quote_name
        names = ", ".join(quote(self._column(name)) for name in self.host_ids.names)
        size = byte_length(f"CAST({quote(self._column(self.state_name))} AS text)", self._vendor)
        order = ", ".join(
            f"{quote(self._column(name))} DESC" for name in (self.newest_name, self._key_name)
        )
        return Blobs(
            *single_row(
                "SELECT COUNT(*), SUM(size) FROM ("
                f"SELECT {size} AS size, ROW_NUMBER() OVER (PARTITION BY {names} ORDER BY {order})"
                f" AS place FROM {self._counted}) AS placed WHERE place = 1"
            )
        )
