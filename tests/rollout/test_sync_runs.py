"""A backfill at scale: every conversation once, although workers die, sleep and interfere."""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from conversations.exceptions import ConversationNotFound, SyncRefused
from conversations.models import ConversationState, SyncBatch, SyncRun
from conversations.rollout.runs import records, working
from conversations.rollout.sync import Action, runs
from conversations.rollout.verification import verify
from conversations.storage import append_messages, delete_conversation, load_state, save_state
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk
from tests.faults.injection import failing, inserts_messages
from tests.machine.oldcode import OldSession
from tests.support.factories import messages, state, texts
from tests.support.legacy_schema import old_save
from tests.support.processes import Job, result_of, start

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _chunks(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    monkeypatch.setattr(records, "FIRST_BATCH", 3)


def in_legacy(count: int, *, gap: int = 0) -> list[str]:
    """Let old code write conversations, with gaps between their keys."""
    names = [f"c{number:03}" for number in range(count)]
    for name in names:
        chunk = old_save(connection, name, None, state(name).to_dict())
        if gap:
            # Blobs of other kinds, and rows that went, leave keys that hold nothing.
            for _ in range(gap):
                MemoryChunk.objects.create(content="summary", created_at=timezone.now())
            MemoryChunk.objects.filter(pk=chunk + 1).delete()
    return names


def actions(run: int) -> dict[str, Action]:
    return {one.conversation_id: one.action for done in runs.work(run) for one in done}


def in_tables() -> set[str]:
    return set(ConversationState.rows.values_list("conversation_id", flat=True))


def everything_is_in_order() -> bool:
    return all(found.in_order for found in verify())


@pytest.mark.parametrize("gap", [0, 2])
@pytest.mark.parametrize("count", [0, 1, 3, 10])
def test_a_run_carries_over_everything_once(count: int, gap: int) -> None:
    names = in_legacy(count, gap=gap)
    run = runs.begin("tables")
    assert actions(run) == dict.fromkeys(names, Action.TAKEN_IN)
    found = runs.progress(run)
    assert (found.state, found.conversations, found.failed) == ("finished", count, 0)
    assert (found.share, found.open_batches) == (1.0, 0)
    assert in_tables() == set(names)
    assert everything_is_in_order()


def test_a_conversation_of_many_blobs_is_carried_over_once() -> None:
    long_ago = timezone.now() - timedelta(hours=2)
    for turn in range(8):
        for name in "ab":
            old_save(connection, name, None, state(*"xyz"[:turn]).to_dict(), long_ago)
    done = [one for batch in runs.work(runs.begin("tables")) for one in batch]
    assert [one.action for one in done] == [Action.TAKEN_IN] * 2


@pytest.mark.parametrize("settled", [True, False])
def test_a_conversation_of_many_blobs_is_counted_once(settled: bool) -> None:
    """What may be in flight is met again with each of its blobs: 2,206 visits of 373."""
    at = timezone.now() - timedelta(hours=2) if settled else None
    for turn in range(8):
        for name in "ab":
            old_save(connection, name, None, state(*"xyz"[:turn]).to_dict(), at)
    run = runs.begin("tables")
    visits = sum(len(batch) for batch in runs.work(run))
    assert (visits == 2) is settled
    assert runs.progress(run).conversations == 2
    assert dict(records.tally(run).counts) == {"taken in": 2}


def test_a_blob_that_may_have_been_in_flight_hides_no_later_one() -> None:
    """Ids commit out of order: the range of a blob may be walked over before it is there."""
    first, second = (old_save(connection, "c", None, state("x").to_dict()) for _ in range(2))
    run = runs.begin("tables")
    source = runs._task_of(SyncRun.rows.get(pk=run)).source(0)
    assert source.ids_between(first, second) == ["c"]
    long_ago = timezone.now() - timedelta(hours=2)
    MemoryChunk.objects.filter(pk=first).update(created_at=long_ago)
    assert source.ids_between(first, second) == []
    assert source.ids_between(None, first) == ["c"]


@pytest.mark.parametrize("mapping", ["memory_chunks", OldSession.settings])
def test_it_goes_both_ways_and_the_second_time_writes_nothing(settings: Any, mapping: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": mapping}
    with forced_phase(Phase.LEGACY):
        for name in "abcde":
            save_state(name, state("x"))
    first = runs.begin("tables")
    assert set(actions(first).values()) == {Action.TAKEN_IN}
    with forced_phase(Phase.NEW_ONLY):
        for name in "abc":
            append_messages(name, messages("y"))
        save_state("f", state("new"))
    back = runs.begin("legacy")
    assert actions(back) == dict.fromkeys("abcf", Action.WRITTEN_TO_LEGACY)
    before = list(ConversationState.rows.order_by("pk").values_list("revision", "legacy_revision"))
    for target in ("tables", "legacy") * 2:
        assert set(actions(runs.begin(target)).values()) <= {Action.UNCHANGED}
    after = list(ConversationState.rows.order_by("pk").values_list("revision", "legacy_revision"))
    assert before == after
    with forced_phase(Phase.LEGACY):
        assert texts(load_state("a")) == ["x", "y"]
        assert texts(load_state("f")) == ["new"]


def test_a_run_skips_conversations_written_after_its_start() -> None:
    """Or a run behind endless inserts would never end; live saves carry their own."""
    in_legacy(4)
    run = runs.begin("tables")
    worker = runs.work(run)
    next(worker)
    for number in range(20):
        old_save(connection, f"late{number}", None, state("x").to_dict())
    assert sum(len(done) for done in worker) <= 3
    assert runs.progress(run).state == "finished"


def test_there_is_one_run_of_a_kind_and_all_workers_join_it() -> None:
    in_legacy(4)
    run = runs.begin("tables")
    assert runs.begin("tables") == run
    assert runs.begin("legacy") != run
    list(runs.work(run))
    assert runs.begin("tables") != run


def test_without_legacy_there_is_nothing_to_run(settings: Any) -> None:
    settings.CONVERSATIONS = {}
    with pytest.raises(ConversationNotFound):
        runs.begin("tables")
    assert not SyncRun.objects.exists()


# Stopping


def test_a_run_is_paused_resumed_and_cancelled() -> None:
    in_legacy(10)
    run = runs.begin("tables")
    worker = runs.work(run)
    next(worker)
    runs.pause(run)
    assert list(worker) == []
    assert list(runs.work(run)) == []
    with pytest.raises(SyncRefused, match="is not running"):
        runs.pause(run)
    runs.resume(run)
    next(runs.work(run))
    runs.cancel(run)
    assert list(runs.work(run)) == []
    assert runs.progress(run).state == "cancelled"
    for change in (runs.pause, runs.resume, runs.cancel):
        with pytest.raises(SyncRefused):
            change(run)
    assert 3 <= len(in_tables()) < 10
    actions(runs.begin("tables"))
    assert len(in_tables()) == 10


def test_a_worker_stops_when_it_is_told_and_after_its_time() -> None:
    in_legacy(10)
    run = runs.begin("tables")
    assert list(runs.work(run, until=lambda: True)) == []
    assert [len(done) for done in runs.work(run, seconds=0)] == [3]
    assert runs.progress(run).state == "running"


def test_a_loop_of_calls_that_are_too_short_comes_to_its_end() -> None:
    in_legacy(10)
    run = runs.begin("tables")
    calls = 0
    while runs.progress(run).state == "running":
        list(runs.work(run, seconds=0))
        calls += 1
        assert calls < 20
    assert len(in_tables()) == 10


@pytest.mark.parametrize("call", [runs.progress, runs.pause, lambda run: list(runs.work(run))])
def test_a_run_that_does_not_exist_is_refused(call: Any) -> None:
    with pytest.raises(SyncRefused):
        call(4711)


# What fails


def test_an_unreadable_conversation_is_named_with_the_reason_and_delays_no_other() -> None:
    names = in_legacy(30)
    MemoryChunk.objects.filter(metadata__value="c007").update(content="{broken")
    run = runs.begin("tables")
    assert actions(run)["c007"] == Action.FAILED
    ((name, reason),) = runs.failures(run)
    assert name == "c007"
    assert "holds no state" in reason
    assert runs.progress(run).state == "finished"
    assert in_tables() == set(names) - {"c007"}


def test_a_run_of_which_too_much_fails_is_ended() -> None:
    in_legacy(60)
    MemoryChunk.objects.update(content="{broken")
    run = runs.begin("tables")
    list(runs.work(run))
    found = runs.progress(run)
    assert (found.state, found.reason) == (
        "failed",
        f"{found.conversations} of {found.conversations} conversations failed",
    )
    assert 20 <= found.conversations < 60


def test_a_batch_that_meets_a_store_that_does_not_answer_is_halved_and_repeated() -> None:
    names = in_legacy(9)
    run = runs.begin("tables")
    with failing(inserts_messages, times=3):
        assert sum(len(done) for done in runs.work(run)) == 9
    assert in_tables() == set(names)
    assert everything_is_in_order()
    assert runs.progress(run).failed == 0


def test_one_that_never_answers_is_a_failure_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "TRIES", 3)
    in_legacy(3)
    run = runs.begin("tables")
    with failing(inserts_messages):
        assert set(actions(run).values()) == {Action.FAILED}
    assert runs.progress(run).failed == 3
    assert in_tables() == set()


# Workers


def test_an_abandoned_batch_is_taken_over_and_its_first_worker_is_refused() -> None:
    in_legacy(3)
    run = runs.begin("tables")
    taken = working.take(run, runs._task_of)
    assert taken not in (None, working.NOTHING_FREE)
    assert working.take(run, runs._task_of) == working.NOTHING_FREE
    SyncBatch.rows.update(taken_at=timezone.now() - timedelta(minutes=1))
    again = working.take(run, runs._task_of)
    assert again == (taken[0], 2)
    # The first worker wakes up, before and after the other has done its work.
    assert working.walk_over(*taken, runs._task_of) is None
    assert len(working.walk_over(*again, runs._task_of) or []) == 3
    assert working.walk_over(*taken, runs._task_of) is None
    assert working.walk_over(*again, runs._task_of) is None
    assert runs.progress(run).conversations == 3


def test_batches_grow_while_they_are_quick_and_shrink_while_they_are_slow() -> None:
    in_legacy(1)
    run = runs.begin("tables")

    def size() -> int:
        return int(SyncRun.rows.get().batch_size)

    working._tune(run, seconds=0.01)
    assert size() == 6
    working._tune(run, seconds=60)
    assert size() == 3
    for _ in range(5):
        working._tune(run, seconds=60)
    assert size() == 1
    for _ in range(20):
        working._tune(run, seconds=0)
    assert size() == working.LARGEST_BATCH


def test_progress_says_how_much_is_left() -> None:
    in_legacy(30)
    run = runs.begin("tables")
    assert runs.progress(run).seconds_left is None
    worker = runs.work(run)
    for _ in range(3):
        next(worker)
    found = runs.progress(run)
    assert found.share is not None
    assert 0 < found.share < 1
    assert found.seconds_left is not None
    assert found.seconds_left > 0


# What is stuck


def test_a_run_of_which_nothing_is_finished_for_long_is_stuck() -> None:
    in_legacy(10)
    run = runs.begin("tables")
    assert not runs.progress(run).stuck
    long_ago = timezone.now() - timedelta(minutes=5)
    SyncRun.rows.update(started_at=long_ago)
    found = runs.progress(run)
    assert (found.stuck, found.stuck_since, found.stuck_batch) == (True, long_ago, None)
    taken = working.take(run, runs._task_of)
    assert taken is not None
    assert runs.progress(run).stuck_batch == taken[0]
    working.walk_over(*taken, runs._task_of)
    assert not runs.progress(run).stuck
    SyncBatch.rows.update(finished_at=long_ago)
    assert runs.progress(run).stuck
    runs.pause(run)
    assert not runs.progress(run).stuck
    runs.resume(run)
    assert not runs.progress(run).stuck
    SyncRun.rows.update(resumed_at=long_ago)
    assert runs.progress(run).stuck
    list(runs.work(run))
    assert not runs.progress(run).stuck


def test_progress_says_how_fast_it_is() -> None:
    in_legacy(9)
    run = runs.begin("tables")
    next(runs.work(run))
    ends = timezone.now()
    SyncBatch.rows.update(taken_at=ends - timedelta(seconds=2), finished_at=ends)
    found = runs.progress(run)
    assert found.rate == 1.5
    assert found.share is not None
    assert found.seconds_left == pytest.approx(2 * (1 - found.share) / found.share)


def test_batches_that_met_nothing_say_nothing_of_the_speed() -> None:
    """A verification of what legacy alone holds said "0/s" for minutes."""
    in_legacy(9)
    run = runs.begin("tables")
    next(runs.work(run))
    SyncBatch.rows.update(conversations=0)
    assert runs.progress(run).rate is None


def test_the_speed_is_that_of_the_present_walk() -> None:
    """One over the tables says nothing of how fast legacy is walked over behind it."""
    in_legacy(9)
    run = runs.begin("tables")
    next(runs.work(run))
    assert runs.progress(run).rate is not None
    SyncRun.rows.update(stage=1)
    found = runs.progress(run)
    assert (found.rate, found.seconds_left) == (None, None)


def labour(run: int, began: str) -> int:
    """Work on a run in another process. Returns: how many conversations it carried over."""
    Path(began).touch()
    return sum(len(done) for done in runs.work(run))


def crowd(run: int, folder: Path, count: int) -> list[Any]:
    return [
        start(
            Job(
                "tests.rollout.test_sync_runs:labour",
                {"run": run, "began": str(folder / f"b{number}")},
            )
        )
        for number in range(count)
    ]


def test_two_workers_share_a_run_while_others_save_and_delete(tmp_path: Path) -> None:
    names = in_legacy(120)
    run = runs.begin("tables")
    workers = crowd(run, tmp_path, 2)
    chance = random.Random(1)
    with forced_phase(Phase.DUAL_WRITE):
        for name in chance.sample(names, 20):
            append_messages(name, messages("live"))
        gone = chance.sample(names, 10)
        for name in gone:
            delete_conversation(name)
    assert sum(result_of(worker) for worker in workers) >= 100
    assert runs.progress(run).state == "finished"
    assert in_tables() == set(names) - set(gone)
    assert everything_is_in_order()
