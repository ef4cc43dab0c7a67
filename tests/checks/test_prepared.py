"""The check that says where statements are prepared."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from django.db import connection, transaction
from django.test import override_settings

from conversations.checks.prepared import check_prepared_statements

pytestmark = pytest.mark.django_db(transaction=True)
postgresql = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="SQLite's module keeps every statement prepared"
)


@pytest.fixture(autouse=True)
def fresh() -> Any:
    connection.close()
    yield
    connection.close()


def said(setting: Any = "auto") -> list[str]:
    with override_settings(CONVERSATIONS={"PREPARE_STATEMENTS": setting}):
        found = check_prepared_statements(databases=["default"])
    assert {message.id for message in found} <= {"conversations.I001"}
    return [message.msg.removeprefix("Statements of loads and additions ") for message in found]


@pytest.mark.skipif(connection.vendor == "postgresql", reason="PostgreSQL has something to say")
def test_where_every_statement_is_kept_there_is_nothing_to_say() -> None:
    assert said() == []


@postgresql
def test_each_way_is_said_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said() == ["are prepared on 'default': it carries them."]
    assert said(True) == ["are prepared on 'default': PREPARE_STATEMENTS is True."]
    assert said(False) == ["are not prepared on 'default': PREPARE_STATEMENTS is False."]
    connection.connection.prepare_threshold = 7
    assert said() == ["are prepared on 'default': its own prepare_threshold is 7."]
    connection.close()
    with connection.cursor() as cursor:
        cursor.execute("SET search_path TO public, pg_catalog")
    assert said() == ["are not prepared on 'default': its search_path has 2 schemas."]
    connection.close()
    with transaction.atomic():
        connection.cursor().execute("SELECT 1")
        assert said() == ["are not prepared on 'default': a transaction is open."]
    connection.close()
    monkeypatch.setattr(psycopg.ConnectionInfo, "backend_pid", property(lambda info: -5))
    (text,) = said()
    assert text.startswith("are not prepared on 'default': a pooler stands in between")
