"""Tables without statistics in the database, as after restoring a backup (PostgreSQL).

Our own queries need no statistics, except those that read everything. A host's queries of these
tables need them. SQLite plans by its indexes alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from conversations import conf
from conversations.stores.registry import configured_store

TABLES = (
    "conversation_states",
    "conversation_messages",
    "conversation_tombstones",
    "memory_context_items",
    "memory_metadata",
)
# Smaller tables are read in a moment anyway; PostgreSQL assumes this size for each of them.
SMALL_PAGES = 10

_WITHOUT = """
    SELECT wanted.name FROM unnest(CAST(%s AS text[])) WITH ORDINALITY wanted(name, place)
    JOIN pg_class ON pg_class.oid = to_regclass(quote_ident(wanted.name))
    JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
    WHERE pg_relation_size(pg_class.oid) > %s * current_setting('block_size')::bigint
    AND NOT EXISTS (
        SELECT 1 FROM pg_stats
        WHERE pg_stats.schemaname = pg_namespace.nspname
        AND pg_stats.tablename = pg_class.relname
    )
    -- An emptied table has none, however often it is analysed.
    AND coalesce(
        pg_stat_get_last_analyze_time(pg_class.oid), pg_stat_get_last_autoanalyze_time(pg_class.oid)
    ) IS NULL
    ORDER BY wanted.place"""


def tables_without_statistics(
    connection: BaseDatabaseWrapper, tables: Sequence[str]
) -> Sequence[str]:
    """Return those of the tables that are not small and were never analysed."""
    if connection.vendor != "postgresql":
        return ()
    with connection.cursor() as cursor:
        cursor.execute(_WITHOUT, [list(dict.fromkeys(tables)), SMALL_PAGES])
        return [name for (name,) in cursor.fetchall()]


def analysis_of(connection: BaseDatabaseWrapper, tables: Sequence[str]) -> str:
    """Return the statement that collects statistics of tables."""
    return f"ANALYZE {', '.join(map(connection.ops.quote_name, tables))};"


def warning() -> str:
    """Return which of our tables and legacy's lack statistics, and what to type; "" if none do."""
    connection, legacy = connections[conf.alias()], configured_store()
    tables = tables_without_statistics(connection, [*TABLES, *(legacy.tables if legacy else ())])
    if not tables:
        return ""
    return (
        f"the database has no statistics of {', '.join(tables)}, so it may read them whole."
        f" Type in psql: {analysis_of(connection, tables)}"
    )
