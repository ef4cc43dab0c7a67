"""The baseline does what the store does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from benchmarks.baseline import Refused, bare_baseline, baseline_here, prepared
from benchmarks.contenders import FRESH, add, api, begun
from benchmarks.counting import counted
from benchmarks.rounds import Run, undone
from benchmarks.rows import messages_of, row_of
from conversations.content.codec import MESSAGE_COLUMNS, encode_message
from conversations.content.digests import digest_of
from conversations.models import ConversationMessage
from conversations.rollout.verification import verify
from conversations.storage import load_state, save_state
from tests.benchmarks.said import MESSAGES
from tests.benchmarks.tables import rows_of

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def floors() -> Iterator[dict[str, Any]]:
    with bare_baseline() as bare, prepared():
        yield {"floor": baseline_here(), "bare floor": bare}


@pytest.mark.parametrize("name", ["floor", "bare floor"])
def test_the_floor_writes_the_rows_that_the_store_writes(
    run: Run, floors: dict[str, Any], name: str
) -> None:
    for key in ("a", "b"):
        save_state(key, begun(MESSAGES[:2]), run.owner)
    loaded = load_state("a", user_id=run.owner)
    add(loaded, MESSAGES[2:])
    save_state("a", loaded, run.owner)
    floor = floors[name]
    loaded, held = floor.load("b", run.owner)
    add(loaded, MESSAGES[2:])
    floor.write("b", run.owner, MESSAGES[2:], held, loaded)
    assert rows_of("b") == rows_of("a")
    loaded = load_state("a", user_id=run.owner)
    assert loaded == load_state("b", user_id=run.owner) == floor.load("b", run.owner)[0]
    assert json.dumps(loaded.conversation_history) == json.dumps(MESSAGES)
    assert [found.kinds for found in verify(["b"])] == [found.kinds for found in verify(["a"])]


@pytest.mark.parametrize("seen", [True, False])
def test_the_floor_appends_as_the_store_does(run: Run, floors: dict[str, Any], seen: bool) -> None:
    for key in ("a", "b"):
        save_state(key, begun(MESSAGES[:2]), run.owner)
    tables, floor = api(FRESH), floors["floor"]
    _, held = floor.load("b", run.owner)
    for chunk in (MESSAGES[2:5], MESSAGES[5:]):
        tables.append("a", run.owner, chunk, None)
        floor.write("b", run.owner, chunk, held if seen else None)
    assert rows_of("b") == rows_of("a")


def test_the_floor_refuses_anothers_conversation_and_an_old_revision(
    run: Run, floors: dict[str, Any]
) -> None:
    save_state("a", begun(MESSAGES[:2]), run.owner)
    floor = floors["floor"]
    loaded, held = floor.load("a", run.owner)
    before = rows_of("a")
    for call in (
        lambda: floor.load("a", run.owner + 1),
        lambda: floor.write("a", run.owner + 1, MESSAGES[:1], held),
        lambda: floor.write("a", run.owner + 1, MESSAGES[:1]),
    ):
        with pytest.raises(Refused):
            call()
    assert rows_of("a") == before
    floor.write("a", run.owner, MESSAGES[:1], floor.load("a", run.owner)[1])
    with pytest.raises(Refused):
        floor.write("a", run.owner, MESSAGES[:1], held, loaded)
    assert ConversationMessage.objects.filter(conversation__conversation_id="a").count() == 3


@pytest.mark.parametrize("message", MESSAGES, ids=range(len(MESSAGES)))
def test_columns_written_by_hand_equal_those_of_the_codec(message: Any) -> None:
    now = timezone.now()
    columns = encode_message(message, now=now)
    expected = [columns[name] for name in MESSAGE_COLUMNS]
    # Twice: the first time its shape is learnt.
    for _ in range(2):
        row = row_of(message, now=now)
        assert row == (*expected, digest_of(message), columns["timestamp"])
        assert json.dumps(messages_of([row[:-2]])) == json.dumps([message])


def test_the_floor_takes_one_statement_and_leaves_the_connection_as_it_was(run: Run) -> None:
    save_state("a", begun(MESSAGES[:2]), run.owner)
    floor = baseline_here()
    postgresql = connection.vendor == "postgresql"
    threshold = connection.connection.prepare_threshold if postgresql else None
    with prepared():
        loaded, held = floor.load("a", run.owner)
        with counted() as load:
            floor.load("a", run.owner)
        # Twice: the first time it is prepared.
        for _ in range(2):
            with counted() as save:
                floor.write("a", run.owner, MESSAGES[2:4], held, loaded)
    # Of SQLite: BEGIN, UPDATE, an INSERT a message, COMMIT.
    assert (load["statements"], save["statements"]) == ((1, 1) if postgresql else (2, 5))
    if postgresql:
        assert load["round_trips"] == save["round_trips"] == 1
        assert load["received_bytes"] > save["received_bytes"] > 0
        assert connection.connection.prepare_threshold == threshold
        with pytest.raises(ZeroDivisionError), prepared():
            raise ZeroDivisionError
        assert connection.connection.prepare_threshold == threshold


def test_an_undone_write_leaves_no_trace(run: Run) -> None:
    save_state("a", begun(MESSAGES[:2]), run.owner)
    before = rows_of("a")
    with pytest.raises(ZeroDivisionError), undone("a"):
        loaded = load_state("a", user_id=run.owner)
        add(loaded, MESSAGES[2:4])
        save_state("a", loaded, run.owner)
        assert rows_of("a") != before
        raise ZeroDivisionError
    assert rows_of("a") == before
