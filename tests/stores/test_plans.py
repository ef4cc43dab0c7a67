"""Each query goes by the index that is meant for it, and reads no table of ours whole.

On PostgreSQL with statistics of a crowd of rows; on SQLite without any, as a host that never runs
ANALYZE has it, and with them. What each index costs a save: docs/indexes.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.db import connection, models, transaction
from django.test import Client, override_settings
from django.urls import reverse

from conversations.stores.chunks.store import ChunkStore
from flags.admin import base
from flags.admin.base import ReadOnlyAdmin
from flags.phases import Phase
from flags.switches import forced_phase
from memory.admin.models import ChunkAdmin
from tests.support import populated
from tests.support.plans import Statement, uses
from tests.support.query_cases import (
    BESIDE_CHUNKS,
    BLOBS,
    CHUNKS,
    FRESH,
    LISTS,
    NAME,
    ROLLOUT,
    SMALL,
    TABLES,
    TWICE,
    Case,
    found_by,
    save_subject,
    saved_twice,
)

pytestmark = pytest.mark.django_db


@pytest.fixture(scope="module", autouse=True)
def _crowd(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    folder: Path = tmp_path_factory.mktemp("populated")
    with django_db_blocker.unblock(), populated.database_of_its_own(folder):
        populated.populate()
        with override_settings(CONVERSATIONS=FRESH), forced_phase(Phase.NEW_ONLY):
            save_subject()
        saved_twice()
        yield


@pytest.fixture(params=["custom", "generic"])
def generic(request: pytest.FixtureRequest) -> bool:
    """Whether a plan serves all parameters, as those of prepared statements come to; or ANALYZE."""
    if request.param == "generic":
        if connection.vendor == "sqlite":
            with connection.cursor() as cursor:
                cursor.execute("ANALYZE")
            return False
        if connection.pg_version < 160_000:
            pytest.skip("PostgreSQL explains generic plans since 16")
        return True
    return False


@pytest.mark.parametrize("case", TABLES, ids=str)
def test_the_tables_are_read_by_their_indexes(case: Case, generic: bool) -> None:
    with override_settings(CONVERSATIONS=FRESH), forced_phase(Phase.NEW_ONLY):
        found = found_by(case.call, generic=generic)
    assert case.problems(found) == []


@pytest.mark.parametrize("case", BESIDE_CHUNKS, ids=lambda pair: pair[0].name)
@pytest.mark.parametrize("phase", [Phase.NEW_ONLY, Phase.DUAL_WRITE], ids=lambda phase: phase.label)
def test_the_chunk_tables_are_read_by_their_indexes(case: tuple[Case, Case], phase: Phase) -> None:
    chosen = case[0] if phase == Phase.NEW_ONLY else case[1]
    with override_settings(CONVERSATIONS=CHUNKS), forced_phase(phase):
        found = found_by(chosen.call)
    assert chosen.problems(found) == []


def test_overtaken_blobs_are_found_by_their_indexes() -> None:
    def prune() -> None:
        store = ChunkStore()
        assert store.crowded([TWICE, NAME], keep=1) == [TWICE]
        assert store.prune(TWICE, keep=1, needed=9).blobs == 2
        store.prune(TWICE, keep=1, needed=9, behind=2**60)

    with override_settings(CONVERSATIONS=CHUNKS), transaction.atomic():
        found = found_by(prune)
        transaction.set_rollback(True)
    assert Case("prune", prune, BLOBS).problems(found) == []


@pytest.mark.parametrize("case", [*ROLLOUT, *LISTS], ids=str)
def test_a_rollout_reads_by_indexes_while_writers_wait(case: Case) -> None:
    with override_settings(CONVERSATIONS=CHUNKS), forced_phase(Phase.DUAL_WRITE):
        problems = case.problems(found_by(case.call))
        if problems and connection.vendor == "postgresql":
            # What other tests wrote and rolled back may have made the statistics old.
            with connection.cursor() as cursor:
                cursor.execute("ANALYZE")
            problems = case.problems(found_by(case.call))
    assert problems == []


OURS = [
    model
    for label in ("conversations", "memory")
    for model in apps.get_app_config(label).get_models()
]


@pytest.mark.parametrize("model", OURS, ids=lambda model: model._meta.model_name)
def test_no_list_of_the_admin_reads_a_table_whole(
    model: Any, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is filtered, sorted or searched: it looks at the latest rows only."""
    monkeypatch.setattr(base, "MOST_COUNTED", 101)
    monkeypatch.setattr(base, "MOST_OFFERED", 100)
    monkeypatch.setattr(ReadOnlyAdmin, "most_filtered", 100)
    monkeypatch.setattr(ChunkAdmin, "most_filtered", 100)
    client.force_login(User.objects.create_superuser("root"))
    address = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    listed = client.get(address).context["cl"]
    choices = [
        choice["query_string"]
        for filtered in listed.filter_specs
        for choice in filtered.choices(listed)
    ]
    sorted_by = [f"?o={place}" for place in range(len(listed.list_display) + 1)]
    searched = [f"?q={term}" for term in (NAME, "nothing", "crowd3")]
    asked = ["", *choices, *sorted_by, *(searched if listed.search_fields else ())]
    assert len(asked) > 5
    whole = f"scan {model._meta.db_table}"
    with override_settings(CONVERSATIONS=CHUNKS):
        # The few rows of a page are joined with others as the database likes.
        found = [
            query for query in asked if whole in found_by(partial(client.get, address + query))
        ]
    assert found == []


def foreign_keys() -> Iterator[tuple[str, str]]:
    for label in ("conversations", "memory", "flags"):
        for model in apps.get_app_config(label).get_models():
            for field in model._meta.concrete_fields:
                if isinstance(field, models.ForeignKey):
                    yield model._meta.db_table, field.column


@pytest.mark.parametrize(("table", "column"), list(foreign_keys()))
def test_deleting_a_row_finds_its_references_by_an_index(table: str, column: str) -> None:
    """Databases look for it themselves, and would scan the table for each row deleted."""
    if table in SMALL:
        pytest.skip("a few rows")
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT min({column}) FROM {table}")
        (value,) = cursor.fetchone()
    sql = f"SELECT 1 FROM {table} WHERE {column} = {value or 1}"
    (found,) = uses(Statement(sql))
    assert not found.startswith(("scan", "walk"))


def test_every_index_is_meant_for_a_query() -> None:
    """An index that nothing uses costs every write, and is to be dropped."""
    cases = [*TABLES, *ROLLOUT, *LISTS, *(case for pair in BESIDE_CHUNKS for case in pair)]
    used = {name for case in cases for name in re.findall(r"\w+", case.indexes)}
    declared = {
        found.name
        for label in ("conversations", "memory", "flags")
        for model in apps.get_app_config(label).get_models()
        for found in [*model._meta.indexes, *model._meta.constraints]
        if model._meta.db_table not in SMALL and not isinstance(found, models.CheckConstraint)
    }
    assert declared - used == set()
