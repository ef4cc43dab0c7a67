"""The records of runs and their batches: beginning, pausing and ending them, and what they say."""

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
from conversations.runs.tasks import Task

State = SyncRun.State
ALIVE = (State.RUNNING, State.PAUSED)
FIRST_BATCH = 50


@dataclass(frozen=True, slots=True)
class Note:
    """A conversation that a run names: what became of it, why, and the class of the why."""

    conversation_id: str
    count: str
    reason: str
    reason_class: str


@dataclass(frozen=True, slots=True)
class Tally:
    """What a run found: how many of each kind, and whom it names, as of the last look at each."""

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


def found_run(run: int, *, locked: bool = False) -> SyncRun:
    """Return the record of a run. Raises: SyncRefused when there is none."""
    rows = runs().select_for_update() if locked else runs()
    row = rows.filter(pk=run).first()
    if row is None:
        raise SyncRefused(f"there is no run {run}.")
    return row


def begin(target: str, task: Task[Any], *, sample: float | None = None) -> int:
    """Begin a run, or join the one of its kind that is alive. Returns: its number.

    Raises: SyncRefused where that one is of another sample.
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
            # Somebody else began one at the same moment.
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


def pause(run: int) -> None:
    """Let every worker stop behind its present batch. Raises: SyncRefused."""
    _change(run, State.RUNNING, state=State.PAUSED, waiting="")


def resume(run: int) -> None:
    """Let workers go on. Raises: SyncRefused."""
    _change(run, State.PAUSED, state=State.RUNNING, resumed_at=timezone.now())


def cancel(run: int) -> None:
    """End a run; what it did stays. Raises: SyncRefused."""
    _change(run, *ALIVE, **ended(State.CANCELLED))


def _change(run: int, *expected: SyncRun.State, **values: Any) -> None:
    if not runs().filter(pk=run, state__in=expected).update(**values):
        raise SyncRefused(f"run {run} is not {' or '.join(expected)}.")


def tally(run: int) -> Tally:
    """Return what a run found so far.

    Whom a later stage looked at again stands as that found it. A note without a reason's class
    says that there is nothing to name any more, and is counted where an earlier one named it.
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
    """Return the record of the latest run that came to its end; `whole`: that was no sample."""
    rows = runs().filter(target=target, state=State.FINISHED)
    if whole:
        rows = rows.filter(sample=None)
    return rows.order_by("-pk").first()


def seconds_between(begin_: datetime, end: datetime) -> float:
    """Return the seconds from one moment to another, never quite none."""
    return max((end - begin_).total_seconds(), 0.001)
