"""Checks of `CONVERSATIONS["LEGACY"]`: the store that a team migrates from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.core.checks import CheckMessage, Error, register
from django.db.models import Model

from conversations.stores.base import LegacyStore
from conversations.stores.jsonfield.checks import model_of
from conversations.stores.registry import BY_NAME, class_of
from flags.checks import configured, try_import
from flags.texts import quoted

_HINT = (
    f"Leave LEGACY out, set it to {', '.join(map(repr, BY_NAME))}, or to a mapping: of a table of"
    ' yours (model, conversation_id, state), or with "store", the dotted path of a LegacyStore.'
)


@register("conversations")
def check_legacy(**kwargs: Any) -> list[CheckMessage]:
    """Check that LEGACY describes a store."""
    legacy = configured().get("LEGACY")
    if not legacy:
        return []
    if isinstance(legacy, Mapping):
        if "store" in legacy and (problem := _problem(legacy["store"])):
            said = f'CONVERSATIONS["LEGACY"]["store"] {problem}.'
            return [Error(said, hint=_HINT, id="conversations.E004")]
        return list(class_of(legacy).check(legacy))
    if isinstance(legacy, str) and legacy in BY_NAME:
        return []
    said = f'CONVERSATIONS["LEGACY"] is {quoted(legacy)}.'
    return [Error(said, hint=_HINT, id="conversations.E002")]


def legacy_model() -> type[Model] | None:
    """Return the model that LEGACY names; None if it names none."""
    legacy = configured().get("LEGACY")
    return model_of(legacy) if isinstance(legacy, Mapping) else None


def _problem(path: Any) -> str | None:
    """Return why a dotted path names no store, or None."""
    found, problem = try_import(path)
    if problem is None and not isinstance(found, type):
        problem = f"names {quoted(path)}, which is no class"
    if problem is None and (missing := _missing(found)):
        problem = f"names {quoted(path)}, which lacks {', '.join(missing)}"
    return problem


def _missing(kind: Any) -> list[str]:
    """Return what LegacyStore asks of a class and this one lacks; `name` may be the object's."""
    asked = {name for name in vars(LegacyStore) if not name.startswith("_")}
    return sorted(name for name in asked if not hasattr(kind, name))
