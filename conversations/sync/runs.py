"""A backfill at scale: in batches by primary key that several workers share.

A run walks over the keys that there were when it began. A worker allots itself the next range
(that is committed), and then carries it over in one transaction with the batch's own record, so
a batch is done or it is not. Whoever finds a batch that nobody holds takes it over, with a new
generation: a worker that was paused meanwhile finds another generation, and does nothing.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import IntegrityError, OperationalError, connections, transaction
from django.db.models import Count, Q, QuerySet, Sum
from django.utils import timezone

from conversations import conf
from conversations.exceptions import StorageUnavailable, SyncRefused
from conversations.models import LEGACY_BEHIND, ConversationState, SyncBatch, SyncRun
from conversations.stores.base import between, key_after
from conversations.sync.carrying import Action, Synced, Target, carry, the_legacy_store

logger = logging.getLogger("conversations")

State = SyncRun.State
ALIVE = (State.RUNNING, State.PAUSED)
# A batch that nobody holds for that long is another's to take.
ABANDONED = timedelta(seconds=5)
# What a batch should take: a live save of one of its conversations waits for no longer.
TARGET_SECONDS = 0.25
FIRST_BATCH, LARGEST_BATCH = 50, 5_000
# Beyond this share of failures, of this many at least, something else is wrong.
FAILED_RATIO, FAILED_LEAST = 0.05, 20
OTHERS_WORK = (0, 0)


@dataclass(frozen=True, slots=True)
class Progress:
    """How a run stands. `seconds_left` is None while nothing is known of its speed."""

    run: int
    target: str
    state: str
    conversations: int
    failed: int
    batches: int
    open_batches: int
    share: float | None
    started_at: datetime
    finished_at: datetime | None
    reason: str
    seconds_left: float | None = None


class _Tables:
    """The keys of the tables, where a backfill of legacy walks."""

    def last_key(self) -> Any:
        last = self._rows().order_by("-pk").first()
        return None if last is None else last.pk

    def key_after(self, low: Any, upper: Any, *, count: int) -> Any:
        return key_after(self._rows(), low, upper, count=count)

    def ids_between(self, low: Any, high: Any) -> list[str]:
        rows = between(self._rows().filter(LEGACY_BEHIND), low, high, name="pk")
        return list(rows.order_by("pk").values_list("conversation_id", flat=True))

    def _rows(self) -> QuerySet[ConversationState]:
        return ConversationState.rows.using(conf.alias())


def _source(target: Target) -> Any:
    return _Tables() if target == Target.LEGACY else the_legacy_store()


def begin(to: Target | str) -> int:
    """Begin a run, or join the one that is alive. Returns: its number.

    Raises: ConversationNotFound when there is no legacy store to sync with.
    """
    target = Target(to)
    the_legacy_store(target)
    alive = _runs().filter(target=target, state__in=ALIVE)
    found = alive.first()
    if found is not None:
        return int(found.pk)
    upper = _source(target).last_key()
    try:
        with transaction.atomic(using=conf.alias()):
            made = _runs().create(
                target=target,
                cursor=json.dumps(None),
                upper=json.dumps(upper),
                batch_size=FIRST_BATCH,
                started_at=timezone.now(),
                **({} if upper is not None else _ended(State.FINISHED)),
            )
    except IntegrityError:
        # Somebody else began one at the same moment.
        return int(alive.get().pk)
    return int(made.pk)


def _ended(state: SyncRun.State, reason: str = "") -> dict[str, Any]:
    return {"state": state, "reason": reason[:255], "finished_at": timezone.now()}


def work(
    run: int, *, until: Callable[[], bool] = lambda: False, seconds: float | None = None
) -> Iterator[list[Synced]]:
    """Carry over batch after batch until the run is done; yield what became of each.

    Stops between two batches when `until` says so, after `seconds`, and when the run was paused,
    cancelled or has failed. Several workers may do this at once.

    Raises: SyncRefused when there is no such run.
    """
    ends = None if seconds is None else time.monotonic() + seconds
    while not until() and (ends is None or time.monotonic() < ends):
        taken = _take(run)
        if taken is None:
            return
        if taken == OTHERS_WORK:
            # What they abandon is ours.
            time.sleep(0.1)
            continue
        done = _carry_over(*taken)
        if done is not None:
            yield done
            _judge(run)


def _take(run: int) -> tuple[int, int] | None:
    """Allot a batch: one that was abandoned, else the next range. Returns: it, its generation.

    Returns: OTHERS_WORK when all is allotted, None when the run is not running (any more).
    """
    with transaction.atomic(using=conf.alias()):
        row = _locked_run(run)
        if row.state != State.RUNNING:
            return None
        batch = _abandoned(row)
        if batch is not None:
            batch.generation += 1
            rows = _batches(run).filter(pk=batch.pk)
            rows.update(generation=batch.generation, taken_at=timezone.now())
        else:
            batch = _allot(row)
        if batch is not None:
            return batch.pk, batch.generation
        if _open(run).exists():
            return OTHERS_WORK
        _runs().filter(pk=run).update(**_ended(State.FINISHED))
        return None


def _abandoned(row: SyncRun) -> SyncBatch | None:
    """Return a batch that nobody holds, locked; its worker died, or sleeps."""
    features = connections[conf.alias()].features
    waiting = _open(row.pk).filter(taken_at__lt=timezone.now() - ABANDONED).order_by("pk")
    if features.has_select_for_update_skip_locked:
        waiting = waiting.select_for_update(skip_locked=True)
    return waiting.first()


def _allot(row: SyncRun) -> SyncBatch | None:
    low, upper = json.loads(row.cursor), json.loads(row.upper)
    high = _source(Target(row.target)).key_after(low, upper, count=row.batch_size)
    if high is None:
        return None
    _runs().filter(pk=row.pk).update(cursor=json.dumps(high))
    return _batches(row.pk).create(
        run_id=row.pk, low=json.dumps(low), high=json.dumps(high), taken_at=timezone.now()
    )


def _carry_over(batch: int, generation: int) -> list[Synced] | None:
    """Carry a batch over. Returns: what became of it, None when it is another's by now."""
    legacy = the_legacy_store()
    started = time.monotonic()
    try:
        with transaction.atomic(using=conf.alias()):
            rows = SyncBatch.rows.using(conf.alias())
            held = rows.select_for_update().select_related("run")
            if connections[conf.alias()].vendor == "postgresql":
                held = rows.select_for_update(of=("self",)).select_related("run")
            row = held.filter(pk=batch, generation=generation, finished_at=None).first()
            if row is None:
                return None
            target = Target(row.run.target)
            ids = _source(target).ids_between(json.loads(row.low), json.loads(row.high))
            done = [carry(legacy, target, conversation_id) for conversation_id in ids]
            if len(done) > 1 and any(one.unanswered for one in done):
                raise OperationalError("a store did not answer")
            failures = [
                [one.conversation_id, one.reason] for one in done if one.action == Action.FAILED
            ]
            rows.filter(pk=batch).update(
                conversations=len(done),
                failed=len(failures),
                failures=json.dumps(failures),
                finished_at=timezone.now(),
            )
    except (OperationalError, StorageUnavailable) as error:
        logger.warning("sync batch %s: %s; halved", batch, type(error).__name__)
        _halve(batch, generation)
        return []
    _tune(row.run_id, seconds=time.monotonic() - started)
    return done


def _halve(batch: int, generation: int) -> None:
    """Split a batch that took too long, or that met a lock; both halves are there to be taken."""
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
        size = max(1, row.run.batch_size // 2)
        _runs().filter(pk=row.run_id).update(batch_size=size)
        middle = _source(Target(row.run.target)).key_after(low, high, count=size)
        longest_ago = timezone.now() - ABANDONED - timedelta(seconds=1)
        if middle is None or middle == high:
            rows.filter(pk=batch).update(taken_at=longest_ago)
            return
        rows.filter(pk=batch).update(high=json.dumps(middle), taken_at=longest_ago)
        rows.create(run_id=row.run_id, low=json.dumps(middle), high=row.high, taken_at=longest_ago)


def _tune(run: int, *, seconds: float) -> None:
    """Let the next batches take about `TARGET_SECONDS`."""
    with transaction.atomic(using=conf.alias()):
        row = _locked_run(run)
        factor = min(max(TARGET_SECONDS / max(seconds, 0.001), 0.5), 2)
        size = min(max(int(row.batch_size * factor), 1), LARGEST_BATCH)
        _runs().filter(pk=run).update(batch_size=size)


def _judge(run: int) -> None:
    """Let a run fail of which too much failed."""
    sums = _batches(run).aggregate(all=Sum("conversations"), failed=Sum("failed"))
    done, failed = sums["all"] or 0, sums["failed"] or 0
    if done >= FAILED_LEAST and failed > done * FAILED_RATIO:
        reason = f"{failed} of {done} conversations failed"
        _runs().filter(pk=run, state__in=ALIVE).update(**_ended(State.FAILED, reason))


def pause(run: int) -> None:
    """Let every worker stop behind its present batch. Raises: SyncRefused."""
    _change(run, State.RUNNING, state=State.PAUSED)


def resume(run: int) -> None:
    """Let workers go on. Raises: SyncRefused."""
    _change(run, State.PAUSED, state=State.RUNNING)


def cancel(run: int) -> None:
    """End a run; what it carried over stays. Raises: SyncRefused."""
    _change(run, *ALIVE, **_ended(State.CANCELLED))


def _change(run: int, *expected: SyncRun.State, **values: Any) -> None:
    if not _runs().filter(pk=run, state__in=expected).update(**values):
        raise SyncRefused(f"run {run} is not {' or '.join(expected)}.")


def progress(run: int) -> Progress:
    """Return how a run stands. Raises: SyncRefused when there is none."""
    row = _runs().filter(pk=run).first()
    if row is None:
        raise SyncRefused(f"there is no run {run}.")
    counts = _batches(run).aggregate(
        done=Sum("conversations"),
        failed=Sum("failed"),
        batches=Count("pk"),
        open=Count("pk", filter=Q(finished_at=None)),
    )
    cursor, upper = json.loads(row.cursor), json.loads(row.upper)
    share = None
    if row.state == State.FINISHED:
        share = 1.0
    elif isinstance(cursor, int) and isinstance(upper, int) and upper:
        share = cursor / upper
    return Progress(
        run=int(row.pk),
        target=row.target,
        state=str(row.state),
        conversations=counts["done"] or 0,
        failed=counts["failed"] or 0,
        batches=counts["batches"],
        open_batches=counts["open"],
        share=share,
        started_at=row.started_at,
        finished_at=row.finished_at,
        reason=row.reason,
        seconds_left=_seconds_left(row, cursor, upper),
    )


def latest(*, limit: int = 20) -> list[Progress]:
    """Return how the latest runs stand, newest first."""
    return [progress(pk) for pk in _runs().order_by("-pk").values_list("pk", flat=True)[:limit]]


def _seconds_left(row: SyncRun, cursor: Any, upper: Any) -> float | None:
    """Return how long the rest takes at the speed of the last ten batches."""
    if row.state != State.RUNNING or not (isinstance(cursor, int) and isinstance(upper, int)):
        return None
    recent = list(_batches(row.pk).exclude(finished_at=None).order_by("-finished_at", "-pk")[:10])
    if not recent:
        return None
    lows = [json.loads(batch.low) or 0 for batch in recent]
    walked = max(json.loads(batch.high) for batch in recent) - min(lows)
    until = max(batch.finished_at or batch.taken_at for batch in recent)
    took = (until - min(batch.taken_at for batch in recent)).total_seconds()
    return max(took, 0.001) * (upper - cursor) / walked if walked else None


def failures(run: int) -> Iterator[tuple[str, str]]:
    """Yield the conversations that a run could not carry over, and why."""
    for batch in _batches(run).filter(failed__gt=0).order_by("pk").iterator():
        yield from (tuple(pair) for pair in json.loads(batch.failures))


def _locked_run(run: int) -> SyncRun:
    row = _runs().select_for_update().filter(pk=run).first()
    if row is None:
        raise SyncRefused(f"there is no run {run}.")
    return row


def _runs() -> QuerySet[SyncRun]:
    return SyncRun.rows.using(conf.alias()).all()


def _batches(run: int) -> QuerySet[SyncBatch]:
    return SyncBatch.rows.using(conf.alias()).filter(run_id=run)


def _open(run: int) -> QuerySet[SyncBatch]:
    return _batches(run).filter(finished_at=None)
