"""The records of runs and their batches: how they begin, pause and end, and their results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils import timezone

from conversations import conf
from conversations.exceptions import SyncRefused
from conversations.models import SyncBatch, SyncRun, in_pages
from conversations.rollout.runs.tasks import Task
from flags.connections import reconnecting
from flags.texts import shown

State = SyncRun.State
ALIVE = (State.RUNNING, State.PAUSED)
FIRST_BATCH = 50


@dataclass(frozen=True, slots=True)
class Note:
    """A conversation that a run names: its result, the reason, and the reason's class."""

    conversation_id: str
    count: str
    reason: str
    reason_class: str


@dataclass(frozen=True, slots=True)
class Tally:
    """The results of a run: how many of each kind, and the named ones, as of the last look."""

    counts: Mapping[str, int]
    notes: Sequence[Note]


def runs() -> QuerySet[SyncRun]:
    """Return the records of all runs."""
    return SyncRun.rows.using(conf.alias()).all()


def batches(run: int) -> QuerySet[SyncBatch]:
    """Return the batches of a run."""
    return SyncBatch.rows.using(conf.alias()).filter(run_id=run)


def open_batches(run: int) -> QuerySet[SyncBatch]:
    """Return the batches of a run that are not finished."""
    return batches(run).filter(finished_at=None)


def find_run(run: int, *, locked: bool = False) -> SyncRun:
    """Return the record of a run. Raises: SyncRefused if there is none."""
    rows = _of(run).select_for_update() if locked else _of(run)
    row = rows.first()
    if row is None:
        raise SyncRefused(f"there is no run {shown(run)}.")
    return row


def _of(run: Any) -> QuerySet[SyncRun]:
    """Return the record of a run, if that is a number: Django's error would repeat other values."""
    return runs().filter(pk=run) if isinstance(run, int) else runs().none()


def begin(target: str, task: Task[Any], *, sample: float | None = None) -> int:
    """Begin a run, or join a living one of its kind. Returns: its number.

    Raises: SyncRefused if that one has another sample.
    """
    alive = runs().filter(target=target, state__in=ALIVE)
    found = alive.first()
    if found is None:
        try:
            with transaction.atomic(using=conf.alias()):
                found = runs().create(
                    target=target,
                    cursor=json.dumps(None),
                    upper=json.dumps(task.source(0).last_key()),
                    mark=task.mark(0) or "",
                    sample=sample,
                    batch_size=FIRST_BATCH,
                    started_at=timezone.now(),
                )
        except IntegrityError:
            # Another process began one at the same moment.
            found = alive.get()
    if found.sample != sample:
        share = "everything" if found.sample is None else f"a sample of {found.sample:g}"
        raise SyncRefused(f"run {found.pk} is of {share}: finish it, or cancel it.")
    return int(found.pk)


def ended(state: SyncRun.State, reason: str = "") -> dict[str, Any]:
    """Return the values of a run that has ended."""
    return {
        "state": state,
        "reason": reason[:255],
        "waiting": "",
        "finished_at": timezone.now(),
    }


@reconnecting
def pause(run: int) -> None:
    """Make every worker stop after its present batch. Raises: SyncRefused."""
    _change(run, State.RUNNING, state=State.PAUSED, waiting="")


@reconnecting
def resume(run: int) -> None:
    """Let workers continue. Raises: SyncRefused."""
    _change(run, State.PAUSED, state=State.RUNNING, resumed_at=timezone.now())


@reconnecting
def cancel(run: int) -> None:
    """End a run; its results stay. Raises: SyncRefused."""
    _change(run, *ALIVE, **ended(State.CANCELLED))


def _change(run: int, *expected: SyncRun.State, **values: Any) -> None:
    if not _of(run).filter(state__in=expected).update(**values):
        raise SyncRefused(f"run {shown(run)} is not {' or '.join(expected)}.")


@reconnecting
def tally(run: int) -> Tally:
    """Return the results of a run so far.

    A later stage's look at a conversation replaces an earlier one. A note without a reason's class
    says that there is nothing to name any more; it is counted if an earlier note named the
    conversation.
    """
    counts: Counter[str] = Counter()
    notes: dict[str, Note] = {}
    finished = batches(run).exclude(finished_at=None)
    for stage in sorted(finished.order_by().values_list("stage", flat=True).distinct()):
        for counted, noted in in_pages(finished.filter(stage=stage), "counts", "noted"):
            counts.update(json.loads(counted))
            for values in json.loads(noted):
                note = Note(*values)
                if note.reason_class or note.conversation_id in notes:
                    notes[note.conversation_id] = note
    counts.update(note.count for note in notes.values())
    return Tally(dict(counts), tuple(note for note in notes.values() if note.reason_class))


def latest_finished(target: str, *, whole: bool = False) -> SyncRun | None:
    """Return the record of the latest finished run; `whole`: one without a sample."""
    rows = runs().filter(target=target, state=State.FINISHED)
    if whole:
        rows = rows.filter(sample=None)
    return rows.order_by("-pk").first()


def seconds_between(begin_: datetime, end: datetime) -> float:
    """Return the seconds from one moment to another, never zero."""
    return max((end - begin_).total_seconds(), 0.001)
