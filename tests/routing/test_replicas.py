"""Reads from a replica, on an alias that is never behind: what is asked of it, and what is not.

On a real pair, whose replica is behind and stops: tests/replication.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction

from conversations.storage import (
    append_messages,
    get_conversation_timestamp,
    list_conversations,
    list_messages,
    load_state,
    save_state,
)
from conversations.stores.normalized import load
from flags import breaker, metrics, reporter
from flags.breaker import REST_SECONDS, Breaker
from flags.health import report
from flags.phases import Phase
from flags.switches import forced_phase
from tests.faults.injection import mentions_either
from tests.flags.test_breaker import Clock
from tests.flags.test_metrics import monitoring
from tests.flags.test_switches import set_rows
from tests.support.factories import messages, state, texts

REPLICA = "replica"
pytestmark = pytest.mark.django_db(transaction=True, databases=["default", REPLICA])

# What makes of the statements on a replica those on one that is behind.
EARLIER = {
    # As a load asks for it on SQLite, on PostgreSQL, and as a list does.
    "|| conversation_states.revision": "|| (conversation_states.revision - 1)",
    ", conversation_states.revision,": ", conversation_states.revision - 1,",
    "replayed.revision = ": "-1 = ",
}
ITEMS = [{"content": "low", "relevance_score": 0.1}, {"content": "high", "relevance_score": 0.9}]


@pytest.fixture(scope="module", autouse=True)
def _alias(django_db_setup: None) -> Iterator[None]:
    """Give the same database a second alias; a mirror is not emptied a second time."""
    own = connection.settings_dict
    connections.databases[REPLICA] = {**own, "TEST": {**own["TEST"], "MIRROR": "default"}}
    yield
    del connections[REPLICA]
    del connections.databases[REPLICA]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(breaker, "replicas", Breaker(made))
    return made


@pytest.fixture(autouse=True)
def _replica(settings: Any, clock: Clock) -> Iterator[None]:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks", "REPLICA": REPLICA}
    with forced_phase(Phase.NEW_ONLY):
        yield
    connections[REPLICA].close()


def asked(call: Callable[[], Any], primary: str = "default") -> tuple[int, int]:
    """Return how many statements about conversations went to the primary and to the replica."""
    counts = dict.fromkeys((primary, REPLICA), 0)

    def count(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        counts[context["connection"].alias] += mentions_either(sql)
        return execute(sql, params, many, context)

    # Unlike CaptureQueriesContext, this opens no connection.
    with connections[primary].execute_wrapper(count), connections[REPLICA].execute_wrapper(count):
        call()
    return counts[primary], counts[REPLICA]


@contextmanager
def dead(error: type[Exception] = OperationalError) -> Iterator[list[str]]:
    """Let every statement on the replica fail."""
    failed: list[str] = []

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        failed.append(sql)
        raise error("injected: the replica is down")

    with connections[REPLICA].execute_wrapper(wrapper):
        yield failed


@contextmanager
def behind() -> Iterator[None]:
    """Let the replica hold an earlier revision of everything, as one that lags does."""

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        for here, there in EARLIER.items():
            sql = sql.replace(here, there)
        return execute(sql, params, many, context)

    with connections[REPLICA].execute_wrapper(wrapper):
        yield


def test_the_row_comes_from_the_primary_and_the_rest_from_the_replica() -> None:
    save_state("c", state("a", "b", memory_context=ITEMS, step_count=3))
    assert asked(lambda: load_state("c")) == (1, 2)
    assert asked(lambda: load_state("c", 0.5, max_messages=1)) == (1, 2)
    assert asked(lambda: list_messages("c")) == (1, 1)
    assert asked(lambda: list_messages("c", after=1, roles=["user"])) == (1, 1)
    found = load_state("c", 0.5, max_messages=1)
    assert (texts(found), found.memory_context, found.step_count) == (["b"], ITEMS[1:], 3)
    assert [each.message for each in list_messages("c")] == messages("a", "b")
    bare = save_state("bare", state("a"))
    assert asked(lambda: load_state("bare")) == (1, 1)
    assert load_state("bare").load_info.revision == bare["revision"]


def test_without_the_setting_nothing_is_asked_of_it(settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    save_state("c", state("a", memory_context=ITEMS))
    assert asked(lambda: load_state("c")) == (2, 0)
    assert asked(lambda: list_messages("c")) == (2, 0)


def test_a_loaded_state_is_saved_as_any_other() -> None:
    save_state("c", state("a", "b", memory_context=ITEMS))
    held = load_state("c", 0.5, max_messages=1)
    held.conversation_history += messages("c")
    append_messages("c", messages("x"))
    save_state("c", held)
    assert texts(load_state("c")) == ["a", "b", "x", "c"]
    assert load_state("c").memory_context == ITEMS


def test_writes_lists_and_superseded_versions_ask_the_primary_alone() -> None:
    save_state("c", state("a"))
    held = load_state("c")
    held.conversation_history += messages("b")
    calls: list[Callable[[], Any]] = [
        lambda: save_state("c", held),
        lambda: append_messages("c", messages("c")),
        lambda: list_messages("c", include_superseded=True),
        lambda: list_conversations(None),
        lambda: get_conversation_timestamp(None, "c"),
        lambda: load_state("missing"),
    ]
    for call in calls:
        primary, replica = asked(call)
        assert primary > 0
        assert replica == 0


def test_a_poll_for_the_next_message_does_not_ask_the_replica() -> None:
    save_state("c", state("a", "b"))
    assert asked(lambda: list_messages("c", after=2)) == (2, 0)
    assert asked(lambda: list_messages("c", after=1)) == (1, 1)


def test_nothing_found_is_asked_of_the_primary_again() -> None:
    """A replica that is behind gives nothing, as one does where nothing is."""
    save_state("c", state("a", memory_context=ITEMS))
    assert asked(lambda: list_messages("c", roles=["tool"])) == (2, 1)
    assert asked(lambda: load_state("c", 0.95)) == (3, 2)
    assert load_state("c", 0.95).memory_context == []


@pytest.mark.parametrize("alias", ["default", REPLICA])
def test_inside_a_transaction_of_the_caller_the_primary_answers(alias: str) -> None:
    save_state("c", state("a"))
    with transaction.atomic(using=alias):
        assert asked(lambda: load_state("c")) == (1, 0)
        assert asked(lambda: list_messages("c")) == (2, 0)


def test_a_replica_that_is_behind_leaves_the_answer_to_the_primary() -> None:
    save_state("c", state("a", memory_context=ITEMS))
    with behind():
        assert asked(lambda: load_state("c")) == (3, 1)
        assert texts(load_state("c")) == ["a"]
        assert asked(lambda: list_messages("c")) == (2, 1)
    # It is asked again at once: other conversations may be older.
    assert asked(lambda: load_state("c")) == (1, 2)


def test_a_replica_that_falls_behind_between_two_statements_is_noticed() -> None:
    save_state("c", state("a", memory_context=ITEMS))
    for selection in ({}, {"context_quality_threshold": 0.5}, {"max_context_items": 1}):
        sent: list[str] = []

        def wrapper(
            execute: Any, sql: str, params: Any, many: bool, context: Any, sent: list[str] = sent
        ) -> Any:
            sent.append(sql)
            if "memory_context_items" in sql:
                sql = sql.replace("replayed.revision = ", "-1 = ")
            return execute(sql, params, many, context)

        with connections[REPLICA].execute_wrapper(wrapper):
            found = load_state("c", **selection)  # type: ignore[arg-type]
        assert len(sent) == 2
        assert found.memory_context == (ITEMS if not selection else ITEMS[1:])


def test_a_dead_replica_is_left_alone_and_tried_again_after_a_while(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    save_state("c", state("never in a log"))
    with dead() as failed, caplog.at_level(logging.WARNING, logger="conversations"):
        assert texts(load_state("c")) == ["never in a log"]
        assert list_messages("c").messages[0].message["content"] == "never in a log"
        assert len(failed) == 1
        clock.now += REST_SECONDS
        load_state("c")
        load_state("c")
        assert len(failed) == 2
        clock.now += REST_SECONDS - 1
        assert asked(lambda: load_state("c")) == (1, 0)
    said = [record.getMessage() for record in caplog.records if record.name == "conversations"]
    assert said == ["conversation c: the replica did not answer (OperationalError)"] * 2
    assert [each.about for each in report().reasons if each.slug == "reads_moved"] == ["replica"]
    clock.now += 1
    assert asked(lambda: load_state("c")) == (1, 1)
    assert asked(lambda: load_state("c")) == (1, 1)
    assert breaker.replicas.opened() == []


def test_a_dead_replica_is_no_store_that_is_given_up(settings: Any) -> None:
    settings.CONVERSATIONS = {**settings.CONVERSATIONS, "READ_BREAKER": True}
    save_state("c", state("a"))
    with dead():
        load_state("c")
    assert (breaker.replicas.opened(), breaker.reads.opened()) == (["replica"], [])
    assert asked(lambda: load_state("c")) == (1, 0)


def test_an_error_of_ours_is_not_taken_for_the_replicas() -> None:
    save_state("c", state("a"))
    with dead(ValueError), pytest.raises(ValueError, match="injected"):
        load_state("c")


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has no server to lose")
def test_a_connection_that_was_lost_while_idle_is_opened_anew() -> None:
    save_state("c", state("a"))
    load_state("c")
    connections[REPLICA].connection.close()
    # On the replica twice: the first one failed.
    assert asked(lambda: load_state("c")) == (1, 2)
    assert breaker.replicas.opened() == []


def test_reads_of_the_replica_and_their_fallbacks_are_counted(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(reporter, "ensure", lambda: None)
    save_state("c", state("a"))
    set_rows(Phase.NEW_ONLY)
    monitoring(on=True)
    metrics.forget()
    load_state("c")
    with behind():
        list_messages("c")
    with dead():
        load_state("c")
        load_state("c")
    measured = metrics._take()
    replica = measured["read", "replica"]
    assert (replica.count, replica.mismatches, replica.fallbacks, replica.errors) == (4, 1, 2, 0)
    load = measured["load", "tables"]
    assert (load.count, load.fallbacks, load.errors) == (3, 0, 0)


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has no server to reach")
def test_a_replica_that_says_nothing_is_waited_for_no_longer_than_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It takes the connection and never answers: without a bound this test would hang."""
    save_state("c", state("a"))
    connections[REPLICA].close()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        host, port = mute.getsockname()
        elsewhere = {**connection.settings_dict, "HOST": host, "PORT": str(port)}
        monkeypatch.setattr(connections[REPLICA], "settings_dict", elsewhere)
        assert texts(load_state("c")) == ["a"]
    assert breaker.replicas.opened() == ["replica"]


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite's savepoints commit there")
def test_a_statement_that_fails_costs_nothing_of_a_transaction_without_autocommit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_state("c", state("a"))
    whole = load._statement

    def failing(vendor: str, **named: Any) -> str:
        return f"{whole(vendor, **named)} AND 1 / (revision - revision) > 0"

    monkeypatch.setattr(load, "_statement", failing)
    transaction.set_autocommit(False)
    try:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE conversation_states SET user_input = 'mine'")
        # From the primary, where they see what they wrote.
        assert asked(lambda: load_state("c"))[1] == 0
        assert load_state("c").user_input == "mine"
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
