"""The checks of the replica: each fires on its mistake and is silent without it."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import DEFAULT_DB_ALIAS, connection
from django.db.utils import ConnectionHandler

from conversations.checks import replicas
from flags import checks as flags_checks
from tests.support.checks import found
from tests.support.scratch import ALIAS, scratch_database


@pytest.mark.parametrize(
    ("replica", "engines", "text"),
    [
        ("nowhere", ("postgresql", "postgresql"), "which is no alias of DATABASES."),
        ("other", ("postgresql", "postgresql"), 'which is CONVERSATIONS["DATABASE"] itself.'),
        (
            "third",
            ("postgresql", "sqlite3"),
            "but replicas are for PostgreSQL, and 'other' is PostgreSQL and 'third' is SQLite.",
        ),
        (
            "third",
            ("sqlite3", "sqlite3"),
            "but replicas are for PostgreSQL, and 'other' is SQLite and 'third' is SQLite.",
        ),
        ("third", ("postgresql", "postgresql"), None),
        (None, ("sqlite3", "sqlite3"), None),
        (5, ("sqlite3", "sqlite3"), None),
    ],
)
def test_conversations_E018(
    configure: Any,
    monkeypatch: pytest.MonkeyPatch,
    replica: Any,
    engines: tuple[str, str],
    text: str | None,
) -> None:
    chosen = {
        alias: {"ENGINE": f"django.db.backends.{engine}", "NAME": "nowhere"}
        for alias, engine in zip(("other", "third"), engines, strict=True)
    }
    handler = ConnectionHandler({DEFAULT_DB_ALIAS: {}, **chosen})
    monkeypatch.setattr(replicas, "connections", handler)
    monkeypatch.setattr(flags_checks, "connections", handler)
    configure(DATABASE="other", REPLICA=replica)
    wanted = [] if text is None else [f'CONVERSATIONS["REPLICA"] is {replica!r}, {text}']
    assert found(replicas.check_replica(), "conversations.E018") == wanted
    configure(DATABASE="missing", REPLICA="third")
    assert replicas.check_replica() == []


@pytest.mark.django_db
def test_conversations_W005(configure: Any, tmp_path: Any, django_db_blocker: Any) -> None:
    """A scratch database is on the same server, and yet no replica; see tests/replication."""
    check, aliases = replicas.check_replication, [DEFAULT_DB_ALIAS]
    assert check(databases=aliases) == []
    configure(REPLICA="nowhere")
    assert check(databases=aliases) == []
    configure(REPLICA=ALIAS)
    if connection.vendor != "postgresql":
        return
    with django_db_blocker.unblock(), scratch_database(tmp_path):
        messages = found(check(databases=aliases), "conversations.W005")
    assert messages == [
        "'scratch' is no streaming replica of 'default': it belongs to another cluster, or is"
        " another database."
    ]
