"""The columns of a host's table that name a conversation, and the text that names it here.

A conversation's id is text here. A host may keep it as an integer or a UUID, in one column or in
several. Each value has one canonical text: "7" (never "007"), lower-case UUIDs with dashes, and
the parts of several columns joined by ":". Another spelling names nothing, so one conversation
never gets two ids. SQL turns the text into the column's type, never the column into text, so that
the database can use the host's own index.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any
from uuid import UUID

from django.db import connections
from django.db.models import Field, IntegerField, Model, Q, QuerySet, UUIDField

from conversations import conf

SEPARATOR = ":"
# Every row has a primary key, so this matches none. Unlike an empty list, it is sent to the
# database: so an outage never looks like an empty store.
NOWHERE = Q(pk__isnull=True)
_INTEGER = re.compile("0|-?[1-9][0-9]*")
_MOST_INTEGERS = (-(2**63), 2**63 - 1)


class IdColumn:
    """One column of an id: its type, and the canonical text of its values."""

    def __init__(self, field: Any) -> None:
        self.name: str = field.attname
        self.column: str = field.column
        self.unique: bool = field.unique
        self.nullable: bool = field.null
        self.related: type[Model] | None = field.related_model
        self.target_name: str = field.target_field.attname if field.is_relation else ""
        while field.is_relation:
            field = field.target_field
        self.field: Field[Any, Any] = field
        self.is_integer = isinstance(field, IntegerField)
        self.is_uuid = isinstance(field, UUIDField)
        self.is_text = not (self.is_integer or self.is_uuid)

    @property
    def kind(self) -> str:
        """Return the type of the values, for messages."""
        return "text" if self.is_text else "UUID" if self.is_uuid else "integer"

    def value(self, text: str) -> Any:
        """Return the column's value for a canonical text, None for any other text."""
        if self.is_text:
            longest = self.field.max_length
            return text if longest is None or len(text) <= longest else None
        if self.is_uuid:
            return _uuid(text)
        if not _INTEGER.fullmatch(text):
            return None
        low, high = self._range
        return int(text) if low <= int(text) <= high else None

    @property
    def _range(self) -> tuple[int, int]:
        kind = self.field.get_internal_type()
        low, high = connections[conf.alias()].ops.integer_field_range(kind)
        return (
            _MOST_INTEGERS[0] if low is None else low,
            _MOST_INTEGERS[1] if high is None else high,
        )

    def text(self, value: Any) -> str:
        """Return the canonical text of a value of Django's."""
        return str(value)

    def sql(self, expression: str) -> str:
        """Return the SQL of the value that a text names, null for any text that is not canonical.

        No text makes it fail: only valid texts reach a cast.
        """
        postgresql = connections[conf.alias()].vendor == "postgresql"
        if self.is_text:
            return expression
        if self.is_uuid:
            return _uuid_sql(expression, postgresql=postgresql)
        return _integer_sql(expression, postgresql=postgresql)


def _uuid(text: str) -> UUID | None:
    try:
        found = UUID(text)
    except ValueError:
        return None
    return found if str(found) == text else None


def _uuid_sql(text: str, *, postgresql: bool) -> str:
    dashed = f"{text} LIKE '________-____-____-____-____________'"
    hexadecimal = f"replace({text}, '-', '')"
    whole = f"length({hexadecimal}) = 32"
    if postgresql:
        lower = f"translate({text}, '0123456789abcdef-', '') = ''"
        return f"CASE WHEN {dashed} AND {whole} AND {lower} THEN CAST({text} AS uuid) END"
    # Django's char(32); a text that is no lower-case hexadecimal number equals none.
    return f"CASE WHEN {dashed} AND {whole} THEN {hexadecimal} END"


def _integer_sql(text: str, *, postgresql: bool) -> str:
    low, high = _MOST_INTEGERS
    if postgresql:
        return (
            f"CASE WHEN {text} ~ '^(0|-?[1-9][0-9]*)$' THEN"
            f" CASE WHEN CAST({text} AS numeric) BETWEEN {low} AND {high}"
            f" THEN CAST({text} AS bigint) END END"
        )
    # SQLite turns a number that it cannot hold into another text.
    number = f"CAST({text} AS integer)"
    return f"CASE WHEN CAST({number} AS text) = {text} THEN {number} END"


class HostIds:
    """The columns that name a conversation in a host's table, mostly one."""

    def __init__(self, model: type[Model], names: Sequence[str]) -> None:
        self.columns = [IdColumn(model._meta.get_field(name)) for name in names]

    @property
    def names(self) -> list[str]:
        """Return the names of the columns, for `values_list`."""
        return [column.name for column in self.columns]

    @property
    def given(self) -> Q:
        """Return the condition of having an id: a row without one belongs to no conversation."""
        return Q(**{f"{each.name}__isnull": False for each in self.columns if each.nullable})

    def values(self, conversation_id: str) -> tuple[Any, ...] | None:
        """Return the values of the columns, None if this text can name no conversation there."""
        parts = conversation_id.split(SEPARATOR, len(self.columns) - 1)
        if len(parts) < len(self.columns):
            return None
        found = tuple(column.value(part) for column, part in zip(self.columns, parts, strict=True))
        return None if None in found else found

    def text(self, values: Sequence[Any]) -> str:
        """Return the id that these values of the columns form."""
        return SEPARATOR.join(
            column.text(value) for column, value in zip(self.columns, values, strict=True)
        )

    def of(self, row: Any) -> str:
        """Return the id of an instance of the model."""
        return self.text([getattr(row, name) for name in self.names])

    def named(self, conversation_id: str) -> Q:
        """Return the condition of being a row of a conversation."""
        values = self.values(conversation_id)
        return NOWHERE if values is None else Q(**self.pairs(values))

    def pairs(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the columns with these values, by name."""
        return dict(zip(self.names, values, strict=True))

    def among(self, rows: QuerySet[Any], ids: Sequence[str]) -> QuerySet[Any]:
        """Return those of the rows that belong to any of these conversations."""
        found = [values for values in map(self.values, ids) if values is not None]
        if len(self.columns) == 1:
            return rows.filter(**{f"{self.names[0]}__in": [value for (value,) in found]})
        named = [Q(**self.pairs(values)) for values in found]
        return rows.filter(reduce(or_, named or [NOWHERE]))

    def above(self, conversation_id: str) -> Q:
        """Return the condition of an id behind this one in the database's order; "": any id."""
        return self._beyond(conversation_id, "gt") if conversation_id else Q()

    def below(self, conversation_id: str) -> Q:
        """Return the condition of an id before this one in the database's order."""
        return self._beyond(conversation_id, "lt")

    def _beyond(self, conversation_id: str, way: str) -> Q:
        values = self.values(conversation_id)
        if values is None:
            return NOWHERE
        found = Q(**{f"{self.names[-1]}__{way}": values[-1]})
        for name, value in reversed([*zip(self.names[:-1], values[:-1], strict=True)]):
            # The first condition alone limits the part of an index that is read.
            found = Q(**{f"{name}__{way}e": value}) & (
                Q(**{f"{name}__{way}": value}) | Q(**{name: value}) & found
            )
        return found

    def order(self, sign: str = "") -> list[str]:
        """Return the names to order by, "-" for descending."""
        return [sign + name for name in self.names]

    def sql(self, table: str, expression: str) -> str:
        """Return the SQL condition that a text expression names a row of `table`."""
        quoted = connections[conf.alias()].ops.quote_name
        conditions = []
        for place, column in enumerate(self.columns):
            last = place == len(self.columns) - 1
            part = expression if last else _head(expression)
            conditions.append(f"{table}.{quoted(column.column)} = {column.sql(part)}")
            expression = _tail(expression)
        return " AND ".join(conditions)


def _position(text: str) -> str:
    if connections[conf.alias()].vendor == "postgresql":
        return f"strpos({text}, '{SEPARATOR}')"
    return f"instr({text}, '{SEPARATOR}')"


def _head(text: str) -> str:
    """Return the SQL of the text before the first separator, null without one."""
    at = _position(text)
    return f"(CASE WHEN {at} > 0 THEN substr({text}, 1, {at} - 1) END)"


def _tail(text: str) -> str:
    return f"substr({text}, {_position(text)} + 1)"
