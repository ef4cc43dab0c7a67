"""A replica that is behind, stopped or current: every load gives what was acknowledged."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from conversations.checks import replicas
from conversations.exceptions import ConversationNotFound
from conversations.rollout.runs import records, throttle, working
from conversations.rollout.sync import runs
from conversations.storage import (
    append_messages,
    delete_conversation,
    list_messages,
    load_state,
    redact_message,
    remove_messages,
    replace_message,
    save_state,
)
from flags import breaker
from flags.breaker import REST_SECONDS, Breaker
from flags.phases import Phase
from flags.switches import forced_phase
from tests.flags.test_breaker import Clock
from tests.flags.test_fence import until_true
from tests.replication.pair import PRIMARY, REPLICA, SETTINGS, Pair, streaming_pair
from tests.routing import test_replicas
from tests.support.factories import messages, state, texts
from tests.support.legacy_schema import old_save
from tests.support.processes import Job, result_of, start
from tests.support.scale import examples

# Most of the time goes into making the two servers.
pytestmark = pytest.mark.long

SECRET = "the secret"
ITEMS = [{"content": "low", "relevance_score": 0.1}, {"content": "high", "relevance_score": 0.9}]
LEGACY = {**SETTINGS, "LEGACY": "memory_chunks", "REQUIRE_OWNER": False}
# How many statements a load of messages takes: on the primary, and on the replica.
SERVED, NOT_SERVED = (1, 1), (2, 1)


@pytest.fixture(scope="module")
def _pair(django_db_blocker: Any) -> Iterator[Pair]:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no replicas")
    with django_db_blocker.unblock(), streaming_pair() as made:
        yield made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(breaker, "replicas", Breaker(made))
    return made


@pytest.fixture(autouse=True)
def pair(_pair: Pair, settings: Any, clock: Clock) -> Iterator[Pair]:
    """A pair whose replica replays."""
    settings.CONVERSATIONS = LEGACY
    with forced_phase(Phase.NEW_ONLY):
        yield _pair
    _pair.resume()
    for alias in (PRIMARY, REPLICA):
        connections[alias].close()


@pytest.fixture
def cid() -> str:
    return f"c{random.getrandbits(64):x}"


def asked(call: Callable[[], Any]) -> tuple[int, int]:
    """Return how many statements about conversations went to the primary and to the replica."""
    return test_replicas.asked(call, primary=PRIMARY)


def listed(conversation_id: str, **how: Any) -> list[Any]:
    return [each.message["content"] for each in list_messages(conversation_id, **how)]


def append_elsewhere(conversation_id: str, text: str) -> int:
    """Append a message. Runs in another process, whose only database is the primary."""
    with forced_phase(Phase.NEW_ONLY):
        return append_messages(conversation_id, messages(text))["revision"]


def test_a_save_is_read_back_at_once_while_the_replica_is_behind(pair: Pair, cid: str) -> None:
    save_state("old", state("before", memory_context=ITEMS))
    save_state(cid, state("a", memory_context=ITEMS))
    pair.pause()
    append_messages(cid, messages("b"))
    assert asked(lambda: load_state(cid)) == (3, 1)
    assert asked(lambda: list_messages(cid)) == NOT_SERVED
    assert (texts(load_state(cid)), listed(cid)) == (["a", "b"], ["a", "b"])
    save_state(f"{cid}-new", state("new"))
    assert texts(load_state(f"{cid}-new")) == ["new"]
    # What was not written lately is current on the replica.
    assert asked(lambda: load_state("old")) == (1, 2)
    assert asked(lambda: list_messages("old")) == SERVED
    assert (texts(load_state("old")), load_state("old").memory_context) == (["before"], ITEMS)
    pair.resume()
    assert asked(lambda: load_state(cid)) == (1, 2)
    assert asked(lambda: list_messages(cid)) == SERVED
    assert (texts(load_state(cid)), listed(cid)) == (["a", "b"], ["a", "b"])
    assert asked(lambda: load_state(f"{cid}-new")) == SERVED


def test_the_checks_find_nothing_wrong_with_the_pair(settings: Any) -> None:
    assert replicas.check_replica() == []
    assert replicas.check_replication(databases=[PRIMARY]) == []
    # Another server.
    settings.CONVERSATIONS = {**LEGACY, "REPLICA": "default"}
    (warning,) = replicas.check_replication(databases=[PRIMARY])
    assert warning.id == "conversations.W005"


def test_an_acknowledged_write_of_another_process_is_read_here(pair: Pair, cid: str) -> None:
    save_state(cid, state("a"))
    pair.pause()
    arguments = {"conversation_id": cid, "text": "b"}
    job = Job("tests.replication.test_pair:append_elsewhere", arguments)
    revision = result_of(start(job, url=pair.primary.get_uri()))
    loaded = load_state(cid)
    assert (texts(loaded), loaded.load_info.revision) == (["a", "b"], revision)
    assert listed(cid, after=1) == ["b"]


def test_a_state_loaded_from_the_replica_is_saved_on_the_primary(pair: Pair, cid: str) -> None:
    save_state(cid, state("a", "b"))
    pair.catch_up()
    held = load_state(cid, max_messages=1)
    pair.pause()
    append_messages(cid, messages("x"))
    held.conversation_history += messages("c")
    save_state(cid, held)
    assert texts(load_state(cid)) == ["a", "b", "x", "c"]


def test_inside_a_transaction_the_primary_answers(pair: Pair, cid: str) -> None:
    save_state(cid, state("a"))
    pair.catch_up()
    with transaction.atomic(using=PRIMARY):
        append_messages(cid, messages("b"))
        assert asked(lambda: load_state(cid)) == (1, 0)
        assert (texts(load_state(cid)), listed(cid)) == (["a", "b"], ["a", "b"])
        transaction.set_rollback(True, using=PRIMARY)
    assert texts(load_state(cid)) == ["a"]
    assert asked(lambda: load_state(cid)) == SERVED


def test_a_deleted_conversation_is_never_read_from_a_replica_that_has_it(
    pair: Pair, cid: str
) -> None:
    save_state(cid, state(SECRET))
    pair.pause()
    assert delete_conversation(cid)
    assert asked(lambda: load_state(cid))[1] == 0
    assert texts(load_state(cid)) == []
    with pytest.raises(ConversationNotFound):
        list_messages(cid)


def test_a_redacted_text_is_never_read_from_a_replica_that_has_it(pair: Pair, cid: str) -> None:
    save_state(cid, state("a", SECRET))
    append_messages(cid, messages(SECRET), keys=["k"])
    remove_messages(cid, "k")
    pair.pause()
    for reference in (2, "k"):
        redact_message(cid, reference, replacement="[gone]")
    assert texts(load_state(cid)) == ["a", "[gone]"]
    assert texts(load_state(cid, max_messages=1)) == ["[gone]"]
    assert listed(cid) == ["a", "[gone]"]
    assert listed(cid, after=1) == listed(cid, roles=["user"], after=1) == ["[gone]"]
    assert listed(cid, include_superseded=True) == ["a", "[gone]", "[gone]"]
    pair.resume()
    assert asked(lambda: load_state(cid)) == SERVED
    assert texts(load_state(cid)) == ["a", "[gone]"]


def test_equal_content_of_another_revision_is_not_taken_from_the_replica(
    pair: Pair, cid: str
) -> None:
    """Its messages have other sequences, by which a caller edits and removes them."""
    save_state(cid, state("a", "b", memory_context=ITEMS))
    pair.pause()
    remove_messages(cid, last=1)
    append_messages(cid, messages("b"))
    assert [each.sequence for each in list_messages(cid)] == [1, 3]
    held = load_state(cid)
    held.conversation_history[1] = messages("edited")[0]
    save_state(cid, held)
    assert [(each.sequence, each.message["content"]) for each in list_messages(cid)] == [
        (1, "a"),
        (3, "edited"),
    ]


def test_a_blob_of_old_code_is_taken_in_while_the_replica_is_behind(pair: Pair, cid: str) -> None:
    with forced_phase(Phase.NEW_READS):
        save_state(cid, state("a"))
        pair.catch_up()
        assert asked(lambda: load_state(cid)) == SERVED
        pair.pause()
        old_save(connections[PRIMARY], cid, None, state("a", "from old code").to_dict())
        assert texts(load_state(cid)) == ["a", "from old code"]


def test_while_the_replica_is_stopped_the_primary_answers(
    pair: Pair, cid: str, clock: Clock
) -> None:
    save_state(cid, state("a"))
    pair.catch_up()
    assert asked(lambda: load_state(cid)) == SERVED
    pair.replica.stop()
    try:
        assert (texts(load_state(cid)), listed(cid)) == (["a"], ["a"])
        assert breaker.replicas.opened() == ["replica"]
        assert asked(lambda: load_state(cid)) == (1, 0)
        clock.now += REST_SECONDS
        assert texts(load_state(cid)) == ["a"]
    finally:
        pair.replica.ensure_postgres_running()
    assert asked(lambda: load_state(cid)) == (1, 0)
    clock.now += REST_SECONDS
    pair.catch_up()
    assert asked(lambda: load_state(cid)) == SERVED
    assert breaker.replicas.opened() == []


def test_a_replica_that_was_started_anew_is_asked_at_once(pair: Pair, cid: str) -> None:
    save_state(cid, state("a"))
    pair.catch_up()
    load_state(cid)
    pair.replica.stop()
    pair.replica.ensure_postgres_running()
    assert asked(lambda: load_state(cid))[0] == 1
    assert breaker.replicas.opened() == []


def test_a_load_returns_acknowledged_writes_at_any_lag_of_the_replica(
    pair: Pair, record_property: Any
) -> None:
    seed = random.randrange(2**32)
    record_property("seed", seed)
    chance = random.Random(seed)
    known: dict[str, list[str]] = {}
    served, paused = 0, False
    for step in range(examples(300)):
        if step % 10 == 0:
            paused = not paused
            (pair.pause if paused else pair.resume)()
        cid = f"{seed}-{chance.randrange(12)}"
        texts_of = known.setdefault(cid, [])
        text = f"{step}"
        kind = chance.choice(["append", "append", "replace", "remove", "redact", "read", "read"])
        if kind == "append" or not texts_of:
            append_messages(cid, messages(text), create=True)
            texts_of.append(text)
        elif kind in ("replace", "redact"):
            place = chance.randrange(len(texts_of))
            sequence = list_messages(cid, limit=1000).messages[place].sequence
            if kind == "replace":
                replace_message(cid, sequence, messages(text)[0])
            else:
                redact_message(cid, sequence, replacement=text)
            texts_of[place] = text
        elif kind == "remove":
            remove_messages(cid, last=1)
            texts_of.pop()
        looked = chance.choice([cid, *known])
        served += asked(lambda: load_state(looked)) == SERVED  # noqa: B023
        assert texts(load_state(looked)) == known[looked], (seed, step)
        assert listed(looked, limit=1000) == known[looked], (seed, step)
    assert served > 0


def test_a_sync_waits_for_a_replica_that_is_behind(
    pair: Pair, settings: Any, monkeypatch: pytest.MonkeyPatch, cid: str
) -> None:
    monkeypatch.setattr(throttle, "LOOK_EVERY_SECONDS", 0)
    monkeypatch.setattr(working, "MOMENT_SECONDS", 0.001)
    settings.CONVERSATIONS = {**LEGACY, "SYNC_MAX_REPLICA_LAG": timedelta(milliseconds=200)}
    for number in range(20):
        old_save(connections[PRIMARY], f"{cid}-{number}", None, state("a").to_dict())
    why = throttle.throttle(timezone.now())
    pair.pause()
    assert why() == ""
    save_state(f"{cid}-other", state("b"))
    until_true(lambda: why() == "a replica lags 0 s behind")
    pair.resume()
    until_true(lambda: why() == "")
    monkeypatch.setattr(records, "FIRST_BATCH", 1)
    monkeypatch.setattr(working, "LARGEST_BATCH", 1)
    run = runs.begin("tables")
    worker = runs.work(run)
    assert len(next(worker)) == 1
    pair.pause()
    done = 1
    while found := next(worker):
        done += len(found)
        # All twenty would take less time than a replica may lag behind.
        time.sleep(0.05)
    assert runs.progress(run).waiting.startswith("a replica lags ")
    pair.resume()
    done += sum(len(found) for found in worker)
    assert done >= 20
    assert texts(load_state(f"{cid}-19")) == ["a"]
