"""The database of a host whose legacy tables are adopted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from tests.support.legacy_schema import create_legacy_tables, execute, old_save
from tests.support.scratch import connected, created_database

START = datetime(2024, 5, 1, 12, tzinfo=UTC)

OWNED = ("memory_chunks", "memory_metadata")


@contextmanager
def copied(template: str, folder: Path) -> Iterator[BaseDatabaseWrapper]:
    with created_database(folder, template=template) as name, connected(name) as connection:
        yield connection


def make_host(connection: BaseDatabaseWrapper, *, indexed: bool = False) -> BaseDatabaseWrapper:
    execute(
        connection,
        "INSERT INTO auth_user (id, username, password, first_name, last_name, email,"
        " is_superuser, is_staff, is_active, date_joined)"
        " VALUES (1, 'ann', '', '', '', '', %s, %s, %s, %s)",
        [False, False, True, START],
    )
    create_legacy_tables(connection, indexed=indexed)
    for step in (1, 2):
        old_save(connection, "c-1", 1, saved_state(step), START + timedelta(seconds=step))
    return connection


def saved_state(step: int) -> dict[str, Any]:
    message = {"role": "user", "content": f"message {step} \u00e9"}
    return {"user_input": f"{step}", "step_count": step, "conversation_history": [message] * step}


def legacy_rows(connection: BaseDatabaseWrapper) -> dict[str, list[tuple[Any, ...]]]:
    """Return every legacy row, in the columns that old code knows."""
    return {
        "chunks": execute(
            connection, "SELECT id, user_id, content, created_at FROM memory_chunks ORDER BY id"
        ),
        "metadata": execute(
            connection,
            "SELECT id, chunk_id, key, value FROM memory_metadata"
            " WHERE chunk_id IS NOT NULL ORDER BY id",
        ),
    }


def our_tables(connection: BaseDatabaseWrapper) -> set[str]:
    with connection.cursor() as cursor:
        names = connection.introspection.table_names(cursor)
    return {name for name in names if name.startswith(("conversation_", "memory_"))}
