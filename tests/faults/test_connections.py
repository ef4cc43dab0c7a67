"""A connection that dies between the legs or around COMMIT: no silent loss, no doubled repeat."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import Error, connection, transaction

from conversations.exceptions import StorageUnavailable
from conversations.storage import append_messages, load_state, save_state
from flags.phases import Phase
from flags.switches import forced_phase
from tests.faults.cases import BEFORE, Conversation, sound
from tests.faults.proxy import Lose, proxied
from tests.support.factories import message, messages, texts
from tests.support.scale import examples
from tests.support.scratch import plain_connection

pytestmark = pytest.mark.django_db(transaction=True)

# Together a full run loses a hundred connections: thirty twice, fifteen twice, five twice.
DEATHS = examples(30)
# More than any operation here has.
STATEMENTS = 25


@pytest.fixture(autouse=True)
def _with_connections_to_kill(transactional_db: None) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no connection that could be lost")


@pytest.fixture
def executioner() -> Iterator[Any]:
    """A session of its own that ends others."""
    other = plain_connection(connection)
    other.autocommit = True
    yield other
    other.close()


@contextmanager
def terminated(executioner: Any, *, at: int) -> Iterator[list[str]]:
    """Let the server end our session before the `at`-th statement. Gives that statement."""
    hit: list[str] = []
    seen = 0

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == at:
            pid = connection.connection.info.backend_pid
            executioner.execute("SELECT pg_terminate_backend(%s)", [pid])
            gone = "SELECT NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid = %s)"
            while not executioner.execute(gone, [pid]).fetchone()[0]:
                pass
            hit.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(wrapper):
        yield hit


def save(made: Conversation) -> Any:
    if texts(made.held)[-1:] != ["new"]:
        made.held.conversation_history.append(message("new"))
        made.held.step_count += 1
    return save_state(made.id, made.held)


def append(made: Conversation) -> Any:
    return append_messages(made.id, messages("new"), keys=["key"])


def prepared(chance: random.Random) -> Conversation:
    made = Conversation()
    chance.choice([before for name, before in BEFORE.items() if name != "nowhere"])(made)
    made.held = load_state(made.id)
    return made


def afterwards(
    made: Conversation, call: Callable[..., Any], *, there: bool | None, what: str
) -> None:
    """Assert that the text is there, or not, or either (None), and that a repeat adds nothing."""
    found = Counter(texts(load_state(made.id)))
    new = found.pop("new", 0)
    assert found == Counter(made.acknowledged), what
    assert new in ((0, 1) if there is None else (int(there),)), what
    sound([made.id], what=what)
    call(made)
    made.expect(also=["new"], what=f"{what}, and repeated")


@pytest.mark.long
def test_a_save_whose_connection_dies_is_acknowledged_only_if_it_is_there(
    executioner: Any, record_property: Any
) -> None:
    seed = random.randrange(2**32)
    record_property("seed", seed)
    chance = random.Random(seed)
    killed = 0
    while killed < DEATHS:
        phase, call, at = (
            chance.choice(list(Phase)),
            chance.choice([save, append]),
            chance.randrange(1, STATEMENTS),
        )
        what = f"seed {seed}: {phase.label}, {call.__name__}, ended before statement {at}"
        with forced_phase(phase):
            made = prepared(chance)
            there = None
            try:
                with terminated(executioner, at=at) as hit:
                    there = call(made)["committed"]
            except StorageUnavailable:
                pass
            assert there is not None or hit, what
            killed += bool(hit)
            afterwards(made, call, there=there, what=what)


@pytest.mark.parametrize("lose", [Lose.COMMIT, Lose.REPLY], ids=lambda lose: lose.name)
def test_a_save_whose_commit_or_its_reply_is_lost_is_an_error_and_can_be_repeated(
    lose: Lose, record_property: Any
) -> None:
    seed = random.randrange(2**32)
    record_property("seed", seed)
    chance = random.Random(seed)
    with proxied() as proxy:
        proxy.alone = True
        for _ in range(max(1, DEATHS // 2)):
            phase, call = chance.choice(list(Phase)), chance.choice([save, append])
            what = f"seed {seed}: {phase.label}, {call.__name__}, {lose} was lost"
            with forced_phase(phase):
                made = prepared(chance)
                proxy.lose = lose
                with pytest.raises(StorageUnavailable, match="may have been carried out"):
                    call(made)
                assert proxy.lose == Lose.NOTHING
                afterwards(made, call, there=lose == Lose.REPLY, what=what)


def in_a_hosts_transaction(made: Conversation, call: Callable[..., Any]) -> tuple[bool, bool]:
    """Write a row of the caller's, and ours, and catch what we raise.

    Returns: whether the caller's block ended without an exception, and whether ours succeeded.
    """
    done = False
    try:
        with transaction.atomic():
            get_user_model().objects.create(username=made.id)
            try:
                call(made)
                done = True
            except StorageUnavailable:
                pass
    except Error:
        return False, done
    return True, done


def die_in_a_hosts_transaction(executioner: Any, seed: int, *, deaths: int = DEATHS) -> None:
    """Lose the connection in the caller's transaction; see whether they would notice."""
    chance = random.Random(seed)
    killed = 0
    while killed < deaths:
        phase, call, at = (
            chance.choice(list(Phase)),
            chance.choice([save, append]),
            chance.randrange(1, STATEMENTS),
        )
        what = f"seed {seed}: {phase.label}, {call.__name__}, ended before statement {at}"
        with forced_phase(phase):
            made = prepared(chance)
            with terminated(executioner, at=at) as hit:
                ended, done = in_a_hosts_transaction(made, call)
            killed += bool(hit)
            kept = get_user_model().objects.filter(username=made.id).exists()
            assert kept == ended, what
            assert not ended or done, what
            afterwards(made, call, there=ended, what=what)


@pytest.mark.long
def test_a_hosts_transaction_never_ends_silently_without_its_rows(
    executioner: Any, record_property: Any
) -> None:
    seed = random.randrange(2**32)
    record_property("seed", seed)
    die_in_a_hosts_transaction(executioner, seed)


@pytest.mark.parametrize("lose", [Lose.COMMIT, Lose.REPLY], ids=lambda lose: lose.name)
def test_a_hosts_own_commit_that_is_lost_is_an_error_and_the_save_can_be_repeated(
    lose: Lose, record_property: Any
) -> None:
    seed = random.randrange(2**32)
    record_property("seed", seed)
    chance = random.Random(seed)
    with proxied() as proxy:
        for _ in range(max(1, DEATHS // 6)):
            phase, call = chance.choice(list(Phase)), chance.choice([save, append])
            what = f"seed {seed}: {phase.label}, {call.__name__}, {lose} was lost"
            with forced_phase(phase):
                made = prepared(chance)
                proxy.lose = lose
                assert in_a_hosts_transaction(made, call) == (False, True), what
                kept = get_user_model().objects.filter(username=made.id).exists()
                assert kept == (lose == Lose.REPLY), what
                afterwards(made, call, there=kept, what=what)
