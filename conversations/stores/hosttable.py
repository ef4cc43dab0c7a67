"""A host's own table of states, by the names of its columns, and what a token is made of."""

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
from conversations.digests import digest_of
from conversations.stores.hostformat import HostFormat

ABSENT = "-"
# Types of a version whose text is the same in PostgreSQL and in Python.
_SAME_TEXT = (IntegerField, CharField, TextField, UUIDField)


class HostTable:
    """The part of JSONFieldStore that knows the columns; see there for the mapping."""

    def __init__(self, mapping: Mapping[str, str]) -> None:
        self.model: type[Model] = apps.get_model(mapping["model"])
        self.id_name = mapping["conversation_id"]
        self.owner_name = self.model._meta.get_field(mapping["owner"]).attname
        self.state_name = mapping["state"]
        self.version_name = mapping.get("version")
        self.token_name: str = mapping.get("version") or mapping["state"]
        self.updated_name = mapping.get("updated_at")
        self.state_field: Any = self.model._meta.get_field(self.state_name)
        json_column = isinstance(self.state_field, JSONField)
        self.format = HostFormat(
            to_state=self._function(mapping.get("to_state")),
            from_state=self._function(mapping.get("from_state")),
            as_json=json_column,
            as_jsonb=json_column and self._vendor == "postgresql",
        )

    @staticmethod
    def _function(path: str | None) -> Callable[[Any], Any]:
        return (lambda value: value) if path is None else import_string(path)

    @property
    def exact(self) -> bool:
        """Whether JSON comes back exactly: text does, jsonb does not."""
        return not self.format.as_jsonb

    @property
    def _vendor(self) -> str:
        return str(connections[conf.alias()].vendor)

    def _column(self, name: str) -> str:
        field: Any = self.model._meta.get_field(name)
        return str(field.column)

    def _rows(self) -> QuerySet[Any]:
        return self.model._base_manager.using(conf.alias())

    def _tokened(self) -> QuerySet[Any]:
        """Return the rows, with what their tokens are made of as the database gives it."""
        # A Func with a bare Field converts nothing, like the probe.
        raw = Func(F(self.token_name), template=self._seen("%(expressions)s"), output_field=Field())
        rows: QuerySet[Any] = self._rows().annotate(store_token=raw)
        return rows

    def _row(self, conversation_id: Any) -> QuerySet[Any]:
        return self._tokened().filter(**{self.id_name: conversation_id})

    def _seen(self, column: str) -> str:
        """Return the SQL of what a token is made of: the version, else the stored value.

        PostgreSQL digests the value itself, and does not have to send it.
        """
        if self.version_name or self._vendor != "postgresql":
            return column
        return f"sha256(convert_to(CAST({column} AS text), 'UTF8'))"

    def probe(self) -> str:
        return self._beside(self.token_name, self._seen)

    def held_columns(self) -> tuple[str, ...] | None:
        """Return the state as text, where Django alone makes a value of that.

        It has its token in itself, unless there is a version.
        """
        if type(self.state_field) not in (JSONField, TextField) or self._model_takes_part():
            return None
        text = self._beside(self.state_name, "CAST({} AS text)".format)
        return (self.probe(), text) if self.version_name else (text,)

    def _model_takes_part(self) -> bool:
        """Whether the host has a say in what an instance is made of: it may decrypt, or convert."""
        kinds = takewhile(lambda kind: kind is not Model, self.model.__mro__)
        own = any(name in vars(kind) for kind in kinds for name in ("from_db", "__init__"))
        return own or post_init.has_listeners(self.model)

    def _beside(self, name: str, made: Callable[[str], str]) -> str:
        """Return the SQL of what is made of a column of the row, over conversation_states."""
        quoted = connections[conf.alias()].ops.quote_name
        column, named = quoted(self._column(name)), quoted(self._column(self.id_name))
        return (
            f"(SELECT {made(f'host.{column}')} FROM {quoted(self.model._meta.db_table)} host"
            f" WHERE host.{named} = conversation_states.conversation_id)"
        )

    def judge(self, probed: Any, known: str) -> str:
        """Return the version, or the digest of the stored value; "-" where there is no row.

        PostgreSQL has digested the value, or gives it as text.
        """
        if probed is None:
            return ABSENT
        if self.version_name:
            return f"v:{probed}"
        if self._vendor != "postgresql":
            return f"d:{digest_of(probed).hex()}"
        digest = sha256(probed.encode()).digest() if isinstance(probed, str) else bytes(probed)
        return f"s:{digest.hex()}"

    def settled(self) -> str | None:
        """SQLite cannot digest, and PostgreSQL does not write every version as Python does."""
        if self.version_name:
            column = self.model._meta.get_field(self.version_name)
            if self._vendor == "postgresql" and not isinstance(column, _SAME_TEXT):
                return None
            token = f"'v:' || CAST({self.probe()} AS text)"
        elif self._vendor == "postgresql":
            token = f"'s:' || encode({self.probe()}, 'hex')"
        else:
            return None
        return f"COALESCE({token}, '{ABSENT}') = conversation_states.legacy_token"
