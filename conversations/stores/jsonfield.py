"""JSONFieldStore: a host's own model that keeps one JSON or text blob per conversation.

`CONVERSATIONS["LEGACY"]` maps four names: "model", "conversation_id", "owner" and "state".
Optional: "version", a column that the host changes with every write (without it the token is a
digest of the stored value); "updated_at"; "to_state" and "from_state", dotted paths of functions
between the host's JSON and `AgentState.to_dict()`.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from django.db import connections
from django.db.models import (
    DateTimeField,
    F,
    Func,
    IntegerField,
    TextField,
    UUIDField,
)
from django.db.models.expressions import Combinable
from django.db.models.functions import Cast
from django.utils import timezone

from conversations import conf
from conversations.documents import Document
from conversations.exceptions import InvalidState, UnreadableState
from conversations.models import in_pages
from conversations.stores.base import (
    NEVER,
    Blobs,
    Foreign,
    Leftovers,
    Look,
    Stored,
    Summary,
    between,
    byte_length,
    grown,
    has_foreign_key,
    key_after,
    listed_behind,
    single_row,
)
from conversations.stores.hosttable import ABSENT, HostTable
from flags.phases import StoreName

LONGEST_STEP = 1000


class JSONFieldStore(HostTable):
    """One upserted row per conversation in a host's table."""

    name = StoreName.LEGACY.value

    def held_from(self, text: str | None, *, known: str) -> Stored | None:
        # A null where there is a row: what comes of that is for `held` to say.
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
        owner = getattr(row, self.owner_name)
        return Stored(
            self.format.document_of(getattr(row, self.state_name)),
            owner=None if owner is None else str(owner),
            version=self.judge(row.store_token, ""),
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
            raise UnreadableState(f"legacy row {row.pk} holds no state: {error}") from error

    def save(
        self,
        conversation_id: str,
        document: Document,
        *,
        owner: str | None = None,
        revision: int = 0,
        known: str = "",
    ) -> str:
        values = {self.state_name: self.format.value_of(document)}
        if owner is not None:
            # Whoever made the row another's: nobody else may find this in it.
            values[self.owner_name] = owner
        if self.version_name:
            values[self.version_name] = self._next_version()
        if self.updated_name:
            values[self.updated_name] = timezone.now()
        if not self._row(conversation_id).update(**values):
            if self.version_name and isinstance(values[self.version_name], Combinable):
                # There is nothing yet to count on from.
                values[self.version_name] = 1
            self._rows().create(**{self.id_name: conversation_id, **values})
        return self.token(conversation_id)

    def _next_version(self) -> Any:
        assert self.version_name is not None
        column = self.model._meta.get_field(self.version_name)
        if isinstance(column, IntegerField):
            # A host that counts up what it read long ago must not arrive at our number.
            return F(self.version_name) + 2 + secrets.randbelow(LONGEST_STEP)
        if isinstance(column, DateTimeField):
            return timezone.now()
        return uuid.uuid4() if isinstance(column, UUIDField) else uuid.uuid4().hex

    def append(
        self,
        conversation_id: str,
        messages: Sequence[Any],
        *,
        revision: int = 0,
        known: str = "",
    ) -> str:
        stored = grown(self.load(conversation_id), messages)
        return self.save(conversation_id, stored.document, owner=stored.owner)

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
        """Return summaries; by id alone when the mapping names no "updated_at"."""
        rows = self._rows() if owner is None else self._rows().filter(**{self.owner_name: owner})
        order: list[Any] = [f"-{self.id_name}"]
        if self.updated_name:
            order.insert(0, F(self.updated_name).desc(nulls_last=True))
        if before is not None and self.updated_name:
            rows = rows.filter(listed_behind(before, time=self.updated_name, name=self.id_name))
        elif before is not None and before[0] == NEVER:
            rows = rows.filter(**{f"{self.id_name}__lt": before[1]})
        names = [self.id_name, *([self.updated_name] if self.updated_name else [])]
        return [
            Summary(str(row[0]), row[1] if self.updated_name else None, None, self.name)
            for row in rows.order_by(*order).values_list(*names)[:limit]
        ]

    def token(self, conversation_id: str, known: str = "") -> str:
        """Return the token, and keep others from writing until the transaction ends.

        One row is all there is: a write that came between this and ours would be lost.
        """
        rows = self._row(conversation_id)
        if connections[conf.alias()].in_atomic_block and self._vendor == "postgresql":
            rows = rows.select_for_update(of=("self",), no_key=True)
        row = next(iter(rows.values_list("store_token")), None)
        return ABSENT if row is None else self.judge(row[0], known)

    @property
    def tables(self) -> Sequence[str]:
        return (self.model._meta.db_table,)

    def blobs(self) -> Blobs:
        quote = connections[conf.alias()].ops.quote_name
        text = f"CAST({quote(self._column(self.state_name))} AS text)"
        table = quote(self.model._meta.db_table)
        size = byte_length(text, self._vendor)
        return Blobs(*single_row(f"SELECT COUNT(*), SUM({size}) FROM {table}"))

    def leftovers(self) -> Leftovers:
        """One row per conversation overtakes and orphans nothing."""
        quote = connections[conf.alias()].ops.quote_name
        (late,) = single_row(
            f"SELECT COUNT(*) FROM {quote(self.model._meta.db_table)} host"
            " JOIN conversation_tombstones gone"
            f" ON gone.conversation_id = host.{quote(self._column(self.id_name))}"
        )
        return Leftovers(of_deleted=late)

    def survey(self, conversation_id: str, known: str) -> str:
        return self.token(conversation_id)

    def foreign(self, conversation_id: str, known: str, seen: str) -> Sequence[Foreign]:
        row = self._row(conversation_id).first()
        if row is None or self.judge(row.store_token, "") == known:
            return []
        owner = getattr(row, self.owner_name)
        owner = None if owner is None else str(owner)
        try:
            return [Foreign(str(row.pk), owner, stored=self._stored(row))]
        except InvalidState as error:
            return [Foreign(str(row.pk), owner, problem=str(error))]

    def held(self, conversation_id: str, *, revision: int, known: str) -> Stored | None:
        row = self._row(conversation_id).first()
        # What somebody else wrote need not even be readable.
        if row is None or self.judge(row.store_token, "") != known:
            return None
        return self._readable(row)

    def correct(self, conversation_id: str, reference: str, document: Document, seen: str) -> str:
        return self.save(conversation_id, document)

    def settle(
        self,
        conversation_id: str,
        *,
        revision: int,
        known: str,
        seen: str,
        quarantined: Sequence[str] = (),
    ) -> str:
        return seen

    def sizes(self, ids: Sequence[str]) -> Mapping[str, int]:
        text = Cast(F(self.state_name), TextField())
        template = byte_length("%(expressions)s", self._vendor)
        size = Func(text, template=template, output_field=IntegerField())
        rows = self._rows().filter(**{f"{self.id_name}__in": ids}).annotate(store_size=size)
        found = rows.values_list(self.id_name, "store_size")
        return {str(name): int(length or 0) for name, length in found}

    def looks(self, ids: Sequence[str]) -> Sequence[Look]:
        """Keeps nobody from writing: state and token are of one moment, and a later one differs."""
        rows = self._tokened().filter(**{f"{self.id_name}__in": ids})
        found = {str(getattr(row, self.id_name)): row for row in rows}
        # A column that takes two spellings for one id gives another one back.
        respelled = not found.keys() <= set(ids)
        return [
            self._look(name, found[name])
            if name in found
            else Look(name, held=respelled, token=ABSENT)
            for name in ids
        ]

    def _look(self, name: str, row: Any) -> Look:
        token = self.judge(row.store_token, "")
        try:
            return Look(name, held=True, token=token, stored=self._stored(row), seen=token)
        except InvalidState:
            return Look(name, held=True, token=token, seen=token)

    def settle_looks(self, looks: Sequence[Look], *, revision: int) -> None:
        """A row has no mark of its own."""

    def renumber(self, conversation_id: str, *, old: int, new: int) -> None:
        """A row has no number of its own."""

    def owner(self, conversation_id: str) -> tuple[bool, str | None]:
        found = self._row(conversation_id).values_list(self.owner_name).first()
        return found is not None, None if not found or found[0] is None else str(found[0])

    def takes_any_owner(self) -> bool:
        return not has_foreign_key(self.model, self._column(self.owner_name))

    def claim(self, conversation_id: str, owner: str) -> None:
        self._row(conversation_id).update(**{self.owner_name: owner})

    def rewrite(
        self, conversation_id: str, change: Callable[[Document], Document | None], *, known: str
    ) -> str:
        stored = self.load(conversation_id)
        document = None if stored is None else change(stored.document)
        if stored is None or document is None:
            return self.token(conversation_id)
        return self.correct(conversation_id, stored.reference, document, seen="")

    def conversations_of(self, owner: str) -> Sequence[str]:
        rows = self._rows().filter(**{self.owner_name: owner}).order_by(self.id_name)
        return [str(found) for found in rows.values_list(self.id_name, flat=True)]

    def ids(self, *, after: str = "", limit: int = 500) -> Sequence[str]:
        rows = self._rows().filter(**{f"{self.id_name}__gt": after}).order_by(self.id_name)
        return [str(found) for found in rows.values_list(self.id_name, flat=True)[:limit]]

    def last_key(self) -> Any:
        last = self._rows().order_by("-pk").values_list("pk", flat=True).first()
        return None if last is None else _json_key(last)

    def key_after(self, low: Any, upper: Any, *, count: int) -> Any:
        found = key_after(self._rows(), low, upper, count=count)
        return None if found is None else _json_key(found)

    def ids_between(self, low: Any, high: Any, *, settled: datetime | None = None) -> Sequence[str]:
        rows = between(self._rows(), low, high, name="pk").order_by("pk")
        return [str(found) for found in rows.values_list(self.id_name, flat=True)]

    def mark(self) -> str:
        return timezone.now().isoformat()

    def written_since(self, mark: str) -> Iterable[str]:
        """Return what the host says was updated since; all ids where it keeps no time."""
        rows = self._rows()
        if self.updated_name:
            rows = rows.filter(**{f"{self.updated_name}__gte": datetime.fromisoformat(mark)})
        return (str(found) for (found,) in in_pages(rows, self.id_name))


def _json_key(key: Any) -> Any:
    """Return a primary key as JSON holds it: a number, or the text of anything else."""
    return key if isinstance(key, int) else str(key)
