"""The floor of a conversation in the chunk tables: up to this id, every blob is accounted for.

It may be raised to what has settled, and never past what may still be in flight: ids commit out
of order, and the rows that make a chunk a state come late.
"""

from __future__ import annotations

from typing import Any

from django.db import connections
from django.db.models import DateTimeField, Q
from django.db.models.expressions import RawSQL
from django.utils import timezone

from conversations import conf


def floor_of(token: str) -> int:
    """Return the floor that a token of ChunkStore holds."""
    return int(token.removesuffix("+") or 0)


def settled_before() -> tuple[str, list[Any]]:
    """Return the time before which no write of old code is in flight: SQL, and its parameters.

    A transaction may see everything as it was when it began, and does not see then what has
    settled since; see `flags.switches`. (On SQLite such a one can write nothing.)
    """
    connection, patience = connections[conf.alias()], conf.get("LEGACY_SETTLES_WITHIN")
    moment = connection.ops.adapt_datetimefield_value(timezone.now() - patience)
    if connection.vendor != "postgresql":
        return "%s", [moment]
    return "LEAST(%s, transaction_timestamp() - %s)", [moment, patience]


def in_flight() -> Q:
    """Return the condition, on rows of metadata, that their chunk may be of a write in flight."""
    settled = RawSQL(*settled_before(), output_field=DateTimeField())
    return Q(chunk__created_at__gte=settled) | Q(chunk__created_at=None)


def raised(floor: int, settled: int | None, still_open: int | None) -> int:
    """Return the floor, raised to the greatest id that is settled, but below what is open."""
    highest = max(floor, settled or 0)
    return highest if still_open is None else max(floor, min(highest, still_open - 1))
