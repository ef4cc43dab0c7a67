"""Checks of `CONVERSATIONS["LEGACY"]`: what a team migrates from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Error, register
from django.core.exceptions import FieldDoesNotExist
from django.db.models import CharField, DateTimeField, JSONField, Model, TextField

from conversations.checks.settings import imported
from conversations.conf import MEMORY_CHUNKS
from flags.checks import configured

REQUIRED = ("model", "conversation_id", "owner", "state")
FIELDS = ("conversation_id", "owner", "state", "version", "updated_at")
FUNCTIONS = ("to_state", "from_state")
_HINT = (
    f'Leave LEGACY out, set it to "{MEMORY_CHUNKS}", or to a mapping with the keys'
    f" {', '.join(REQUIRED)} and, optional, version, updated_at, to_state, from_state."
)


@register("conversations")
def check_legacy(**kwargs: Any) -> list[CheckMessage]:
    """Check that LEGACY describes a store."""
    legacy = configured().get("LEGACY")
    if not legacy or legacy == MEMORY_CHUNKS:
        return []
    problem = _shape(legacy)
    if problem:
        return [Error(f'CONVERSATIONS["LEGACY"] {problem}.', hint=_HINT, id="conversations.E002")]
    return [*_names(legacy), *_functions(legacy)]


def legacy_model() -> type[Model] | None:
    """Return the model that LEGACY names; None when it names none."""
    legacy = configured().get("LEGACY")
    try:
        return apps.get_model(legacy["model"]) if isinstance(legacy, Mapping) else None
    except (LookupError, ValueError, AttributeError, TypeError):
        return None


def _shape(legacy: Any) -> str | None:
    """Return what is wrong with the keys and the types of the values, or None."""
    if not isinstance(legacy, Mapping):
        return f"is {legacy!r}"
    if missing := [key for key in REQUIRED if key not in legacy]:
        return f"lacks {', '.join(missing)}"
    if unknown := [str(key) for key in legacy if key not in ("model", *FIELDS, *FUNCTIONS)]:
        return f"has unknown keys: {', '.join(unknown)}"
    if wrong := [key for key, value in legacy.items() if not _is_name(key, value)]:
        return f"has values that are no names: {', '.join(wrong)}"
    return None


def _is_name(key: str, value: Any) -> bool:
    return (isinstance(value, str) and value != "") or (value is None and key not in REQUIRED)


def _names(legacy: Mapping[str, Any]) -> Iterator[CheckMessage]:
    """Check that the model and its fields exist and can be used as the store uses them."""
    model = legacy_model()
    if model is None:
        yield Error(
            f'CONVERSATIONS["LEGACY"]["model"] is {legacy["model"]!r}, which is no model.',
            hint="Write it as app_label.ModelName, and put its app into INSTALLED_APPS.",
            id="conversations.E003",
        )
        return
    found = {}
    columns = sorted(field.name for field in model._meta.concrete_fields)
    for key in FIELDS:
        if legacy.get(key) is None:
            continue
        with suppress(FieldDoesNotExist):
            found[key] = model._meta.get_field(legacy[key])
        if found.get(key) not in model._meta.concrete_fields:
            yield Error(
                f'CONVERSATIONS["LEGACY"]["{key}"] is {legacy[key]!r}, which is no column of'
                f" {model._meta.label}.",
                hint=f"Use one of {', '.join(columns)}.",
                id="conversations.E003",
            )
            found.pop(key, None)
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
    if "conversation_id" in found and not isinstance(
        found["conversation_id"], CharField | TextField
    ):
        yield Error(
            f'CONVERSATIONS["LEGACY"]["conversation_id"] names a column of {model._meta.label} that'
            f" is no text, a {type(found['conversation_id']).__name__}: PostgreSQL compares no"
            " other with our ids.",
            hint="Name a CharField, or add one that holds the id as text.",
            id="conversations.E003",
        )
    elif "conversation_id" in found and not _is_unique(found["conversation_id"]):
        yield Error(
            f"{model._meta.label}.{legacy['conversation_id']} is not unique: two saves at once"
            " would leave two rows of one conversation.",
            hint="Give the field unique=True, or add a UniqueConstraint on it alone.",
            id="conversations.E005",
        )


def _is_unique(field: Any) -> bool:
    meta = field.model._meta
    constraints = [tuple(constraint.fields) for constraint in meta.total_unique_constraints]
    return field.unique or (field.name,) in [*constraints, *map(tuple, meta.unique_together)]


def _functions(legacy: Mapping[str, Any]) -> Iterator[CheckMessage]:
    """Check that the functions between the host's JSON and ours can be called."""
    for key in FUNCTIONS:
        if legacy.get(key) is None:
            continue
        function, problem = imported(legacy[key])
        if problem is None and not callable(function):
            problem = f"names {legacy[key]!r}, which cannot be called"
        if problem:
            yield Error(
                f'CONVERSATIONS["LEGACY"]["{key}"] {problem}.',
                hint="Name a function of one argument by its dotted path.",
                id="conversations.E004",
            )
