"""A host's own table of states, by the names of its columns, and the source of a token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from itertools import takewhile
from typing import Any

from django.apps import apps
from django.db import connections
from django.db.models import (
    CharField,
    F,
    Field,
    Func,
    IntegerField,
    JSONField,
    Model,
    QuerySet,
    TextField,
    UUIDField,
)
from django.db.models.signals import post_init
from django.utils.module_loading import import_string

from conversations import conf
from conversations.content.digests import digest_of
from conversations.stores.jsonfield.format import HostFormat
from conversations.stores.jsonfield.ids import HostIds

ABSENT = "-"
# Types of a version whose text is the same in PostgreSQL and in Python.
_SAME_TEXT = (IntegerField, CharField, TextField, UUIDField)


class HostTable:
    """The part of JSONFieldStore that knows the columns; it documents the mapping."""

    def __init__(self, mapping: Mapping[str, Any]) -> None:
        self.model: type[Model] = apps.get_model(mapping["model"])
        named = mapping["conversation_id"]
        self.host_ids = HostIds(self.model, [named] if isinstance(named, str) else named)
        owner = mapping.get("owner")
        self.owner_name: str | None = None
        if owner is not None:
            self.owner_name = self.model._meta.get_field(owner).attname
        self.state_name = mapping["state"]
        self.version_name = mapping.get("version")
        self.token_name: str = mapping.get("version") or mapping["state"]
        self.updated_name = mapping.get("updated_at")
        self.newest_name = mapping.get("newest_by")
        self.state_field: Any = self.model._meta.get_field(self.state_name)
        json_column = isinstance(self.state_field, JSONField)
        self.format = HostFormat(
            to_state=self._function(mapping.get("to_state")),
            from_state=self._function(mapping.get("from_state")),
            as_json=json_column,
            as_jsonb=json_column and self._vendor == "postgresql",
        )

    @staticmethod
    def _function(path: str | None) -> Callable[[Any], Any] | None:
        return None if path is None else import_string(path)

    @property
    def exact(self) -> bool:
        """Whether JSON returns exactly: text does, jsonb does not."""
        return not self.format.as_jsonb

    @property
    def _vendor(self) -> str:
        return str(connections[conf.alias()].vendor)

    def _column(self, name: str) -> str:
        field: Any = self.model._meta.get_field(name)
        return str(field.column)

    def _rows(self) -> QuerySet[Any]:
        rows: QuerySet[Any] = self.model._base_manager.using(conf.alias())
        return rows.filter(self.host_ids.given)

    @property
    def _counted(self) -> str:
        """Return the SQL of the table, with the condition that a row belongs to a conversation."""
        quoted = connections[conf.alias()].ops.quote_name
        nullable = [quoted(each.column) for each in self.host_ids.columns if each.nullable]
        given = " AND ".join(f"{column} IS NOT NULL" for column in nullable)
        return quoted(self.model._meta.db_table) + (given and f" WHERE {given}")

    def _tokened(self, rows: QuerySet[Any] | None = None) -> QuerySet[Any]:
        """Return the rows with the source of their tokens, as the database returns it."""
        chosen: QuerySet[Any] = self._rows() if rows is None else rows
        found: QuerySet[Any] = chosen.annotate(store_token=self._raw_token())
        return found

    def _raw_token(self) -> Func:
        # A Func with a bare Field converts nothing, as `token_sql` does.
        return Func(
            F(self.token_name), template=self._seen("%(expressions)s"), output_field=Field()
        )

    def _row(self, conversation_id: str) -> QuerySet[Any]:
        """Return the query whose first row holds a conversation."""
        return self._tokened().filter(self.host_ids.named(conversation_id))

    def _seen(self, column: str) -> str:
        """Return the SQL of a token's source: the version, else the stored value.

        PostgreSQL digests the value itself, so it need not send it.
        """
        if self.version_name or self._vendor != "postgresql":
            return column
        return f"sha256(convert_to(CAST({column} AS text), 'UTF8'))"

    @property
    def _first_of(self) -> str:
        """Return the SQL that picks one of a conversation's rows, if it has several."""
        return ""

    def token_sql(self) -> str:
        return self._beside(self.token_name, self._seen)

    def last_ours_sql(self) -> tuple[str, ...] | None:
        """Return the SQL of the state as text, if Django alone turns that into a value.

        The text is its own token, unless there is a version.
        """
        if type(self.state_field) not in (JSONField, TextField) or self._model_takes_part():
            return None
        text = self._beside(self.state_name, "CAST({} AS text)".format)
        return (self.token_sql(), text) if self.version_name else (text,)

    def _model_takes_part(self) -> bool:
        """Whether the host's model takes part in making an instance: it may decrypt, or convert."""
        kinds = takewhile(lambda kind: kind is not Model, self.model.__mro__)
        own = any(name in vars(kind) for kind in kinds for name in ("from_db", "__init__"))
        return own or post_init.has_listeners(self.model)

    def _beside(self, name: str, made: Callable[[str], str]) -> str:
        """Return the SQL of an expression over a column of the row, beside conversation_states."""
        quoted = connections[conf.alias()].ops.quote_name
        named = self.host_ids.sql("host", "conversation_states.conversation_id")
        return (
            f"(SELECT {made(f'host.{quoted(self._column(name))}')}"
            f" FROM {quoted(self.model._meta.db_table)} host WHERE {named}{self._first_of})"
        )

    def token_of(self, value: Any, known: str) -> str:
        """Return the version, or the digest of the stored value; "-" if there is no row.

        PostgreSQL has digested the value already, or returns it as text.
        """
        if value is None:
            return ABSENT
        if self.version_name:
            return f"v:{value}"
        if self._vendor != "postgresql":
            return f"d:{digest_of(value).hex()}"
        digest = sha256(value.encode()).digest() if isinstance(value, str) else bytes(value)
        return f"s:{digest.hex()}"

    def token_unchanged_sql(self) -> str | None:
        """None if the database cannot write the token: SQLite, and some types of versions."""
        if self.version_name:
            column = self.model._meta.get_field(self.version_name)
            if self._vendor == "postgresql" and not isinstance(column, _SAME_TEXT):
                return None
            token = f"'v:' || CAST({self.token_sql()} AS text)"
        elif self._vendor == "postgresql":
            token = f"'s:' || encode({self.token_sql()}, 'hex')"
        else:
            return None
        return f"COALESCE({token}, '{ABSENT}') = conversation_states.legacy_token"
