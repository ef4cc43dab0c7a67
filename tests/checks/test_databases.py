"""The checks of the database: each fires on its mistake and is silent without it."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.db.migrations.recorder import MigrationRecorder
from psycopg import IsolationLevel

from conversations.checks import databases
from memory import checks as memory_checks
from tests.support.checks import found
from tests.support.scratch import ALIAS, scratch_database


def test_conversations_E009(configure: Any) -> None:
    configure(DATABASE="nowhere")
    assert found(databases.check_alias(), "conversations.E009") == [
        "CONVERSATIONS[\"DATABASE\"] is 'nowhere', which is no alias of DATABASES."
    ]
    configure(DATABASE=DEFAULT_DB_ALIAS)
    assert databases.check_alias() == []


def test_conversations_E010(configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert databases.check_alias() == []
    monkeypatch.setattr(connections[DEFAULT_DB_ALIAS], "vendor", "mysql")
    assert len(found(databases.check_alias(), "conversations.E010")) == 1


class Elsewhere:
    """A router that sends conversations to a replica."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return "replica" if model._meta.app_label == "conversations" else None


class Refusing:
    """A router that keeps memory from being migrated."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return False if app_label == "memory" else None


class Failing:
    """A router with a defect."""

    def db_for_write(self, model: Any, **hints: Any) -> str:
        raise KeyError(model)


@pytest.mark.parametrize(
    ("router", "text"),
    [
        (Elsewhere, "are routed to 'replica', but CONVERSATIONS uses 'default'"),
        (Refusing, "from being migrated on 'default'"),
        (Failing, "A router of DATABASE_ROUTERS failed"),
    ],
)
def test_conversations_E011(settings: Any, configure: Any, router: type, text: str) -> None:
    assert databases.check_alias() == []
    settings.DATABASE_ROUTERS = [f"{__name__}.{router.__name__}"]
    (message,) = found(databases.check_alias(), "conversations.E011")
    assert text in message


def test_conversations_E011_asks_for_a_router_where_the_alias_is_not_default(
    other_alias: Any,
) -> None:
    other_alias("sqlite3", OPTIONS={"transaction_mode": "IMMEDIATE"})
    (message,) = found(databases.check_alias(), "conversations.E011")
    assert "are routed to 'default', but CONVERSATIONS uses 'other'" in message
    assert "conversations.ConversationState" in message
    assert "auth.User" in message
    assert "waffle.Switch" in message


@pytest.mark.parametrize("encoding", ["UTF8", "SQL_ASCII"])
def test_conversations_E012(
    tmp_path: Any, django_db_blocker: Any, configure: Any, encoding: str
) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite takes every text")
    configure(DATABASE=ALIAS)
    with django_db_blocker.unblock(), scratch_database(tmp_path, encoding=encoding):
        said = databases.check_server(databases=[ALIAS])
    assert ["SQL_ASCII" in text for text in found(said, "conversations.E012")] == (
        [] if encoding == "UTF8" else [True]
    )


@pytest.mark.django_db
@pytest.mark.parametrize("where", ["server", "options"])
def test_conversations_E016(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    aliases = [DEFAULT_DB_ALIAS]
    assert found(databases.check_server(databases=aliases), "conversations.E016") == []
    if connection.vendor != "postgresql":
        pytest.skip("SQLite's transactions wait before they read")
    if where == "server":
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL default_transaction_isolation = 'repeatable read'")
    else:
        monkeypatch.setattr(connection, "isolation_level", IsolationLevel.SERIALIZABLE)
    (message,) = found(databases.check_server(databases=aliases), "conversations.E016")
    assert "READ COMMITTED" in message


@pytest.mark.django_db
def test_conversations_E013(monkeypatch: pytest.MonkeyPatch, configure: Any) -> None:
    aliases = [DEFAULT_DB_ALIAS]
    assert found(databases.check_server(databases=aliases), "conversations.E013") == []
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no server")
    monkeypatch.setitem(connections[DEFAULT_DB_ALIAS].__dict__, "pg_version", 130_020)
    assert len(found(databases.check_server(databases=aliases), "conversations.E013")) == 1


@pytest.mark.django_db
def test_conversations_E014(configure: Any) -> None:
    check = databases.check_recorded_migrations
    assert check(databases=[DEFAULT_DB_ALIAS]) == []
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE conversation_tombstones")
    assert found(check(databases=[DEFAULT_DB_ALIAS]), "conversations.E014") == [
        "The migrations of conversations are recorded, but there is no table"
        " conversation_tombstones."
    ]


@pytest.mark.django_db
def test_conversations_E015(configure: Any) -> None:
    MigrationRecorder.Migration.objects.filter(app="conversations").delete()
    (message,) = found(
        databases.check_recorded_migrations(databases=[DEFAULT_DB_ALIAS]), "conversations.E015"
    )
    assert message.startswith("There is a table conversation_conflicts, conversation_messages")


def test_conversations_E015_is_silent_on_an_empty_database(scratch: Any) -> None:
    assert databases.check_recorded_migrations(databases=[ALIAS]) == []
    assert memory_checks.check_recorded_migrations(databases=[ALIAS]) == []


def test_conversations_W001(other_alias: Any) -> None:
    other = other_alias("sqlite3", NAME="some.sqlite3")
    assert len(found(databases.check_alias(), "conversations.W001")) == 1
    other.settings_dict["OPTIONS"] = {"transaction_mode": "immediate"}
    assert found(databases.check_alias(), "conversations.W001") == []
    other.settings_dict.update(OPTIONS={}, NAME=":memory:")
    assert found(databases.check_alias(), "conversations.W001") == []


def test_conversations_W002(scratch: Any) -> None:
    assert databases.check_server(databases=[ALIAS]) == []
    if scratch.vendor != "sqlite":
        pytest.skip("PostgreSQL has no journal mode")
    with scratch.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode = DELETE")
    (message,) = found(databases.check_server(databases=[ALIAS]), "conversations.W002")
    assert "has the journal mode delete" in message


def test_conversations_W003(other_alias: Any) -> None:
    other = other_alias("postgresql", CONN_MAX_AGE=60)
    assert len(found(databases.check_persistent_connections(), "conversations.W003")) == 1
    other.settings_dict["CONN_HEALTH_CHECKS"] = True
    assert databases.check_persistent_connections() == []
    other.settings_dict.update(CONN_HEALTH_CHECKS=False, CONN_MAX_AGE=0)
    assert databases.check_persistent_connections() == []
