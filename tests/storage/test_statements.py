"""What operations cost in statements, besides BEGIN, COMMIT and SAVEPOINT, in new_only."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from conversations import storage
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryContextItem
from tests.machine.oldcode import OldSession
from tests.support.factories import message, messages, state

pytestmark = pytest.mark.django_db(transaction=True)
FREE = ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE", "ROLLBACK")


@pytest.fixture(params=["chunks", "jsonfield", "fresh"], autouse=True)
def legacy(request: pytest.FixtureRequest) -> Iterator[str]:
    settings = {
        "chunks": {"LEGACY": "memory_chunks"},
        "jsonfield": {"LEGACY": OldSession.settings},
        "fresh": {"REQUIRE_OWNER": False},
    }[request.param]
    with override_settings(CONVERSATIONS=settings), forced_phase(Phase.NEW_ONLY):
        yield request.param


@pytest.fixture
def cid() -> str:
    conversation_id = str(uuid.uuid4())
    items = [{"content": n} for n in range(200)]
    storage.save_state(conversation_id, state(*range(100), memory_context=items))
    return conversation_id


def statements(call: Callable[[], Any]) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        call()
    return [q["sql"] for q in captured.captured_queries if not q["sql"].startswith(FREE)]


def touched(sent: list[str], table: str) -> list[str]:
    verbs = {
        "UPDATE": f"UPDATE {table} ",
        "INSERT": f"INSERT INTO {table} ",
        "DELETE": f"FROM {table} ",
    }
    bare = [sql.replace('"', "") for sql in sent]
    return [
        verb for sql in bare for verb, text in verbs.items() if sql.startswith(verb) and text in sql
    ]


def transactions(call: Callable[[], Any]) -> list[str]:
    """Return what is sent beside the statements: BEGIN, COMMIT, savepoints."""
    with CaptureQueriesContext(connection) as captured:
        call()
    return [q["sql"] for q in captured.captured_queries if q["sql"].startswith(FREE)]


@pytest.fixture
def alone(legacy: str) -> bool:
    """Whether a write that only adds is one statement."""
    return connection.vendor == "postgresql"


def test_a_save_that_only_appends_takes_one_or_three(cid: str, alone: bool) -> None:
    for count in (16, 1, 2):
        loaded = storage.load_state(cid)
        loaded.conversation_history += messages(*range(count))
        loaded.step_count += 1
        sent = statements(lambda: storage.save_state(cid, loaded))  # noqa: B023
        assert len(sent) == (1 if alone else 3)


def test_more_messages_than_one_statement_takes_are_saved_in_three(cid: str) -> None:
    loaded = storage.load_state(cid)
    loaded.conversation_history += messages(*range(50))
    sent = statements(lambda: storage.save_state(cid, loaded))
    assert len(sent) == 3
    assert touched(sent, "conversation_states") == ["UPDATE"]
    assert touched(sent, "conversation_messages") == ["INSERT"]


def test_one_statement_has_no_transaction_of_ours_around_it(cid: str, alone: bool) -> None:
    begun = transactions(lambda: storage.append_messages(cid, messages("x")))
    assert begun == [] if alone else begun != []


def test_appending_reads_nothing_but_the_row(cid: str, alone: bool, legacy: str) -> None:
    assert len(statements(lambda: storage.append_messages(cid, messages("x")))) == (
        1 if alone else 3
    )
    keyed = 1 if alone else 4 if legacy == "jsonfield" else 3
    assert len(statements(lambda: storage.append_messages(cid, messages("y"), keys=["y"]))) == keyed


def test_a_windowed_load_and_append_takes_no_more(cid: str, alone: bool) -> None:
    loaded = storage.load_state(cid, max_messages=5, max_context_items=3)
    loaded.conversation_history += messages("x")
    assert len(statements(lambda: storage.save_state(cid, loaded))) == (1 if alone else 3)


def test_an_edit_touches_its_own_rows(cid: str) -> None:
    loaded = storage.load_state(cid)
    loaded.conversation_history[3] = message("edited")
    loaded.conversation_history += messages("x")
    sent = statements(lambda: storage.save_state(cid, loaded))
    assert len(sent) <= 6
    assert touched(sent, "conversation_messages") == ["UPDATE", "INSERT"]
    assert touched(sent, "conversation_states") == ["UPDATE"]
    page = list(storage.list_messages(cid, include_superseded=True, limit=1000))
    assert len(page) == 102
    assert [found.message for found in page if found.superseded_in] == messages(3)


def test_changing_items_touches_those_items(cid: str) -> None:
    loaded = storage.load_state(cid)
    for place in range(20):
        loaded.memory_context[place * 10] = {"content": f"new {place}"}
    loaded.conversation_history += messages("x")
    before = item_rows(cid)
    sent = statements(lambda: storage.save_state(cid, loaded))
    assert len(sent) <= 6
    assert touched(sent, "memory_context_items") == ["DELETE", "INSERT"]
    assert len(before & item_rows(cid)) == 180
    assert storage.load_state(cid).memory_context == loaded.memory_context


def item_rows(conversation_id: str) -> set[int]:
    rows = MemoryContextItem.objects.filter(conversation__conversation_id=conversation_id)
    return set(rows.values_list("pk", flat=True))


def test_a_load_takes_one_and_with_items_two(cid: str) -> None:
    assert len(statements(lambda: storage.load_state(cid))) == 2
    assert len(statements(lambda: storage.load_state(cid, 0.5, max_messages=5))) == 2
    bare = str(uuid.uuid4())
    storage.save_state(bare, state("a"))
    assert len(statements(lambda: storage.load_state(bare))) == 1


def test_saving_an_unchanged_state_writes_nothing(cid: str) -> None:
    loaded = storage.load_state(cid)
    sent = statements(lambda: storage.save_state(cid, loaded))
    assert [sql.split(" ", 1)[0] for sql in sent] == ["SELECT"]
