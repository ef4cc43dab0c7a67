"""Workers of a run beside live traffic, other workers and sudden ends: nothing lost or doubled.

Stepped in both orders: the first reader under the lock goes first, and the other one waits.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from conversations.models import (
    ConversationMessage,
    ConversationState,
    ConversationTombstone,
    SyncBatch,
    SyncRun,
)
from conversations.rollout.runs import records, working
from conversations.rollout.sync import runs
from conversations.rollout.verification import verify
from conversations.storage import append_messages, delete_conversation, load_state, save_state
from conversations.stores.registry import configured_store
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryContextItem, MemoryMetadata
from tests.faults.injection import inserts_messages
from tests.flags.test_fence import until_true
from tests.machine.interleaving import interleaved
from tests.machine.oldcode import OldSession
from tests.support.factories import messages, state, texts
from tests.support.legacy_schema import old_save
from tests.support.processes import Job, result_of, start
from tests.support.scale import examples

pytestmark = pytest.mark.django_db(transaction=True)

SETTINGS = {"LEGACY": "memory_chunks"}


@pytest.fixture(autouse=True)
def _chunks(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.CONVERSATIONS = SETTINGS
    monkeypatch.setattr(records, "FIRST_BATCH", 3)


def in_legacy(count: int) -> list[str]:
    names = [f"c{number:03}" for number in range(count)]
    for name in names:
        old_save(connection, name, None, state(name, "b").to_dict())
    return names


def everything_is_in_order() -> bool:
    return all(found.in_order for found in verify())


# Nothing to do


def writes(queries: CaptureQueriesContext) -> list[str]:
    """Return the statements that wrote conversations or legacy: all but the run's own records."""
    return [
        query["sql"]
        for query in queries
        if query["sql"].lstrip().startswith(("INSERT", "UPDATE", "DELETE", "WITH", "COPY"))
        and '"sync_' not in query["sql"]
        # How SQLite's write lock is taken.
        and not query["sql"].endswith("WHERE 0")
    ]


@pytest.mark.parametrize("mapping", ["memory_chunks", OldSession.settings])
@pytest.mark.parametrize("target", ["tables", "legacy"])
def test_the_second_and_the_third_run_write_nothing(
    settings: Any, target: str, mapping: Any
) -> None:
    settings.CONVERSATIONS = {"LEGACY": mapping}
    with forced_phase(Phase.LEGACY):
        for name in "abcdef":
            save_state(name, state("x"))
    list(runs.work(runs.begin("tables")))
    with forced_phase(Phase.NEW_ONLY):
        for name in "abc":
            append_messages(name, messages("y"))
        save_state("new", state("z"))
    counted = []
    for _ in range(3):
        with CaptureQueriesContext(connection) as queries:
            list(runs.work(runs.begin(target)))
        counted.append(len(writes(queries)))
    # The run to the tables before has left nothing to do for the first.
    assert counted == [counted[0], 0, 0]
    assert (counted[0] > 0) is (target == "legacy")


# Live saves win over the sync, and deletions over everything


def append(name: str, phase: Phase) -> None:
    with forced_phase(phase):
        append_messages(name, messages("live"))


def delete(name: str, phase: Phase) -> None:
    with forced_phase(phase):
        assert delete_conversation(name)


def one_batch(run: int) -> None:
    next(runs.work(run))


def finish(run: int) -> None:
    list(runs.work(run))
    assert runs.progress(run).state == "finished"
    assert runs.progress(run).failed == 0


LIVE = [Phase.DUAL_WRITE, Phase.NEW_READS, Phase.NEW_ONLY]


@pytest.mark.parametrize("phase", LIVE)
@pytest.mark.parametrize("sync_first", [True, False])
def test_a_live_save_wins_in_both_orders(phase: Phase, sync_first: bool) -> None:
    names = in_legacy(6)
    run = runs.begin("tables")
    pair: list[Callable[[], None]] = [lambda: one_batch(run), lambda: append("c001", phase)]
    interleaved(*(pair if sync_first else pair[::-1]))
    finish(run)
    with forced_phase(phase):
        assert texts(load_state("c001")) == ["c001", "b", "live"]
    assert ConversationMessage.rows.count() == 2 * len(names) + 1
    assert everything_is_in_order()


@pytest.mark.parametrize("phase", LIVE)
@pytest.mark.parametrize("sync_first", [True, False])
def test_a_deletion_wins_in_both_orders(phase: Phase, sync_first: bool) -> None:
    names = in_legacy(6)
    run = runs.begin("tables")
    pair: list[Callable[[], None]] = [lambda: one_batch(run), lambda: delete("c001", phase)]
    interleaved(*(pair if sync_first else pair[::-1]))
    finish(run)
    left = set(ConversationState.rows.values_list("conversation_id", flat=True))
    assert left == set(names) - {"c001"}
    legacy = configured_store()
    assert legacy is not None
    assert legacy.owner("c001") == (False, None)
    assert everything_is_in_order()


@pytest.mark.parametrize("sync_first", [True, False])
def test_a_live_save_wins_on_the_way_back(sync_first: bool) -> None:
    in_legacy(6)
    finish(runs.begin("tables"))
    with forced_phase(Phase.NEW_ONLY):
        for name in ("c000", "c001", "c004"):
            append_messages(name, messages("ahead"))
    run = runs.begin("legacy")
    pair: list[Callable[[], None]] = [
        lambda: one_batch(run),
        lambda: append("c001", Phase.NEW_ONLY),
    ]
    interleaved(*(pair if sync_first else pair[::-1]))
    finish(run)
    with forced_phase(Phase.NEW_ONLY):
        assert texts(load_state("c001")) == ["c001", "b", "ahead", "live"]
    finish(runs.begin("legacy"))
    with forced_phase(Phase.LEGACY):
        assert texts(load_state("c001")) == ["c001", "b", "ahead", "live"]
    assert everything_is_in_order()


@pytest.mark.parametrize("live_first", [True, False])
def test_two_workers_a_live_save_and_a_deletion_are_stepped(live_first: bool) -> None:
    """One worker has read, then the other one has, and in each a third one interferes."""
    names = in_legacy(9)
    run = runs.begin("tables")

    def one() -> Any:
        return interleaved(lambda: one_batch(run), lambda: append("c001", Phase.DUAL_WRITE))

    def other() -> Any:
        pair: list[Callable[[], None]] = [
            lambda: one_batch(run),
            lambda: delete("c004", Phase.DUAL_WRITE),
        ]
        return interleaved(*(pair[::-1] if live_first else pair))

    interleaved(one, other)
    finish(run)
    left = set(ConversationState.rows.values_list("conversation_id", flat=True))
    assert left == set(names) - {"c004"}
    with forced_phase(Phase.DUAL_WRITE):
        assert texts(load_state("c001")) == ["c001", "b", "live"]
    assert ConversationMessage.rows.count() == 2 * 8 + 1
    assert everything_is_in_order()


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has one writer at a time")
def test_a_batch_does_not_wait_long_for_a_live_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it a failure: what was locked is carried over as soon as it is free."""
    monkeypatch.setattr(working, "LOCK_TIMEOUT", "20ms")
    names = in_legacy(6)
    finish(runs.begin("tables"))
    for name in names:
        old_save(connection, name, None, state(name, "b", "c").to_dict())
    run = runs.begin("tables")
    read, over = threading.Event(), threading.Event()

    def live() -> None:
        try:
            with transaction.atomic():
                append("c001", Phase.NEW_ONLY)
                read.set()
                # A longer wait was one for the lock.
                over.wait(60)
        finally:
            connections.close_all()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        assert read.wait(60)
        done: list[str] = []
        worker = runs.work(run)
        while len(set(done)) < 5:
            done += [one.conversation_id for one in next(worker)]
    finally:
        over.set()
        thread.join()
    assert "c001" not in done
    finish(run)
    assert texts(load_state("c001")) == ["c001", "b", "c", "live"]
    assert everything_is_in_order()


# Zombies


def stopped_between(run: int, began: str) -> int:
    """Take a batch, be stopped before it is walked over, and go on when continued."""
    whole = working.walk_over
    stops = [True]

    def walk_over(*args: Any) -> Any:
        if stops:
            stops.clear()
            Path(began).touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return whole(*args)

    working.walk_over = walk_over
    return sum(len(done) for done in runs.work(run))


def stopped_inside(run: int, began: str) -> int:
    """Be stopped in the middle of a batch's transaction, and go on when continued."""
    stops = [True]

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        if stops and inserts_messages(sql):
            stops.clear()
            Path(began).touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return result

    with connection.execute_wrapper(wrapper):
        return sum(len(done) for done in runs.work(run))


@contextmanager
def stopped(function: str, run: int, folder: Path) -> Iterator[Any]:
    """Have a worker in another process that is stopped; it never outlives the test."""
    began = folder / "began"
    job = Job(f"tests.rollout.test_sync_workers:{function}", {"run": run, "began": str(began)})
    worker = start(job)
    try:
        until_true(began.exists)
        until_true(lambda: Path(f"/proc/{worker.pid}/stat").read_text().split()[2] == "T")
        yield worker
    finally:
        if worker.poll() is None:
            worker.send_signal(signal.SIGCONT)
            worker.kill()
            worker.wait()


def once_each(run: int, count: int) -> bool:
    """Whether a run carried everything over, once."""
    return (
        runs.progress(run).conversations == count
        and ConversationMessage.rows.count() == 2 * count
        and everything_is_in_order()
    )


def test_a_worker_stopped_before_its_batch_is_taken_over_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between taking a batch and walking over it, a worker holds nothing."""
    monkeypatch.setattr(working, "ABANDONED", timedelta(0))
    in_legacy(6)
    run = runs.begin("tables")
    with stopped("stopped_between", run, tmp_path) as worker:
        finish(run)
        assert once_each(run, 6)
        worker.send_signal(signal.SIGCONT)
        assert result_of(worker) == 0
    assert SyncBatch.rows.filter(generation=2).count() == 1
    assert once_each(run, 6)


@pytest.mark.skipif(connection.vendor != "postgresql", reason="a stopped writer holds up SQLite")
def test_a_worker_stopped_inside_its_batch_keeps_it_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the batch's lock, which the others skip, for however long it sleeps."""
    monkeypatch.setattr(working, "ABANDONED", timedelta(0))
    in_legacy(6)
    run = runs.begin("tables")
    with stopped("stopped_inside", run, tmp_path) as worker:
        assert sum(len(done) for done in runs.work(run, seconds=0.5)) == 3
        assert runs.progress(run).state == "running"
        worker.send_signal(signal.SIGCONT)
        assert result_of(worker) == 3
    finish(run)
    assert not SyncBatch.rows.filter(generation=2).exists()
    assert once_each(run, 6)


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has no server")
def test_a_worker_whose_session_was_ended_while_it_slept_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As idle_in_transaction_session_timeout, or a failover, does."""
    monkeypatch.setattr(working, "ABANDONED", timedelta(0))
    in_legacy(6)
    run = runs.begin("tables")
    with stopped("stopped_inside", run, tmp_path) as worker:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE state = 'idle in transaction' AND pid <> pg_backend_pid()"
                " AND datname = current_database()"
            )
        finish(run)
        assert once_each(run, 6)
        worker.send_signal(signal.SIGCONT)
        assert result_of(worker) == 0
    assert once_each(run, 6)


# Sudden ends


class Victim:
    """A process that kills itself before, or behind, one of its statements."""

    def __init__(self, statement: int, *, before: bool) -> None:
        self.statement, self.before = statement, before
        self.seen = 0

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        self.seen += 1
        if self.before and self.seen == self.statement:
            os.kill(os.getpid(), signal.SIGKILL)
        result = execute(sql, params, many, context)
        if self.seen == self.statement:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def cleared() -> None:
    for model in (
        MemoryMetadata,
        MemoryChunk,
        ConversationMessage,
        MemoryContextItem,
        ConversationState,
        ConversationTombstone,
        SyncBatch,
        SyncRun,
    ):
        model._base_manager.all()._raw_delete("default")


def digests() -> dict[str, tuple[bytes, bytes]]:
    rows = ConversationState.rows.values_list("conversation_id", "messages_digest", "state_digest")
    return {name: (bytes(first), bytes(second)) for name, first, second in rows}


def killed_while_working(run: int, victim: Victim) -> bool:
    """Work in a child process. Returns: whether it was killed before it came to its end."""
    connections.close_all()
    child = os.fork()
    if child == 0:
        with connection.execute_wrapper(victim):
            list(runs.work(run))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def kill_again_and_again(count: int, conversations: int = 8) -> list[str]:
    """Kill a worker at a random statement, `count` times, and let another one go on.

    Runs in a process of its own, which has one thread and may fork. Returns: what went wrong.
    """
    wrong: list[str] = []
    killed = 0
    records.FIRST_BATCH = 3
    working.ABANDONED = timedelta(0)
    with override_settings(CONVERSATIONS=SETTINGS):
        in_legacy(conversations)
        counter = Victim(0, before=False)
        with connection.execute_wrapper(counter):
            list(runs.work(runs.begin("tables")))
        whole = digests()
        for seed in range(count):
            chance = random.Random(seed)
            cleared()
            in_legacy(conversations)
            run = runs.begin("tables")
            victim = Victim(chance.randint(1, counter.seen), before=chance.random() < 0.5)
            killed += killed_while_working(run, victim)
            list(runs.work(run))
            found = runs.progress(run)
            if (found.state, found.conversations, found.failed) != ("finished", conversations, 0):
                wrong.append(f"seed {seed}: {found}")
            if digests() != whole:
                wrong.append(f"seed {seed}: other digests")
            if not everything_is_in_order():
                wrong.append(f"seed {seed}: not in order")
    if killed < count * 0.8:
        wrong.append(f"{killed} of {count} were killed")
    return wrong


@pytest.mark.long
def test_a_worker_killed_at_any_statement_loses_and_doubles_nothing() -> None:
    """Fifty kills in a full run; each one leaves a batch that is done, or is not."""
    count = max(5, examples(50))
    job = Job("tests.rollout.test_sync_workers:kill_again_and_again", {"count": count})
    assert result_of(start(job)) == []
