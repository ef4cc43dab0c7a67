"""What poolers carry of prepared statements, where PgBouncer or pgpool-II is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import override_settings

from conversations.checks.prepared import check_prepared_statements
from conversations.storage import append_messages, load_state, save_state
from conversations.stores.sql.prepared import session_of
from flags.phases import Phase
from flags.switches import forced_phase
from tests.support import pooler as poolers
from tests.support.factories import messages, state, texts

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor != "postgresql", reason="these poolers are PostgreSQL's"),
]
with_pgbouncer = pytest.mark.skipif(
    poolers.binary() is None, reason="there is no pgbouncer on the PATH"
)
with_pgpool = pytest.mark.skipif(
    poolers.binary("pgpool") is None, reason="there is no pgpool on the PATH"
)


def settings(prepare: Any) -> Any:
    return override_settings(CONVERSATIONS={"REQUIRE_OWNER": False, "PREPARE_STATEMENTS": prepare})


@pytest.fixture
def session_mode() -> Iterator[None]:
    with poolers.running(size=2, mode="session") as pooler, poolers.through(pooler):
        yield


@pytest.fixture
def pgpool() -> Iterator[None]:
    with poolers.pgpool() as pooler, poolers.through(pooler):
        yield


def turns(count: int) -> None:
    """Save, append and load, in transactions of the caller and outside of them."""
    with forced_phase(Phase.NEW_ONLY):
        save_state("c", state())
        for number in range(count):
            loaded = load_state("c")
            loaded.conversation_history += messages(number)
            save_state("c", loaded)
            with transaction.atomic():
                append_messages("c", messages(number))
                load_state("c")
        assert texts(load_state("c")) == [number for number in range(count) for _ in range(2)]


def standing() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_prepared_statements")
        return int(cursor.fetchone()[0])


@with_pgbouncer
@pytest.mark.parametrize(("setting", "kept"), [("auto", 0), (True, 3)])
def test_in_session_mode_pgbouncer_carries_what_the_host_allows(
    session_mode: None, setting: Any, kept: int
) -> None:
    """It makes up the number of its process there as well, so the answer is a false no."""
    with settings(setting):
        turns(30)
        assert standing() == kept
        (said,) = check_prepared_statements(databases=["default"])
    assert ("not prepared" in said.msg) is (setting == "auto")


@with_pgpool
def test_pgpool_carries_prepared_statements(pgpool: None) -> None:
    with settings("auto"):
        turns(30)
        assert session_of(connection.connection).carries
        assert standing() == 3
