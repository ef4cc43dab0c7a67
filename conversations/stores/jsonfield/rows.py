"""The rows that can be created in a host's table, and a row for a drill that is rolled back."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from itertools import islice, product
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import AutoField, Max, Model

from conversations import conf
from conversations.content.document import Document
from conversations.exceptions import InvalidState
from conversations.stores.jsonfield.ids import IdColumn
from conversations.stores.jsonfield.table import HostTable

# How many rows of a referenced table are tried.
_TRIED = 50


class HostRows(HostTable):
    """The part of JSONFieldStore that knows the needs of a new row."""

    def refusal(self, conversation_id: str, *, owner: str | None) -> str:
        label = self.model._meta.label
        values = self.host_ids.values(conversation_id)
        if values is None:
            return (
                f"can be no id in {label}, which names conversations by {self._spelling()}:"
                f" make the row of {label} first, and pass its id as text"
            )
        if self._given_later(values):
            return f"is no id that {label} has given yet: make its row first, and pass its id"
        if needed := self._needed(owner):
            return (
                f"has no row in {label}, and a new one needs {', '.join(needed)}: make the row"
                " first, or give the columns a default (an owner is user_id)"
            )
        return ""

    def _spelling(self) -> str:
        return " and ".join(f"{column.name} ({column.kind})" for column in self.host_ids.columns)

    def _given_later(self, values: Sequence[Any]) -> bool:
        """Whether the database assigns these keys itself, and has not assigned this one yet.

        A row of ours with that key would block the row that gets it later.
        """
        if not self._numbered:
            return False
        return not self._rows().filter(pk__gte=values[0]).exists()

    @property
    def _numbered(self) -> bool:
        """Whether a conversation's id is a primary key that the database assigns."""
        key = self.model._meta.pk
        return isinstance(key, AutoField) and self.host_ids.names == [key.attname]

    def _needed(self, owner: str | None) -> list[str]:
        """Return the columns that a new row needs, and that neither we nor a default fill."""
        ours = {self.version_name, self.updated_name, self.newest_name, self.state_name}
        ours |= {*self.host_ids.names} | ({self.owner_name} if owner is not None else set())
        return [
            field.name
            for field in self.model._meta.concrete_fields
            if not {field.name, field.attname} & ours and _needs_a_value(field)
        ]

    def specimen(self) -> str:
        free = str(uuid.uuid4())
        if not self.refusal(free, owner=None):
            return free
        found = self._free_id()
        if found is not None:
            values = found | dict(map(self._sample, self._needed(None)))
            values[self.state_name] = self.format.value_of(Document.from_dict({}))
            try:
                with transaction.atomic(using=conf.alias()):
                    return self.host_ids.of(self._rows().create(**values))
            except IntegrityError:
                # The values must fit together, and only the host knows how.
                pass
        # Every user may already have a chat: then the drill uses one of them, and is rolled back.
        return self.host_ids.of(self._rows().order_by("-pk")[:1].get())

    def _free_id(self) -> dict[str, Any] | None:
        """Return the columns of an unused id, {} if the database assigns it.

        None if no unused id was found, but there are rows. Raises: InvalidState.
        """
        if self._numbered:
            return {}
        choices = [self._choices(column) for column in self.host_ids.columns]
        wanted = {
            f"{name}__in": values for name, values in zip(self.host_ids.names, choices, strict=True)
        }
        taken = set(self._rows().filter(**wanted).values_list(*self.host_ids.names))
        for found in islice(product(*choices), _TRIED * _TRIED):
            if found not in taken:
                return self.host_ids.pairs(found)
        if taken:
            return None
        raise InvalidState(
            f"there is nothing yet that a row of {self.model._meta.label} can name by"
            f" {' and '.join(self.host_ids.names)}",
            path="conversation_id",
        )

    def _choices(self, column: IdColumn) -> list[Any]:
        if column.related is not None:
            # The latest users have chats less often.
            return _keys(column.related, f"-{column.target_name}")
        if column.is_uuid:
            return [uuid.uuid4()]
        if column.is_text:
            return [uuid.uuid4().hex[: column.field.max_length]]
        return [(self._rows().aggregate(last=Max(column.name))["last"] or 0) + 1]

    def _sample(self, name: str) -> tuple[str, Any]:
        """Return a column with the value of some row, else of a row that it may refer to.

        Raises: InvalidState.
        """
        field: Any = self.model._meta.get_field(name)
        found = list(self._rows().values_list(field.attname, flat=True)[:1])
        if not found and field.is_relation:
            found = _keys(field.related_model, f"-{field.target_field.attname}")
        for value in found:
            return field.attname, value
        raise InvalidState(
            f"there is no row yet to take {name} from for a drill", path="conversation_id"
        )


def _keys(model: type[Model], order: str) -> list[Any]:
    """Return the first keys of a model, by a column in ascending or descending order."""
    rows = model._base_manager.using(conf.alias()).order_by(order)
    return list(rows.values_list(order.removeprefix("-"), flat=True)[:_TRIED])


def _needs_a_value(field: Any) -> bool:
    if field.null or field.generated or isinstance(field, AutoField):
        return False
    if getattr(field, "auto_now", False) or getattr(field, "auto_now_add", False):
        return False
    return not field.has_db_default() and field.get_default() is None
