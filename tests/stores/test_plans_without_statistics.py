"""No statistics, as a restored backup has none: still no query reads all blobs or all messages.

PostgreSQL then takes every list of keys, and every range with one end, for a large part of a
table. On SQLite `test_plans` has no statistics either; here it answers the same questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import override_settings
from django.utils import timezone

from conversations.models import ConversationState
from conversations.rollout.sync.bulk import carry_all
from conversations.rollout.verification import unverified, verify
from conversations.routing.ids import in_batches
from conversations.stores.normalized import content_sizes, contents_of, find_rows_with_token_of
from flags.phases import Phase
from flags.switches import forced_phase
from tests.support import populated
from tests.support.plans import Statement, caught
from tests.support.query_cases import (
    BESIDE_CHUNKS,
    CHUNKS,
    FRESH,
    LISTS,
    ROLLOUT,
    TABLES,
    Case,
    found_by,
    legacy,
    save_subject,
    saved_twice,
)

pytestmark = pytest.mark.django_db

LARGE = ("memory_chunks", "memory_metadata", "conversation_messages", "memory_context_items")
NAMES = [f"crowd-{number}" for number in range(1, 201)]
UNMOVED = [f"unmoved-{number}" for number in range(1, 201, 2)]
# An operator's: these count what is in a table, or remove from it, while no request waits.
WHOLE = {"findings", "delete", "find what to prune"}


@pytest.fixture(scope="module", autouse=True)
def _restored(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    folder: Path = tmp_path_factory.mktemp("restored")
    with django_db_blocker.unblock(), populated.database_of_its_own(folder):
        populated.populate(statistics=False)
        with override_settings(CONVERSATIONS=FRESH), forced_phase(Phase.NEW_ONLY):
            save_subject()
        saved_twice()
        yield


def asked(cases: list[Case]) -> list[Case]:
    return [case for case in cases if case.name not in WHOLE]


def read_whole(found: set[str]) -> set[str]:
    return {use for use in found if use in {f"scan {table}" for table in LARGE}}


def keys() -> list[int]:
    rows = ConversationState.rows.order_by("pk")
    return list(rows.values_list("pk", flat=True)[:200])


MANY = {
    "look at many": lambda: legacy().read_many(NAMES),
    "the sizes of many": lambda: legacy().sizes(NAMES),
    "tokens of many": lambda: find_rows_with_token_of(legacy().token_sql(), NAMES),
    "the first batch of a sync": lambda: legacy().ids_between(None, 50, settled=timezone.now()),
    "a later batch": lambda: legacy().ids_between(1000, 1100, settled=timezone.now()),
    "what the tables hold of many": lambda: contents_of(keys()),
    "the sizes in the tables": lambda: content_sizes(NAMES),
    "verify many": lambda: list(verify(NAMES[:50])),
    "take many in": lambda: carry_all(legacy(), UNMOVED[:30]),
}


@pytest.mark.parametrize("name", MANY)
def test_many_conversations_are_looked_up_one_by_one(name: str) -> None:
    with override_settings(CONVERSATIONS=CHUNKS), forced_phase(Phase.DUAL_WRITE):
        assert read_whole(found_by(MANY[name])) == set()


@pytest.mark.parametrize("case", asked([*ROLLOUT, *LISTS]), ids=str)
def test_a_rollout_and_its_lists_read_no_blobs_that_they_do_not_need(case: Case) -> None:
    with override_settings(CONVERSATIONS=CHUNKS), forced_phase(Phase.DUAL_WRITE):
        found = found_by(case.call)
    assert read_whole(found) == set()
    # Nor the index of all names instead of the latest blobs.
    assert "walk metadata_conversation_chunk" not in found


@pytest.mark.parametrize("case", asked(TABLES), ids=str)
def test_loads_and_saves_read_no_table_whole(case: Case) -> None:
    with override_settings(CONVERSATIONS=FRESH), forced_phase(Phase.NEW_ONLY):
        assert read_whole(found_by(case.call)) == set()


@pytest.mark.parametrize("case", BESIDE_CHUNKS, ids=lambda pair: pair[0].name)
@pytest.mark.parametrize("phase", [Phase.NEW_ONLY, Phase.DUAL_WRITE], ids=lambda phase: phase.label)
def test_loads_and_saves_beside_chunks_read_no_table_whole(
    case: tuple[Case, Case], phase: Phase
) -> None:
    with override_settings(CONVERSATIONS=CHUNKS), forced_phase(phase):
        assert read_whole(found_by(case[0].call)) == set()


def test_changed_conversations_are_found_by_the_index_of_unsettled_ones() -> None:
    """A gate asks it while writes are held back."""
    assert found_by(lambda: list(in_batches(unverified()))) == {"state_unsettled"}


def test_new_blobs_of_legacy_are_found_by_their_keys() -> None:
    """Every blob was read for the last five."""
    mark = str(int(legacy_mark()) - 5)
    with override_settings(CONVERSATIONS=CHUNKS):
        found = found_by(lambda: list(legacy().ids_written_since(mark)))
    assert "metadata_by_chunk" in found
    assert read_whole(found) == set()


# Of what the database reads, in pages: with statistics, and a quarter more. An index may be looked
# up in by its second column alone, which no plan tells from a look-up, and which reads all of it.
PAGES = {
    "what came into legacy": 41,
    "list a user's conversations": 22_400,
    "the latest conversation": 9_700,
    "list everybody's": 4_700,
    "list legacy": 2_400,
    "findings": 468_000,
}


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite does not say what it read")
@pytest.mark.parametrize("name", PAGES)
def test_as_much_is_read_as_with_statistics(name: str) -> None:
    (case,) = (one for one in [*ROLLOUT, *LISTS] if one.name == name)
    with override_settings(CONVERSATIONS=CHUNKS), forced_phase(Phase.DUAL_WRITE):
        with caught() as statements:
            case.call()
        assert sum(map(pages_read, statements)) < PAGES[name]


def pages_read(statement: Statement) -> int:
    if not statement.sql.lstrip().startswith(("SELECT", "WITH")):
        return 0
    with connection.cursor() as cursor:
        explained = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement.sql}"
        cursor.execute(explained, statement.parameters)
        plan = cursor.fetchone()[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def legacy_mark() -> str:
    with override_settings(CONVERSATIONS=CHUNKS):
        return str(legacy().mark())


def test_there_are_no_statistics_here() -> None:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stats WHERE tablename LIKE 'memory%'")
            assert cursor.fetchone() == (0,)
    else:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM sqlite_master WHERE name = 'sqlite_stat1'")
            assert cursor.fetchone() == (0,)
