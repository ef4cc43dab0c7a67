"""Emptying the test database after a test that commits: to the state that Django's flush leaves.

That one truncates every table, most of which are empty, and asks for every content type and
permission again. Here only what differs from the state afterwards is written.
"""

from __future__ import annotations

from typing import Any

from django.contrib.contenttypes.models import ContentType
from django.db import DatabaseError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import TransactionTestCase

Rows = list[tuple[Any, ...]]

# Deleted rows stay in the files: what has grown beyond this is truncated.
MAX_BYTES = 2**18

_flush = TransactionTestCase._fixture_teardown
# By a database's name: what Django's flush left in each table.
_flushed: dict[str, dict[str, Rows]] = {}


def install() -> None:
    """Let the tests of this process empty their database by what follows."""
    TransactionTestCase._fixture_teardown = _empty  # type: ignore[method-assign]


def _empty(case: TransactionTestCase) -> None:
    aliases = case._databases_names(include_mirrors=False)
    plain = case.available_apps is None and not case.serialized_rollback
    if plain and all(_restored(connections[alias]) for alias in aliases):
        return
    _flush(case)
    if plain:
        for alias in aliases:
            _flushed[_name(connections[alias])] = _everything(connections[alias])


def _name(connection: BaseDatabaseWrapper) -> str:
    return str(connection.settings_dict["NAME"])


def _everything(connection: BaseDatabaseWrapper) -> dict[str, Rows]:
    tables = connection.introspection.django_table_names(only_existing=True, include_views=False)
    with connection.cursor() as cursor:
        return {table: _rows(cursor, connection.ops.quote_name(table)) for table in tables}


def _rows(cursor: Any, table: str) -> Rows:
    cursor.execute(f"SELECT * FROM {table} ORDER BY 1")
    return list(cursor.fetchall())


def _restored(connection: BaseDatabaseWrapper) -> bool:
    """Restore what a flush left. Returns: False if only another flush can."""
    flushed = _flushed.get(_name(connection))
    if flushed is None:
        return False
    quoted = {connection.ops.quote_name(table): rows for table, rows in flushed.items()}
    try:
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            if connection.vendor == "postgresql" and _grown(cursor, list(flushed)):
                return False
            differing = _filled(cursor, [table for table, rows in quoted.items() if not rows])
            differing += [
                table for table, rows in quoted.items() if rows and _rows(cursor, table) != rows
            ]
            # Foreign keys are looked at when this is committed.
            for table in differing:
                cursor.execute(f"DELETE FROM {table}")
            for table in differing:
                if rows := quoted[table]:
                    values = ", ".join(["%s"] * len(rows[0]))
                    cursor.executemany(f"INSERT INTO {table} VALUES ({values})", rows)
    except DatabaseError:
        # Such as a table that the test has dropped or altered.
        return False
    ContentType.objects.clear_cache()
    return True


def _filled(cursor: Any, tables: list[str]) -> list[str]:
    """Return those that hold rows."""
    selects = [f"SELECT '{table}' WHERE EXISTS (SELECT 1 FROM {table})" for table in tables]
    cursor.execute(" UNION ALL ".join(selects))
    return [table for (table,) in cursor.fetchall()]


def _grown(cursor: Any, tables: list[str]) -> bool:
    """Return whether a table is large, or its statistics describe rows that are to be deleted."""
    cursor.execute(
        "SELECT 1 FROM pg_class WHERE relname = ANY(%s) AND relnamespace = 'public'::regnamespace"
        " AND (relpages > 0 OR pg_relation_size(oid) > %s) LIMIT 1",
        [tables, MAX_BYTES],
    )
    return cursor.fetchone() is not None
