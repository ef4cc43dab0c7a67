"""The work of a run's worker: take a batch, walk over it, and wait if it must."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from django.db import InterfaceError, OperationalError, connections, transaction
from django.db.models import Sum
from django.utils import timezone

from conversations import conf
from conversations.exceptions import StorageUnavailable
from conversations.models import SyncBatch, SyncRun
from conversations.rollout.runs.records import (
    ALIVE,
    State,
    batches,
    ended,
    find_run,
    open_batches,
    runs,
)
from conversations.rollout.runs.tasks import Outcome, Task
from flags.connections import close_if_lost, reconnecting, reopened
from flags.schema import named

logger = logging.getLogger("conversations")

Result = TypeVar("Result")
TaskOf = Callable[[SyncRun], Task[Result]]

# A batch that no worker has held for that long may be taken over.
ABANDONED = timedelta(seconds=5)
# The aim for a batch: a live save of one of its conversations waits no longer.
TARGET_SECONDS = 0.25
LARGEST_BATCH = 5_000
# Above this share of failures, out of at least this many conversations, the run fails.
FAILED_RATIO, FAILED_LEAST = 0.05, 20
# How long a batch waits for a lock. A live save goes first, and PostgreSQL never finds a deadlock
# (after deadlock_timeout, 1 s by default) and cancels the live save.
LOCK_TIMEOUT = "500ms"
# How often a conversation is tried whose store does not answer or whose lock is held, and the rest
# after the first try. The rest grows each time, to 40 s in all.
TRIES, BETWEEN_TRIES = 20, timedelta(seconds=0.2)
# How long a worker waits at most before it does one more batch.
LONGEST_WAIT_SECONDS = 60.0
# How often a wait is noted, with a look whether the run is still running.
NOTE_EVERY_SECONDS = 1.0
# How long a wait lasts before the caller is asked again whether to stop.
MOMENT_SECONDS = 0.1
NOTHING_FREE = (0, 0)


@reconnecting
def work(
    run: int,
    task_of: TaskOf[Result],
    *,
    until: Callable[[], bool] = lambda: False,
    seconds: float | None = None,
    throttle: Callable[[], str] = lambda: "",
) -> Iterator[list[Result]]:
    """Walk over batch after batch until the run is done; yield the results of each.

    Stops between two batches when `until` says so, and after `seconds` (but not before the first
    one). Also stops when the run was paused, cancelled or has failed. Waits between two batches
    while `throttle` returns a reason, for a minute at most. While it waits, it yields empty lists.
    Several workers may do this at once.

    Raises: SyncRefused if there is no such run.
    """
    ends = None if seconds is None else time.monotonic() + seconds
    batch = 0

    def late() -> bool:
        return until() or (ends is not None and time.monotonic() >= ends)

    # At least one batch: otherwise a loop of calls that are too short would never end.
    while not (until() if batch == 0 else late()):
        yield from _throttle(run, throttle, late)
        if until() or (batch > 0 and late()):
            return
        # If the answer was lost, a batch is allotted twice; the first is then taken as abandoned.
        taken = reopened(connections[conf.alias()], lambda: take(run, task_of))
        if taken is None:
            return
        if taken == NOTHING_FREE:
            # Batches that they abandon can be taken over.
            time.sleep(MOMENT_SECONDS)
            yield []
            continue
        done = walk_over(*taken, task_of)
        batch += 1
        if done is not None:
            # Judged before the yield, because the caller may lose the connection in its turn.
            _judge(run)
            yield done


def _throttle(
    run: int, throttle: Callable[[], str], stops: Callable[[], bool]
) -> Iterator[list[Any]]:
    """Wait while there is a reason, and note it in the run's record; yield empty lists."""
    ends = time.monotonic() + LONGEST_WAIT_SECONDS
    noted = ""
    noted_at = float("-inf")
    while (reason := throttle()[:255]) and time.monotonic() < ends and not stops():
        if reason != noted or time.monotonic() - noted_at > NOTE_EVERY_SECONDS:
            rows = runs().filter(pk=run, state=State.RUNNING)
            if not rows.update(waiting=reason, waited_at=timezone.now()):
                # Paused or ended; there is nothing to wait for.
                return
            noted, noted_at = reason, time.monotonic()
        time.sleep(MOMENT_SECONDS)
        yield []
    if noted:
        runs().filter(pk=run, waiting=noted).update(waiting="")


def take(run: int, task_of: TaskOf[Any]) -> tuple[int, int] | None:
    """Allot a batch: an abandoned one, else the next range. Returns: it, its generation.

    Returns: NOTHING_FREE if all are allotted, None if the run is not running (any more).
    """
    with transaction.atomic(using=conf.alias()):
        row = find_run(run, locked=True)
        if row.state != State.RUNNING:
            return None
        batch = _find_abandoned(row)
        if batch is not None:
            batch.generation += 1
            rows = batches(run).filter(pk=batch.pk)
            rows.update(generation=batch.generation, taken_at=timezone.now())
            return batch.pk, batch.generation
        task = task_of(row)
        while True:
            batch = _allot(row, task)
            if batch is not None:
                return batch.pk, batch.generation
            if open_batches(run).exists():
                return NOTHING_FREE
            if not _next_stage(row, task):
                runs().filter(pk=run).update(**ended(State.FINISHED))
                return None


def _next_stage(row: SyncRun, task: Task[Any]) -> bool:
    """Begin the next stage. Returns: whether there is one."""
    sums = batches(row.pk).values_list("stage").annotate(Sum("conversations")).order_by("stage")
    if not task.goes_on(row.stage, dict(sums)):
        return False
    row.stage += 1
    row.cursor = json.dumps(None)
    mark = task.mark(row.stage)
    row.mark = row.mark if mark is None else mark
    row.upper = json.dumps(task.source(row.stage).last_key())
    runs().filter(pk=row.pk).update(
        stage=row.stage, cursor=row.cursor, upper=row.upper, mark=row.mark
    )
    return True


def _find_abandoned(row: SyncRun) -> SyncBatch | None:
    """Return a batch that no worker holds, locked; its worker died, or sleeps."""
    features = connections[conf.alias()].features
    long_ago = timezone.now() - ABANDONED
    waiting = open_batches(row.pk).filter(taken_at__lt=long_ago).order_by("pk")
    if features.has_select_for_update_skip_locked:
        waiting = waiting.select_for_update(skip_locked=True)
    return waiting.first()


def _allot(row: SyncRun, task: Task[Any]) -> SyncBatch | None:
    low, upper = json.loads(row.cursor), json.loads(row.upper)
    if upper is None:
        return None
    high = task.source(row.stage).key_after(low, upper, count=row.batch_size)
    if high is None:
        return None
    row.cursor = json.dumps(high)
    runs().filter(pk=row.pk).update(cursor=row.cursor)
    return batches(row.pk).create(
        run_id=row.pk,
        stage=row.stage,
        low=json.dumps(low),
        high=row.cursor,
        taken_at=timezone.now(),
    )


class _TooMuch(Exception):
    """A batch is more than one transaction may hold locked."""


def walk_over(batch: int, generation: int, task_of: TaskOf[Result]) -> list[Result] | None:
    """Walk over a batch. Returns: its results, None if another worker has taken it over."""
    started = time.monotonic()
    try:
        with transaction.atomic(using=conf.alias()):
            row = _lock_batch(batch, generation)
            if row is None:
                return None
            task = task_of(row.run)
            source = task.source(row.stage)
            ids = source.ids_between(json.loads(row.low), json.loads(row.high))
            share = task.share(ids)
            if share > 1 and len(ids) > 1 and generation < TRIES:
                raise _TooMuch
            done = task.do(ids)
            met = task.met(ids, row.stage, json.loads(row.low))
            outcomes = [task.outcome(one, row.stage) for one in done]
            if any(one.unanswered for one in outcomes):
                if len(outcomes) > 1 or generation < TRIES:
                    raise OperationalError("a store did not answer")
            _record(batch, outcomes, met)
    except _TooMuch:
        _halve(batch, generation, task_of)
        return []
    except (OperationalError, InterfaceError, StorageUnavailable) as error:
        logger.warning("batch %s: %s; halved", batch, named(error))
        close_if_lost(connections[conf.alias()], error)
        _halve(batch, generation, task_of)
        return []
    _tune(row.run_id, seconds=time.monotonic() - started, share=share)
    return list(done)


def _lock_batch(batch: int, generation: int) -> SyncBatch | None:
    """Return a batch, locked, with a short lock timeout; None if another worker has it."""
    rows = SyncBatch.rows.using(conf.alias())
    held = rows.select_for_update()
    connection = connections[conf.alias()]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
        held = rows.select_for_update(of=("self",))
    found = held.select_related("run").filter(pk=batch, generation=generation, finished_at=None)
    return found.first()


def _record(batch: int, outcomes: list[Outcome], met: Collection[str]) -> None:
    """Record each result once; `met`: conversations that an earlier batch has counted."""
    first = [one for one in outcomes if one.conversation_id not in met]
    counts = Counter(one.count for one in first if not one.noted)
    noted = [
        [one.conversation_id, one.count, one.reason, one.reason_class]
        for one in outcomes
        if one.noted
    ]
    SyncBatch.rows.using(conf.alias()).filter(pk=batch).update(
        conversations=len(first),
        counts=json.dumps(counts),
        failed=sum(one.failed for one in first),
        noted=json.dumps(noted),
        finished_at=timezone.now(),
    )


def _halve(batch: int, generation: int, task_of: TaskOf[Any]) -> None:
    """Split a batch that took too long, or that met a lock; both halves can then be taken.

    A batch that cannot be split can be taken again after a moment.
    """
    with transaction.atomic(using=conf.alias()):
        rows = SyncBatch.rows.using(conf.alias())
        row = (
            rows.select_related("run")
            .filter(pk=batch, generation=generation, finished_at=None)
            .first()
        )
        if row is None:
            return
        low, high = json.loads(row.low), json.loads(row.high)
        source = task_of(row.run).source(row.stage)
        size = max(1, row.run.batch_size // 2)
        runs().filter(pk=row.run_id).update(batch_size=size)
        middle = source.key_after(low, high, count=size)
        longest_ago = timezone.now() - ABANDONED - timedelta(seconds=1)
        if middle is None or middle == high:
            rest = min(BETWEEN_TRIES * generation, ABANDONED)
            rows.filter(pk=batch).update(taken_at=timezone.now() - ABANDONED + rest)
            return
        rows.filter(pk=batch).update(high=json.dumps(middle), taken_at=longest_ago)
        rows.create(
            run_id=row.run_id,
            stage=row.stage,
            low=json.dumps(middle),
            high=row.high,
            taken_at=longest_ago,
        )


def _tune(run: int, *, seconds: float, share: float = 0) -> None:
    """Adapt the size of batches to `TARGET_SECONDS`, and to the limit of locks."""
    with transaction.atomic(using=conf.alias()):
        row = find_run(run, locked=True)
        used = max(seconds / TARGET_SECONDS, share, 0.004)
        factor = min(max(1 / used, 0.5), 2)
        size = min(max(int(row.batch_size * factor), 1), LARGEST_BATCH)
        runs().filter(pk=run).update(batch_size=size)


def _judge(run: int) -> None:
    """End a run with too many failures."""
    sums = batches(run).aggregate(all=Sum("conversations"), failed=Sum("failed"))
    done, failed = sums["all"] or 0, sums["failed"] or 0
    if done >= FAILED_LEAST and failed > done * FAILED_RATIO:
        reason = f"{failed} of {done} conversations failed"
        runs().filter(pk=run, state__in=ALIVE).update(**ended(State.FAILED, reason))
