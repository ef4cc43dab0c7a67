"""What a database does for each statement that a call executes: which indexes, which tables whole.

Statements are caught at the driver, below Django, so that none is missed, from any sender.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import psycopg
from django.apps import apps
from django.db import connection

EXPLAINED = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")
OUR_TABLES = frozenset(
    model._meta.db_table
    for label in ("conversations", "memory", "flags")
    for model in apps.get_app_config(label).get_models()
)


@dataclass(frozen=True)
class Statement:
    """A statement as the driver got it. SQLite's has its parameters in its text."""

    sql: str
    parameters: Any = None


@contextmanager
def caught() -> Iterator[list[Statement]]:
    """Give the statements of a block, in their order."""
    found: list[Statement] = []
    connection.ensure_connection()
    if connection.vendor == "sqlite":
        connection.connection.set_trace_callback(lambda sql: found.append(Statement(sql)))
        try:
            yield found
        finally:
            connection.connection.set_trace_callback(None)
        return

    def watched(kind: Any) -> Any:
        original = kind.execute

        def execute(cursor: Any, query: Any, params: Any = None, **options: Any) -> Any:
            sql = query if isinstance(query, str) else psycopg.sql.as_string(query, cursor)
            found.append(Statement(sql, params))
            return original(cursor, query, params, **options)

        return mock.patch.object(kind, "execute", execute)

    with watched(psycopg.Cursor), watched(psycopg.ServerCursor):
        yield found


def uses_of(call: Callable[[], Any], *, generic: bool = False) -> set[str]:
    """Return how a call reaches our tables; see `uses`."""
    with caught() as statements:
        call()
    found: set[str] = set()
    for statement in statements:
        for part in filter(str.strip, statement.sql.split(";")):
            if part.lstrip().upper().startswith(EXPLAINED):
                found |= uses(Statement(part, statement.parameters), generic=generic)
    return found


def uses(statement: Statement, *, generic: bool = False) -> set[str]:
    """Return how a statement reaches our tables.

    Names of indexes that are looked up in; "pk of TABLE"; "walk INDEX" where one is read in its
    order from an end; "scan TABLE" where a table is read whole. `generic`: as a prepared
    statement that PostgreSQL has stopped planning anew.
    """
    if connection.vendor == "sqlite":
        return set(_uses_on_sqlite(statement))
    with connection.cursor() as cursor:
        if generic:
            numbers = iter(range(1, 10_000))
            sql = re.sub(
                r"%[s%bt]",
                lambda found: "%" if found[0] == "%%" else f"${next(numbers)}",
                statement.sql,
            )
            if statement.parameters is None:
                sql = statement.sql
            cursor.execute(f"EXPLAIN (FORMAT JSON, GENERIC_PLAN) {sql}")
        else:
            cursor.execute(f"EXPLAIN (FORMAT JSON) {statement.sql}", statement.parameters)
        (plan,) = cursor.fetchone()
    if isinstance(plan, str):
        plan = json.loads(plan)
    return set(_uses_in(plan[0]["Plan"]))


def _uses_in(node: dict[str, Any], *, table: str = "", bounded: bool = False) -> Iterator[str]:
    kind, table = node["Node Type"], node.get("Relation Name", table)
    # Of what ends after so many rows, whichever they are, nothing is left over.
    if kind == "Seq Scan" and table in OUR_TABLES and not (bounded and "Filter" not in node):
        yield f"scan {table}"
    if "Index Name" in node and (table in OUR_TABLES or kind == "Bitmap Index Scan"):
        index = _named(node["Index Name"])
        yield index if "Index Cond" in node else f"walk {index}"
    for child in node.get("Plans", ()):
        yield from _uses_in(child, table=table, bounded=kind == "Limit")


def _named(index: str) -> str:
    return f"pk of {index.removesuffix('_pkey')}" if index.endswith("_pkey") else index


_DETAIL = re.compile(
    r"(?P<verb>SCAN|SEARCH) (?P<name>\S+)"
    r"(?: USING (?:COVERING |AUTOMATIC |PARTIAL )*INDEX (?P<index>\S+))?"
)


def _uses_on_sqlite(statement: Statement) -> Iterator[str]:
    if statement.sql.startswith("INSERT") and "SELECT" not in statement.sql:
        # It names the foreign keys that a REPLACE would have to look at.
        return
    rows = connection.connection.execute(f"EXPLAIN QUERY PLAN {statement.sql}").fetchall()
    ordered = not any("TEMP B-TREE" in detail for *_, detail in rows)
    # It ends after so many rows, whichever they are.
    bounded = ordered and " LIMIT " in statement.sql and " WHERE " not in statement.sql
    for *_, detail in rows:
        found = _DETAIL.match(detail)
        if found is None:
            continue
        table = _table_of(found["name"], statement.sql)
        if table not in OUR_TABLES:
            continue
        if "AUTOMATIC" in detail:
            yield f"scan {table}"
        elif found["verb"] == "SEARCH":
            yield _constraint(found["index"]) if found["index"] else f"pk of {table}"
        elif found["index"]:
            yield f"walk {_constraint(found['index'])}"
        elif not bounded:
            yield f"scan {table}"


def _constraint(index: str) -> str:
    """Return the name of the unique constraint that an index of SQLite's own stands for."""
    if not index.startswith("sqlite_autoindex_"):
        return index
    table = index.removeprefix("sqlite_autoindex_").rpartition("_")[0]
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM pragma_index_info(%s) ORDER BY seqno", [index])
        columns = [column for (column,) in cursor.fetchall()]
        named = connection.introspection.get_constraints(cursor, table)
    meant = (name for name, of in named.items() if of["unique"] and columns == of["columns"])
    # A primary key that is no number has an index like any unique column.
    return next(meant, f"pk of {table}")


def _table_of(name: str, sql: str) -> str:
    """Return the table of an alias; SQLite names the alias alone."""
    if name in OUR_TABLES:
        return name
    named = re.search(rf'(?:FROM|JOIN|,)\s+"?(\w+)"?\s+(?:AS\s+)?"?{re.escape(name)}"?\b', sql)
    return named[1] if named else ""
