"""The progress of a run: how far it is, how fast, why it waits, and whether it is stuck."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, Max, Q, Sum
from django.utils import timezone

from conversations.models import SyncBatch, SyncRun
from conversations.rollout.runs.records import (
    State,
    batches,
    find_run,
    open_batches,
    runs,
    seconds_between,
)
from conversations.rollout.runs.working import TARGET_SECONDS
from flags.connections import reconnecting

# The speed is measured on this many of the latest finished batches.
RECENT = 10
# A verification walks over the tables, and over conversations only legacy holds; then again.
FIRST_WALKS = 2
# A running run is stuck if it finishes no batch for this many times the target.
STUCK_TARGETS = 80
# A waiting worker says so more often than that.
WAIT_IS_OVER = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run.

    `share` is the share of the present walk's keys that are done, None if keys are no numbers.
    `conversations` were met so far, each counted once. A verification looks again at those that
    changed meanwhile, and `looks` counts all its looks. `rate` is looks per second, None if the
    latest batches had none to do. `seconds_left` is for the present walk, None while the speed is
    unknown. `waiting` says why its workers wait. A running run that has finished no batch for long
    is stuck: `stuck_since` says since when, `stuck_batch` in which batch (None: no worker has
    taken any).
    """

    run: int
    target: str
    state: str
    stage: int
    conversations: int
    looks: int
    failed: int
    batches: int
    open_batches: int
    share: float | None
    started_at: datetime
    finished_at: datetime | None
    reason: str
    rate: float | None = None
    seconds_left: float | None = None
    waiting: str = ""
    stuck_batch: int | None = None
    stuck_since: datetime | None = None

    @property
    def stuck(self) -> bool:
        """Whether the run is running, but has finished no batch for long."""
        return self.stuck_since is not None


@reconnecting
def progress(run: int) -> Progress:
    """Return the progress of a run. Raises: SyncRefused if there is none."""
    row = find_run(run)
    counts = batches(run).aggregate(
        done=Sum("conversations", filter=Q(stage__lt=FIRST_WALKS)),
        looks=Sum("conversations"),
        failed=Sum("failed"),
        batches=Count("pk"),
        open=Count("pk", filter=Q(finished_at=None)),
        last=Max("finished_at"),
    )
    recent = _recent(row)
    batch, since = _stuck(row, counts["last"])
    return Progress(
        run=int(row.pk),
        target=row.target,
        state=str(row.state),
        stage=row.stage,
        conversations=counts["done"] or 0,
        looks=counts["looks"] or 0,
        failed=counts["failed"] or 0,
        batches=counts["batches"],
        open_batches=counts["open"],
        share=_share(row),
        started_at=row.started_at,
        finished_at=row.finished_at,
        reason=row.reason,
        rate=_rate(recent),
        seconds_left=_seconds_left(row, recent),
        waiting=row.waiting if _waits(row) else "",
        stuck_batch=batch,
        stuck_since=since,
    )


@reconnecting
def latest(*, limit: int = 20) -> list[Progress]:
    """Return the progress of the latest runs, newest first."""
    return [progress(pk) for pk in runs().order_by("-pk").values_list("pk", flat=True)[:limit]]


def _keys(row: SyncRun) -> tuple[int, int] | None:
    """Return the run's present key and the end of its stage; None if keys are no numbers."""
    cursor, upper = json.loads(row.cursor), json.loads(row.upper)
    if not isinstance(upper, int) or not isinstance(cursor, int | None):
        return None
    return cursor or 0, upper


def _share(row: SyncRun) -> float | None:
    if row.state == State.FINISHED:
        return 1.0
    keys = _keys(row)
    return None if keys is None or not keys[1] else keys[0] / keys[1]


def _recent(row: SyncRun) -> Sequence[SyncBatch]:
    """Return the latest finished batches of the present stage."""
    if row.state != State.RUNNING:
        return ()
    done = batches(row.pk).filter(stage=row.stage).exclude(finished_at=None)
    return list(done.order_by("-finished_at", "-pk")[:RECENT])


def _took(recent: Sequence[SyncBatch]) -> float:
    until = max(batch.finished_at or batch.taken_at for batch in recent)
    return seconds_between(min(batch.taken_at for batch in recent), until)


def _rate(recent: Sequence[SyncBatch]) -> float | None:
    if not recent:
        return None
    done = sum(batch.conversations for batch in recent)
    return done / _took(recent) if done else None


def _seconds_left(row: SyncRun, recent: Sequence[SyncBatch]) -> float | None:
    """Return how long the rest of the stage takes at the speed of the recent batches."""
    keys = _keys(row)
    if keys is None or not recent:
        return None
    cursor, upper = keys
    lows = [json.loads(batch.low) or 0 for batch in recent]
    walked = max(json.loads(batch.high) for batch in recent) - min(lows)
    return _took(recent) * (upper - cursor) / walked if walked else None


def _waits(row: SyncRun) -> bool:
    return bool(row.waited_at and timezone.now() - row.waited_at < WAIT_IS_OVER)


def _stuck(row: SyncRun, last: datetime | None) -> tuple[int | None, datetime | None]:
    """Return the batch in which a run is stuck, and since when; None and None if it is not."""
    if row.state != State.RUNNING or (row.waiting and _waits(row)):
        return None, None
    moments = (row.started_at, row.resumed_at, last, row.waited_at)
    since = max(moment for moment in moments if moment is not None)
    if timezone.now() - since < timedelta(seconds=STUCK_TARGETS * TARGET_SECONDS):
        return None, None
    oldest: Any = open_batches(row.pk).order_by("taken_at", "pk").first()
    return (None if oldest is None else int(oldest.pk)), since
