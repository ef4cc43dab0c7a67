"""System checks of the memory tables, and of recorded migrations against tables."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from importlib import import_module
from pkgutil import iter_modules

from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.checks import CheckMessage, Error
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from flags.checks import configured, database_check
from memory.adoption import CHUNKS, METADATA, columns_of, problems_of

_STATE_CHUNK = """
    SELECT 1 FROM memory_metadata named
    JOIN memory_metadata typed ON typed.chunk_id = named.chunk_id
        AND typed.key = 'type' AND typed.value = 'state'
    WHERE named.key = 'conversation_id' AND named.value <> '' LIMIT 1
"""


@database_check()
def check_adoption(connection: BaseDatabaseWrapper) -> Iterator[CheckMessage]:
    """Check that existing tables with our names fit."""
    for problem in problems_of(connection, user_key=get_user_model()._meta.pk):
        message, _, fix = problem.partition(": ")
        yield Error(f"{message}.", hint=f"{fix[:1].upper()}{fix[1:]}", id="memory.E001")


@database_check()
def check_legacy_is_named(connection: BaseDatabaseWrapper) -> Iterator[CheckMessage]:
    """Check that stored legacy states are not overlooked."""
    if configured().get("LEGACY"):
        return
    if not {"chunk_id", "key", "value"} <= set(columns_of(connection, METADATA)):
        return
    with connection.cursor() as cursor:
        cursor.execute(_STATE_CHUNK)
        found = cursor.fetchone()
    if found:
        yield Error(
            f'{CHUNKS} holds states, but CONVERSATIONS["LEGACY"] is not set: no load finds them.',
            hint='Set CONVERSATIONS["LEGACY"] = "memory_chunks", or delete the states.',
            id="memory.E002",
        )


@database_check()
def check_recorded_migrations(connection: BaseDatabaseWrapper) -> Iterator[CheckMessage]:
    """Check that the tables exist exactly when their migrations are recorded."""
    yield from disagreements(
        connection,
        "memory",
        missing_id="memory.E003",
        unrecorded_id="memory.E004",
        adopted=(CHUNKS, METADATA),
    )


def disagreements(
    connection: BaseDatabaseWrapper,
    label: str,
    *,
    missing_id: str,
    unrecorded_id: str,
    adopted: Collection[str] = (),
) -> Iterator[CheckMessage]:
    """Yield an error if an app's recorded migrations and its tables disagree.

    `adopted` are the tables that may exist before the first migration.
    """
    ours = _migrations_of(label)
    recorded = ours & set(MigrationRecorder(connection).applied_migrations())
    existing = set(connection.introspection.table_names())
    tables = {model._meta.db_table for model in apps.get_app_config(label).get_models()}
    if ours and recorded == ours and not tables <= existing:
        yield Error(
            f"The migrations of {label} are recorded, but there is no table"
            f" {', '.join(sorted(tables - existing))}.",
            hint="Another app recorded them under this label, or the tables were dropped. Run"
            f" `manage.py migrate --fake {label} zero --skip-checks`, then `manage.py migrate`.",
            id=missing_id,
        )
    if ours and not recorded and (strange := (tables & existing) - set(adopted)):
        yield Error(
            f"There is a table {', '.join(sorted(strange))}, but no migration of {label} is"
            " recorded.",
            hint="Rename it when it belongs to another app. When it is ours, run"
            f" `manage.py migrate --fake {label} --skip-checks`.",
            id=unrecorded_id,
        )


def _migrations_of(label: str) -> set[tuple[str, str]]:
    """Return an app's migrations as the recorder names them; none if the settings disable them."""
    module_name, _ = MigrationLoader.migrations_module(label)
    if module_name is None:
        return set()
    with suppress(ImportError):
        names = [found.name for found in iter_modules(import_module(module_name).__path__)]
        return {(label, name) for name in names if name[0] not in "_~"}
    return set()
