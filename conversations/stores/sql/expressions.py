"""Conditions, ranges and expressions that the queries of all stores share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connections
from django.db.models import Model, Q, QuerySet

from conversations import conf

# No key of a table is greater. For a range with one end, PostgreSQL without statistics expects a
# third of the table, and reads all of it. For a range with two ends, it expects a 200th.
EVERY_KEY = 2**62
# The time of a conversation without one: lists put it behind all others.
NEVER = datetime.min.replace(tzinfo=UTC)
# The last moment that has a later one.
LAST_MOMENT = datetime.max.replace(tzinfo=UTC) - timedelta(microseconds=1)


def listed_behind(before: tuple[datetime, str], *, time: str, lower: Q) -> Q:
    """Return the condition of standing behind a time and an id in a list.

    `time` is the column of the time, `lower` the condition of having a lower id.
    """
    moment = before[0]
    untimed = Q(**{f"{time}__isnull": True})
    if moment == NEVER:
        return untimed & lower
    return Q(**{f"{time}__lt": moment}) | Q(**{time: moment}) & lower | untimed


def has_foreign_key(model: type[Model], column: str) -> bool:
    """Whether the database enforces a foreign key on a column; the model may say otherwise."""
    connection = connections[conf.alias()]
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, model._meta.db_table)
    return any(each["foreign_key"] and column in each["columns"] for each in found.values())


def between(rows: QuerySet[Any], low: Any, high: Any, *, name: str) -> QuerySet[Any]:
    """Return the rows whose `name` is behind `low` (None: from the first) and up to `high`."""
    bounded = rows.filter(**{f"{name}__lte": high})
    return bounded if low is None else bounded.filter(**{f"{name}__gt": low})


def key_after(rows: QuerySet[Any], low: Any, upper: Any, *, count: int) -> Any:
    """Return the primary key of the `count`-th row of a range, or of its last one, or None."""
    keys = between(rows, low, upper, name="pk").order_by("pk").values_list("pk", flat=True)
    return keys[count - 1 : count].first() or keys.reverse().first()


def byte_length(expression: str, vendor: str) -> str:
    """Return the SQL of a text's size in bytes (older SQLites have no octet_length)."""
    if vendor == "sqlite":
        return f"LENGTH(CAST({expression} AS BLOB))"
    return f"OCTET_LENGTH({expression})"


def single_row(sql: str) -> tuple[int, ...]:
    """Return the one row of sums of a statement; null counts as 0."""
    with connections[conf.alias()].cursor() as cursor:
        cursor.execute(sql)
        return tuple(int(value or 0) for value in cursor.fetchone())
