"""The checks of memory: each fires on its mistake and is silent without it."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import DEFAULT_DB_ALIAS, connection
from django.db.migrations.recorder import MigrationRecorder

from memory import checks as memory_checks
from memory.models import MemoryChunk, MemoryMetadata
from tests.support.checks import found


@pytest.mark.django_db
def test_memory_E001(configure: Any) -> None:
    check = memory_checks.check_adoption
    assert check(databases=[DEFAULT_DB_ALIAS]) == []
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE memory_chunks RENAME COLUMN content TO body")
    (message,) = check(databases=[DEFAULT_DB_ALIAS])
    assert (message.id, message.msg, message.hint) == (
        "memory.E001",
        "memory_chunks has no column content.",
        "Add it, or rename the table if it is not ours.",
    )


@pytest.mark.django_db
def test_memory_E002(configure: Any) -> None:
    check = memory_checks.check_legacy_is_named
    summary, state = (MemoryChunk.objects.create(content="{}") for _ in range(2))
    for chunk, kind in ((summary, "summary"), (state, "draft")):
        for key, value in {"conversation_id": "c-1", "type": kind}.items():
            MemoryMetadata.objects.create(chunk=chunk, key=key, value=value)
    assert check(databases=[DEFAULT_DB_ALIAS]) == []
    MemoryMetadata.objects.filter(chunk=state, key="type").update(value="state")
    assert len(found(check(databases=[DEFAULT_DB_ALIAS]), "memory.E002")) == 1
    configure(LEGACY="memory_chunks")
    assert check(databases=[DEFAULT_DB_ALIAS]) == []


@pytest.mark.django_db
def test_memory_E003(configure: Any) -> None:
    check = memory_checks.check_recorded_migrations
    assert check(databases=[DEFAULT_DB_ALIAS]) == []
    cascade = " CASCADE" if connection.vendor == "postgresql" else ""
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE memory_context_items{cascade}")
    assert found(check(databases=[DEFAULT_DB_ALIAS]), "memory.E003") == [
        "The migrations of memory are recorded, but there is no table memory_context_items."
    ]


@pytest.mark.django_db
def test_memory_E004(configure: Any) -> None:
    check = memory_checks.check_recorded_migrations
    MigrationRecorder.Migration.objects.filter(app="memory").delete()
    assert found(check(databases=[DEFAULT_DB_ALIAS]), "memory.E004") == [
        "There is a table memory_context_items, but no migration of memory is recorded."
    ]
