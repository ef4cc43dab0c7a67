"""Finding whether a host's existing `memory_chunks` and `memory_metadata` can be adopted.

A table fits if every statement of old code and of ours works on it. Its types may differ from a
fresh install: ids of 32 bits, varchar without a length, no defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

CHUNKS = "memory_chunks"
METADATA = "memory_metadata"
# The columns that adoption adds to memory_metadata. The CHECK sits on the last: SQLite can
# add a CHECK only together with a column.
TARGET_COLUMNS = ("conversation_id", "message_id", "context_item_id")
CHECK = "metadata_one_target"

_POSTGRESQL_COLUMNS = """
    SELECT a.attname, lower(format_type(a.atttypid, a.atttypmod)), NOT a.attnotnull,
           a.atthasdef OR a.attidentity <> ''
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    WHERE c.relname = %s AND pg_table_is_visible(c.oid) AND c.relkind = 'r'
          AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
"""


@dataclass(frozen=True, slots=True)
class Column:
    """The database's description of a column."""

    type: str
    nullable: bool
    has_default: bool


def columns_of(connection: BaseDatabaseWrapper, table: str) -> dict[str, Column]:
    """Return the columns of a table by name; {} if there is no such table (a view is none)."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(_POSTGRESQL_COLUMNS, [table])
            return {name: Column(*described) for name, *described in cursor.fetchall()}
        cursor.execute(
            'SELECT c.name, lower(c.type), NOT c."notnull", c.dflt_value IS NOT NULL, c.pk'
            " FROM sqlite_master t, pragma_table_info(t.name) c"
            " WHERE t.type = 'table' AND t.name = %s",
            [table],
        )
        return {
            # an INTEGER PRIMARY KEY numbers its rows by itself
            name: Column(
                kind, bool(nullable) and not pk, bool(has_default or (pk and kind == "integer"))
            )
            for name, kind, nullable, has_default, pk in cursor.fetchall()
        }


def family_of(vendor: str, declared: str) -> str | None:
    """Return the values of a column type: "number", "text", "time" or "uuid"; None if unknown."""
    if declared in ("smallint", "integer", "bigint", "int"):
        return "number"
    if declared == "text" or declared.startswith(("character varying", "varchar")):
        return "text"
    if declared == "uuid":
        return "uuid"
    if vendor == "postgresql":
        has_zone = declared.startswith("timestamp") and declared.endswith("with time zone")
        return "time" if has_zone else None
    # SQLite: https://www.sqlite.org/datatype3.html#determination_of_column_affinity
    if "int" in declared:
        return "number"
    if any(word in declared for word in ("char", "clob", "text")):
        return "text"
    return "time" if declared.startswith(("datetime", "timestamp")) else None


def problems_of(connection: BaseDatabaseWrapper, *, user_key: Any) -> list[str]:
    """Return the reasons against adopting existing tables, each with its fix; [] if there are none.

    Absent tables are no problem. `user_key` is the primary key field of the user model.
    """
    problems: list[str] = []
    owner = family_of(connection.vendor, (user_key.rel_db_type(connection) or "").lower())
    fitting: Mapping[str, Mapping[str, str | None]] = {
        CHUNKS: {
            "id": "number",
            "user_id": owner,
            "content": "text",
            "embedding": None,
            "created_at": "time",
        },
        METADATA: {"id": "number", "chunk_id": "number", "key": "text", "value": "text"},
    }
    for table, wanted in fitting.items():
        columns = columns_of(connection, table)
        if columns:
            problems += _misfits(connection.vendor, table, columns, wanted)
        elif _relation_exists(connection, table):
            problems.append(f"{table} is no plain table: rename it, or make it one.")
    return problems or list(_obstacles(connection))


def _misfits(
    vendor: str, table: str, columns: Mapping[str, Column], wanted: Mapping[str, str | None]
) -> Iterator[str]:
    """Yield the columns that are missing, have another type, or refuse our rows."""
    targets = TARGET_COLUMNS if table == METADATA else ()
    kinds = {**wanted, **dict.fromkeys(targets, "number")}
    for name in wanted:
        if name not in columns:
            yield f"{table} has no column {name}: add it, or rename the table if it is not ours."
    if "id" in columns and not columns["id"].has_default:
        yield f"{table}.id has no default: make it a serial or identity column."
    for name, column in columns.items():
        family, kind = family_of(vendor, column.type), kinds.get(name)
        # SQLite stores any value, and Django parses text, so a declared type matters less.
        loose = vendor == "sqlite" and (family is None or {family, kind} == {"text", "time"})
        if kind and family != kind and not loose:
            meaning = "as the user model's key" if name == "user_id" else f"of {kind}s"
            if kind == "time":
                meaning = "timestamp with time zone"
            yield f"{table}.{name} is {column.type}: change its type to one {meaning}."
        must_take_null = name not in wanted or name in ("embedding", "chunk_id")
        if must_take_null and not column.nullable and not column.has_default:
            yield f"{table}.{name} is NOT NULL: drop that, we insert rows without it."


def has_check(connection: BaseDatabaseWrapper) -> bool:
    """Return whether memory_metadata has our CHECK."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            # Django's introspection does not name a CHECK that belongs to a column.
            cursor.execute("SELECT sql FROM sqlite_master WHERE name = %s", [METADATA])
            return any(f'"{CHECK}"' in sql for (sql,) in cursor.fetchall())
        return CHECK in connection.introspection.get_constraints(cursor, METADATA)


def _relation_exists(connection: BaseDatabaseWrapper, table: str) -> bool:
    with connection.cursor() as cursor:
        return table in connection.introspection.table_names(cursor, include_views=True)


def _obstacles(connection: BaseDatabaseWrapper) -> Iterator[str]:
    """Yield the reasons why SQLite cannot add the CHECK (PostgreSQL adds it NOT VALID)."""
    columns = columns_of(connection, METADATA)
    if connection.vendor != "sqlite" or not columns:
        return
    with connection.cursor() as cursor:
        if TARGET_COLUMNS[-1] not in columns:
            cursor.execute(f"SELECT count(*) FROM {METADATA} WHERE chunk_id IS NULL")
            if count := cursor.fetchone()[0]:
                yield (
                    f"{METADATA} has {count} rows without a chunk_id, which describe nothing:"
                    " delete them."
                )
        elif not has_check(connection):
            yield (
                f"{METADATA}.{TARGET_COLUMNS[-1]} exists without the CHECK {CHECK}:"
                " drop the column, the migration adds both."
            )
