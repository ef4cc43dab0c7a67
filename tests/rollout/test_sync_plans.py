"""What a sync would do, and what it will take, is said without doing it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from conversations.exceptions import ConversationNotFound
from conversations.models import ConversationMessage, ConversationState
from conversations.rollout.sync import Action, estimating, planning, sync
from conversations.rollout.sync.bulk import carry_all
from conversations.rollout.sync.estimating import estimate
from conversations.rollout.sync.one import the_legacy_store
from conversations.rollout.sync.planning import plan
from conversations.storage import append_messages, delete_conversation, save_state
from conversations.stores.registry import configured_store
from flags.phases import Phase
from flags.switches import forced_phase
from tests.machine.oldcode import OldChunks, OldSession
from tests.support.factories import messages, state

pytestmark = pytest.mark.django_db(transaction=True)

# The other tests' processes write to the same log: what they wrote meanwhile only adds.
TRIES = 3
OLD_CODE = {"memory_chunks": OldChunks(), "session": OldSession()}


@pytest.fixture(params=OLD_CODE, autouse=True)
def old(request: pytest.FixtureRequest, settings: Any) -> Any:
    found: Any = OLD_CODE[request.param]
    settings.CONVERSATIONS = {"LEGACY": found.settings}
    return found


def a_bit_of_everything(old: Any) -> None:
    for name in ("alone 1", "alone 2"):
        old.write(name, state("x").to_dict())
    with forced_phase(Phase.DUAL_WRITE):
        for name in ("equal 1", "equal 2", "equal 3", "merged", "ahead", "behind", "gone"):
            save_state(name, state(name))
        delete_conversation("gone")
    old.write("gone", state("late").to_dict())
    old.write("merged", state("merged", "more").to_dict())
    with forced_phase(Phase.LEGACY):
        append_messages("ahead", messages("in legacy"))
    with forced_phase(Phase.NEW_ONLY):
        append_messages("behind", messages("in the tables"))


PLANS = {
    "tables": {
        Action.TAKEN_IN: 2,
        Action.ERASED: 1,
        Action.MERGED: 1,
        Action.CAUGHT_UP: 1,
        Action.UNCHANGED: 4,
    },
    "legacy": {
        Action.UNCHANGED: 6,
        Action.ERASED: 1,
        Action.MERGED: 1,
        Action.WRITTEN_TO_LEGACY: 1,
    },
}


@pytest.mark.parametrize("target", PLANS)
def test_a_plan_is_what_the_sync_then_does(
    old: Any, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "BATCH", 2)
    a_bit_of_everything(old)
    assert plan(target) == PLANS[target]
    assert Counter(one.action for one in sync(target)) == PLANS[target]


@pytest.mark.parametrize("target", PLANS)
def test_a_plan_reads_and_locks_nothing(old: Any, target: str) -> None:
    a_bit_of_everything(old)
    with CaptureQueriesContext(connection) as queries:
        plan(target)
    for query in queries:
        assert query["sql"].lstrip().startswith(("SELECT ", "WITH RECURSIVE names"))
        assert not any(word in query["sql"] for word in ("INSERT", "UPDATE", "DELETE"))


def test_a_plan_says_how_far_it_is(old: Any) -> None:
    a_bit_of_everything(old)
    numbers: list[int] = []
    plan("tables", progress=numbers.append)
    assert numbers == list(range(1, 10))


def test_without_legacy_there_is_nothing_to_plan(settings: Any) -> None:
    settings.CONVERSATIONS = {}
    for call in (plan, estimate):
        with pytest.raises(ConversationNotFound):
            call("tables")


# Estimates


def everything() -> list[Any]:
    legacy = configured_store()
    assert legacy is not None
    return [
        list(ConversationState.rows.order_by("pk").values()),
        list(ConversationMessage.rows.order_by("pk").values()),
        legacy.blobs(),
    ]


@pytest.mark.parametrize("target", PLANS)
def test_an_estimate_leaves_everything_as_it_was(old: Any, target: str) -> None:
    a_bit_of_everything(old)
    before = everything()
    found = estimate(target)
    assert everything() == before
    pending = 5 if target == "tables" else 2
    assert (found.conversations, found.sampled) == (pending, pending)
    assert found.legacy_bytes == before[2].bytes > 100


def test_where_nothing_is_to_be_done_nothing_is_measured(old: Any) -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("x"))
    found = estimate("tables")
    assert (found.conversations, found.sampled, found.disk_bytes) == (0, 0, 0)
    assert found.legacy_bytes > 0


def test_a_sample_stands_for_the_rest(old: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a factor of two of what the sync then takes; pages and full pages are whole."""
    monkeypatch.setattr(estimating, "TOGETHER", 10)
    count = 60
    # The first pages of tables and indexes are there the next time: beside much, they say little.
    for number in range(count):
        old.write(f"c{number}", state(*(f"message {n} " * 100 for n in range(10))).to_dict())
    found = [estimate("tables", sample=30) for _ in range(TRIES)]
    assert (found[0].conversations, found[0].sampled) == (count, 30)
    assert found[0].seconds > 0
    took = []
    names = [f"c{number}" for number in range(count)]
    for _ in range(TRIES):
        with transaction.atomic():
            before = estimating._cost(estimating._TABLES)
            # As the batches of a run do.
            for start in range(0, count, 10):
                carry_all(the_legacy_store(), names[start : start + 10])
            assert ConversationState.rows.count() == count
            took.append(estimating._cost(estimating._TABLES) - before)
            transaction.set_rollback(True)
    # Later tries find free space.
    assert took[0].disk / 2 < found[0].disk_bytes < took[0].disk * 2
    wal = min(cost.wal for cost in took)
    assert wal / 3 < min(each.wal_bytes for each in found) < wal * 3


def test_an_estimate_takes_what_the_run_takes(old: Any) -> None:
    """It carries its sample over as the run does: at once, not one by one."""
    for number in range(40):
        old.write(f"c{number}", state("x").to_dict())
    with CaptureQueriesContext(connection) as queries:
        assert estimate("tables").sampled == 40
    assert len(queries) <= 40
