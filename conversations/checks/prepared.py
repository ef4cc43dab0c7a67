"""The check that says where statements are prepared, and why not elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from django.core.checks import CheckMessage, Info
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from conversations.stores.sql.prepared import AUTO, ON_REQUEST, session_of
from flags.checks import configured, database_check

_HINT = (
    "True prepares them all the same, for a pooler that carries them; False never does. See"
    " docs/scaling.md."
)


@database_check(deploy=True)
def check_prepared_statements(connection: BaseDatabaseWrapper) -> Iterator[CheckMessage]:
    """Say for each alias whether its statements are prepared."""
    replica = configured().get("REPLICA")
    for alias in dict.fromkeys([connection.alias, replica]):
        if isinstance(alias, str) and alias in list(connections):
            if connections[alias].vendor == "postgresql":
                yield _said_of(connections[alias])


def _said_of(connection: BaseDatabaseWrapper) -> CheckMessage:
    connection.ensure_connection()
    raw, setting = connection.connection, configured().get("PREPARE_STATEMENTS", AUTO)
    if raw.prepare_threshold not in (None, ON_REQUEST):
        does, said = True, f"its own prepare_threshold is {raw.prepare_threshold}"
    elif setting == AUTO:
        session = session_of(raw)
        session.ask(raw)
        does = bool(session.carries)
        said = "it carries them" if does else session.reason or "a transaction is open"
    else:
        does, said = bool(setting), f"PREPARE_STATEMENTS is {setting}"
    verb = "are prepared" if does else "are not prepared"
    return Info(
        f"Statements of loads and additions {verb} on {connection.alias!r}: {said}.",
        hint=_HINT,
        id="conversations.I001",
    )
