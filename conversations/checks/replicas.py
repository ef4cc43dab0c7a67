"""Checks of the replica that `CONVERSATIONS["REPLICA"]` names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.core.checks import CheckMessage, Error, Warning, register
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from flags.checks import configured, database_check, valid_alias
from flags.texts import quoted

_IDENTITY = "SELECT system_identifier, current_database() FROM pg_control_system()"


@register("conversations")
def check_replica(**kwargs: Any) -> list[CheckMessage]:
    """Check that the replica is another PostgreSQL database than the primary."""
    alias, primary = configured().get("REPLICA"), valid_alias()
    if not isinstance(alias, str) or primary is None:
        # None means no replica; conversations.E007 and E009 report the other cases.
        return []
    said, hint = f'CONVERSATIONS["REPLICA"] is {quoted(alias)}, ', "Or leave REPLICA out."
    if alias not in list(connections):
        said += "which is no alias of DATABASES."
        others = ", ".join(name for name in connections if name != primary)
        hint = f"Use one of {others}. {hint}" if others else f"Add it to DATABASES. {hint}"
    elif alias == primary:
        said += 'which is CONVERSATIONS["DATABASE"] itself.'
        hint = f"Give the replica an alias of its own in DATABASES. {hint}"
    elif {connections[name].vendor for name in (alias, primary)} != {"postgresql"}:
        kinds = " and ".join(
            f"{name!r} is {connections[name].display_name}" for name in (primary, alias)
        )
        said += f"but replicas are for PostgreSQL, and {kinds}."
        hint = f"Name a streaming replica of a PostgreSQL database. {hint}"
    else:
        return []
    return [Error(said, hint=hint, id="conversations.E018")]


@database_check()
def check_replication(connection: BaseDatabaseWrapper) -> Iterator[CheckMessage]:
    """Check that the replica is a physical copy of the primary's database."""
    alias = configured().get("REPLICA")
    if not isinstance(alias, str) or check_replica():
        return
    known = []
    for each in (connection, connections[alias]):
        with each.cursor() as cursor:
            cursor.execute(_IDENTITY)
            known.append(cursor.fetchone())
    if known[0] != known[1]:
        yield Warning(
            f"{alias!r} is no streaming replica of {connection.alias!r}: it belongs to another"
            " cluster, or is another database.",
            hint='Let CONVERSATIONS["REPLICA"] name a physical replica of the same database.',
            id="conversations.W005",
        )
