"""The stores that the settings name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured
from django.utils.module_loading import import_string

from conversations import conf
from conversations.stores.base import LegacyStore
from conversations.stores.chunks.store import ChunkStore
from conversations.stores.jsonfield.appended_rows import AppendedRows
from conversations.stores.jsonfield.store import JSONFieldStore
from flags.conf import read_once

# What LEGACY may be, other than a mapping.
BY_NAME: Mapping[str, Any] = {conf.MEMORY_CHUNKS: ChunkStore}


def class_of(legacy: Mapping[Any, Any]) -> Any:
    """Return the class of the store that a mapping describes. Raises: ImportError."""
    if "store" in legacy:
        return import_string(legacy["store"])
    return AppendedRows if legacy.get("newest_by") else JSONFieldStore


@read_once
def configured_store() -> LegacyStore | None:
    """Return the store that the settings name, retired or not; None if they name none.

    Deletions, redactions, verification and syncs need it after a retirement, although loads do
    not: they find late writes of old code.

    Raises: ImproperlyConfigured if the settings describe no possible store; a server runs no
    checks.
    """
    configured = conf.legacy()
    if configured is None:
        return None
    try:
        kind: Callable[..., LegacyStore]
        if isinstance(configured, str):
            kind = BY_NAME[configured]
            return kind()
        kind = class_of(configured)
        return kind(configured)
    except _NO_STORE as error:
        raise ImproperlyConfigured(
            f'CONVERSATIONS["LEGACY"] describes no store ({type(error).__name__}):'
            " `manage.py check` names the fault."
        ) from error


# Errors of a value that is no mapping, of a missing key, and of a name without an object.
_NO_STORE = (
    *(AttributeError, TypeError, ValueError, LookupError),
    *(ImportError, FieldDoesNotExist),
)
