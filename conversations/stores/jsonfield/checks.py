"""Checks of a mapping of `CONVERSATIONS["LEGACY"]`, before a JSONFieldStore is made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Error
from django.core.exceptions import FieldDoesNotExist
from django.db.models import (
    CharField,
    CompositePrimaryKey,
    DateTimeField,
    IntegerField,
    JSONField,
    Model,
    TextField,
    UUIDField,
)

from conversations.stores.jsonfield.ids import IdColumn
from flags.checks import configured, try_import
from flags.texts import quoted, shown

REQUIRED = ("model", "conversation_id", "state")
FIELDS = ("owner", "state", "version", "updated_at", "newest_by")
FUNCTIONS = ("to_state", "from_state")
_HINT = (
    f"Use the keys {', '.join(REQUIRED)} and, optional, owner, version, updated_at, newest_by,"
    " to_state, from_state."
)


def check_mapping(legacy: Mapping[Any, Any]) -> list[CheckMessage]:
    """Check that a mapping describes a table of the host."""
    problem = _shape(legacy)
    if problem:
        return [Error(f'CONVERSATIONS["LEGACY"] {problem}.', hint=_HINT, id="conversations.E002")]
    return [*_names(legacy), *_functions(legacy), *_owners(legacy)]


def model_of(legacy: Mapping[Any, Any]) -> type[Model] | None:
    """Return the model that a mapping names; None if it names none."""
    try:
        return apps.get_model(legacy["model"])
    except (LookupError, ValueError, AttributeError, TypeError):
        return None


def _shape(legacy: Mapping[Any, Any]) -> str | None:
    """Return the problem of the keys or of the values' types, or None."""
    if missing := [key for key in REQUIRED if key not in legacy]:
        return f"lacks {', '.join(missing)}"
    known = (*REQUIRED, *FIELDS, *FUNCTIONS)
    if unknown := [shown(key) for key in legacy if key not in known]:
        return f"has unknown keys: {', '.join(unknown)}"
    if wrong := [key for key, value in legacy.items() if not _is_name(key, value)]:
        return f"has values that are no names: {', '.join(wrong)}"
    if legacy.get("version") and legacy.get("newest_by"):
        return "has both version and newest_by: a new row is a new version"
    return None


def _is_name(key: str, value: Any) -> bool:
    if key == "conversation_id" and isinstance(value, list | tuple):
        return bool(value) and len({*map(str, value)}) == len(value) and all(map(_is_text, value))
    return _is_text(value) or (value is None and key not in REQUIRED)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def id_names(legacy: Mapping[str, Any]) -> list[str]:
    """Return the names of the columns that form a conversation's id."""
    named = legacy["conversation_id"]
    return [named] if isinstance(named, str) else list(named)


def _owners(legacy: Mapping[str, Any]) -> Iterator[CheckMessage]:
    """Check that users can read legacy's conversations: that these have owners if needed."""
    if legacy.get("owner") is None and configured().get("REQUIRE_OWNER"):
        yield Error(
            'CONVERSATIONS["LEGACY"] names no owner column, and REQUIRE_OWNER is set: conversations'
            " that only legacy holds have no owner, so no user can read them.",
            hint='Map "owner", or set REQUIRE_OWNER to False until every conversation has an owner'
            " in the tables (claim_conversation).",
            id="conversations.E019",
        )


def _names(legacy: Mapping[str, Any]) -> Iterator[CheckMessage]:
    """Check that the model and its fields exist, and that the store can use them."""
    model = model_of(legacy)
    if model is None:
        yield Error(
            f'CONVERSATIONS["LEGACY"]["model"] is {quoted(legacy["model"])}, which is no model.',
            hint="Write it as app_label.ModelName, and put its app into INSTALLED_APPS.",
            id="conversations.E003",
        )
        return
    found: dict[str, Any] = {}
    ids: list[Any] = []
    columns = sorted(field.name for field in model._meta.concrete_fields)
    named = [("conversation_id", name) for name in id_names(legacy)]
    named += [(key, legacy[key]) for key in FIELDS if legacy.get(key) is not None]
    for key, name in named:
        field: Any = None
        with suppress(FieldDoesNotExist):
            field = model._meta.get_field(name)
        if field not in model._meta.concrete_fields:
            yield Error(
                f'CONVERSATIONS["LEGACY"]["{key}"] is {quoted(name)}, which is no column of'
                f" {model._meta.label}.",
                hint=f"Use one of {', '.join(columns)}.",
                id="conversations.E003",
            )
        elif field.model._meta.concrete_model is not model._meta.concrete_model:
            yield Error(
                f'CONVERSATIONS["LEGACY"]["{key}"] is {name!r}, which is a column of'
                f" {field.model._meta.label}: {model._meta.label} inherits it from another table.",
                hint="Name the model whose table has all the columns.",
                id="conversations.E003",
            )
        elif key == "conversation_id":
            ids.append(field)
        else:
            found[key] = field
    yield from _kinds(model, legacy, found)
    if len(ids) == len(id_names(legacy)):
        yield from _ids(model, ids, appended="newest_by" in found)


def _kinds(
    model: type[Model], legacy: Mapping[str, Any], found: Mapping[str, Any]
) -> Iterator[CheckMessage]:
    """Check that each column has a type that the store can use."""
    if "state" in found and not isinstance(found["state"], JSONField | TextField | CharField):
        yield Error(
            f'CONVERSATIONS["LEGACY"]["state"] names {model._meta.label}.{legacy["state"]}, a'
            f" {type(found['state']).__name__}.",
            hint="Name the JSONField or TextField that holds the state as JSON.",
            id="conversations.E003",
        )
    if "updated_at" in found and not isinstance(found["updated_at"], DateTimeField):
        yield Error(
            f'CONVERSATIONS["LEGACY"]["updated_at"] names {model._meta.label}.'
            f"{legacy['updated_at']}, a {type(found['updated_at']).__name__}.",
            hint="Name a DateTimeField, or leave updated_at out.",
            id="conversations.E003",
        )
    if "newest_by" in found and not _orders(found["newest_by"]):
        yield Error(
            f'CONVERSATIONS["LEGACY"]["newest_by"] names {model._meta.label}.'
            f"{legacy['newest_by']}, which cannot always find the newest row.",
            hint="Name a DateTimeField or an integer that is never null, such as the primary key.",
            id="conversations.E003",
        )


def _orders(field: Any) -> bool:
    return isinstance(field, DateTimeField | IntegerField) and not field.null


def _ids(model: type[Model], fields: Sequence[Any], *, appended: bool) -> Iterator[CheckMessage]:
    """Check that each conversation has one id, and each id its rows."""
    names = ", ".join(field.name for field in fields)
    key: Any = model._meta.pk
    if isinstance(key, CompositePrimaryKey) or (appended and IdColumn(key).is_text):
        yield Error(
            f"The primary key of {model._meta.label} is a {type(key).__name__}, by which a sync"
            " cannot walk over the rows.",
            hint="Use a model whose primary key is one integer or UUID.",
            id="conversations.E003",
        )
        return
    kinds = [_target(field) for field in fields]
    for field, kind in zip(fields, kinds, strict=True):
        if not isinstance(kind, CharField | TextField | IntegerField | UUIDField):
            yield Error(
                f'CONVERSATIONS["LEGACY"]["conversation_id"] names {model._meta.label}.'
                f"{field.name}, a {type(kind).__name__}: it is neither text nor integer nor UUID.",
                hint="Name a column of one of these types, or a foreign key to one.",
                id="conversations.E003",
            )
    if any(isinstance(kind, CharField | TextField) for kind in kinds[:-1]):
        yield Error(
            f'CONVERSATIONS["LEGACY"]["conversation_id"] names {names}: only the last of several'
            ' columns may be text, because ":" stands between them.',
            hint="Name the integers and UUIDs first.",
            id="conversations.E003",
        )
    if appended:
        if not _is_indexed(fields):
            yield Error(
                f"No index of {model._meta.label} begins with {names}: every load would read the"
                " whole table.",
                hint="Add an index on the columns of the id, then on that of newest_by.",
                id="conversations.E005",
            )
    elif not _is_unique(fields):
        verb = "is" if len(fields) == 1 else "are"
        yield Error(
            f"{model._meta.label}.{names} {verb} not unique: two saves at once would leave two rows"
            " of one conversation.",
            hint="Give the field unique=True, or add a UniqueConstraint on the columns alone; or"
            ' name the column that orders several rows as "newest_by".',
            id="conversations.E005",
        )


def _target(field: Any) -> Any:
    """Return the column whose values a foreign key holds, or the column itself."""
    while field.is_relation:
        field = field.target_field
    return field


def _constraints(model: type[Model]) -> list[tuple[str, ...]]:
    meta = model._meta
    constraints = [tuple(constraint.fields) for constraint in meta.total_unique_constraints]
    return [*constraints, *map(tuple, meta.unique_together)]


def _is_unique(fields: Sequence[Any]) -> bool:
    """Whether no two rows have the same values in all of these columns."""
    names = {field.name for field in fields}
    found = any(set(constraint) <= names for constraint in _constraints(fields[0].model))
    return found or any(field.unique for field in fields)


def _is_indexed(fields: Sequence[Any]) -> bool:
    """Whether some index finds the rows of a conversation."""
    names = {field.name for field in fields}
    meta = fields[0].model._meta
    indexes = [tuple(name.lstrip("-") for name in index.fields) for index in meta.indexes]
    first = [index[0] for index in [*indexes, *_constraints(fields[0].model)] if index]
    return any(field.db_index or field.unique for field in fields) or bool(names & {*first})


def _functions(legacy: Mapping[str, Any]) -> Iterator[CheckMessage]:
    """Check that the functions between the host's JSON and ours can be called."""
    for key in FUNCTIONS:
        if legacy.get(key) is None:
            continue
        function, problem = try_import(legacy[key])
        if problem is None and not callable(function):
            problem = f"names {quoted(legacy[key])}, which cannot be called"
        if problem:
            yield Error(
                f'CONVERSATIONS["LEGACY"]["{key}"] {problem}.',
                hint="Name a function of one argument by its dotted path.",
                id="conversations.E004",
            )
