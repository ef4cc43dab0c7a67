"""Where a restored backup has no statistics, `check`, `sync` and `verify` say what to type."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.db import connection

from conversations.rollout import statistics
from tests.support import populated

pytestmark = pytest.mark.django_db

# What the crowd makes large: the tables of a host's own are small here.
TABLES = [*statistics.TABLES, "memory_chunks"]
postgresql = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="SQLite plans without statistics"
)
COMMANDS = [
    ("sync", "--to", "tables", "--dry-run"),
    ("sync", "--to", "tables", "nobody"),
    ("verify", "nobody"),
]


@pytest.fixture(scope="module", autouse=True)
def _restored(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    folder: Path = tmp_path_factory.mktemp("restored")
    with django_db_blocker.unblock(), populated.database_of_its_own(folder):
        populated.populate(statistics=False)
        yield


@pytest.fixture(autouse=True)
def _chunks(settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}


def checked() -> list[Any]:
    found = run_checks(databases=["default"])
    return [one for one in found if one.id == "conversations.W006"]


def said_by(*words: str) -> str:
    stderr = io.StringIO()
    with suppress(CommandError):
        call_command("conversations", *words, stdout=io.StringIO(), stderr=stderr)
    return stderr.getvalue()


def analysis() -> str:
    quoted = ", ".join(f'"{name}"' for name in TABLES)
    return f"ANALYZE {quoted};"


@postgresql
def test_tables_without_statistics_are_named_with_what_to_type() -> None:
    (found,) = checked()
    assert found.id == "conversations.W006"
    assert found.msg.startswith(f"The database has no statistics of {', '.join(TABLES)}:")
    assert found.hint == f"Type in psql: {analysis()}"
    for words in COMMANDS:
        said = said_by(*words)
        assert said.startswith("warning: the database has no statistics of conversation_states,")
        assert analysis() in said
    with connection.cursor() as cursor:
        cursor.execute(analysis())
    assert checked() == []
    for words in COMMANDS:
        assert "statistics" not in said_by(*words)


@postgresql
def test_a_table_that_is_small_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "SMALL_PAGES", 10**6)
    assert checked() == []
    assert statistics.warning() == ""


def test_where_the_database_needs_none_nothing_is_said() -> None:
    if connection.vendor == "sqlite":
        assert checked() == []
        assert statistics.warning() == ""
    else:
        assert statistics.tables_without_statistics(connection, ["no_such_table"]) == []
