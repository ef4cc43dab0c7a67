"""A backfill at scale: a run that carries everything over, to the tables or to legacy.

A run to legacy walks only over conversations that the tables have ahead. A run to the tables
merges the writes of others in legacy. A blob that vanished from legacy is named by `verify`, and
written again by a `sync` of its conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone

from conversations import conf
from conversations.models import (
    LEGACY_BEHIND,
    UNVERIFIED,
    ConversationState,
    ConversationTombstone,
    SyncRun,
)
from conversations.rollout.runs import working
from conversations.rollout.runs.progress import Progress, latest, progress
from conversations.rollout.runs.records import (
    Note,
    begin as begin_run,
    cancel,
    find_run,
    latest_finished,
    pause,
    resume,
    tally,
)
from conversations.rollout.runs.tasks import Blobs, Outcome, Source, Tables
from conversations.rollout.runs.throttle import SaveTimes, measured_saves, throttle
from conversations.rollout.sync.bulk import carry_all, share
from conversations.rollout.sync.one import Action, Synced, Target, carry, the_legacy_store
from conversations.stores.base import LegacyStore
from flags.connections import reconnecting

__all__ = [
    "Finished",
    "Progress",
    "begin",
    "cancel",
    "failures",
    "last_finished",
    "latest",
    "pause",
    "progress",
    "resume",
    "work",
]


@dataclass(frozen=True, slots=True)
class Finished:
    """The latest finished run to a store, and the conversations it could not carry over.

    Conversations that were deleted since, or verified in order, are no failures any more. Each
    failure has `conversation_id`, `reason` and `reason_class`: "unreadable", "other_owner",
    "invalid", "unanswered", "not_found", … or "error".
    """

    run: int
    target: Target
    started_at: datetime
    finished_at: datetime
    conversations: int
    failures: tuple[Note, ...]


class _Behind(Tables):
    """The rows of the tables that have newer content than legacy."""

    def chosen(self) -> QuerySet[ConversationState]:
        return self.rows().filter(LEGACY_BEHIND)


@dataclass(frozen=True, slots=True)
class _CarryOver:
    legacy: LegacyStore
    target: Target
    began: datetime

    def source(self, stage: int) -> Source:
        if self.target == Target.LEGACY:
            return _Behind()
        return Blobs(self.legacy, self.began)

    def goes_on(self, stage: int, looked: Mapping[int, int]) -> bool:
        return False

    def mark(self, stage: int) -> str:
        return self.legacy.mark()

    def share(self, ids: Sequence[str]) -> float:
        return share(self.legacy, ids) if self.target == Target.TABLES else 0

    def do(self, ids: Sequence[str]) -> Sequence[Synced]:
        if self.target == Target.TABLES:
            return carry_all(self.legacy, ids)
        return [carry(self.legacy, self.target, conversation_id) for conversation_id in ids]

    def met(self, ids: Sequence[str], stage: int, low: Any) -> Collection[str]:
        if self.target == Target.LEGACY or low is None:
            return ()
        return self.legacy.met(ids, low)

    def outcome(self, result: Synced, stage: int) -> Outcome:
        failed = result.action == Action.FAILED
        return Outcome(
            result.conversation_id,
            str(result.action),
            noted=failed,
            failed=failed,
            unanswered=result.unanswered,
            reason=result.reason,
            reason_class=result.reason_class,
        )


def _task_of(row: SyncRun) -> _CarryOver:
    target = Target(row.target)
    return _CarryOver(the_legacy_store(target), target, row.started_at)


@reconnecting
def begin(to: Target | str) -> int:
    """Begin a run, or join a living one. Returns: its number.

    Raises: ConversationNotFound if there is no legacy store to sync with, SyncRefused for a sync
    to a retired one.
    """
    target = Target(to)
    return begin_run(target, _CarryOver(the_legacy_store(target), target, timezone.now()))


@reconnecting
def work(
    run: int,
    *,
    until: Callable[[], bool] = lambda: False,
    seconds: float | None = None,
    saves: SaveTimes = measured_saves,
) -> Iterator[list[Synced]]:
    """Carry over batch after batch until the run is done; yield the results of each.

    Stops between two batches when `until` says so, after `seconds`, and when the run was paused,
    cancelled or has failed. Waits while a replica lags, or while `saves` says that live saves have
    become slow. Several workers may do this at once.

    Raises: SyncRefused if there is no such run.
    """
    started_at = find_run(run).started_at
    return working.work(
        run,
        _task_of,
        until=until,
        seconds=seconds,
        throttle=throttle(started_at, saves=saves),
    )


def failures(run: int) -> Iterator[tuple[str, str]]:
    """Yield the conversations that a run could not carry over, and why."""
    for note in tally(run).notes:
        yield note.conversation_id, note.reason


@reconnecting
def last_finished(to: Target | str) -> Finished | None:
    """Return the latest finished run to a store; None if there is none."""
    target = Target(to)
    row = latest_finished(target)
    if row is None:
        return None
    assert row.finished_at is not None
    notes = tally(row.pk).notes
    settled = _settled([note.conversation_id for note in notes])
    return Finished(
        run=int(row.pk),
        target=target,
        started_at=row.started_at,
        finished_at=row.finished_at,
        conversations=progress(row.pk).conversations,
        failures=tuple(note for note in notes if note.conversation_id not in settled),
    )


def _settled(ids: list[str]) -> set[str]:
    """Return those that were deleted, or verified since they were last written."""
    found: set[str] = set()
    for start in range(0, len(ids), 500):
        some: dict[str, Any] = {"conversation_id__in": ids[start : start + 500]}
        alias = conf.alias()
        for rows in (
            ConversationState.rows.using(alias).filter(**some).exclude(UNVERIFIED),
            ConversationTombstone.rows.using(alias).filter(**some),
        ):
            found.update(rows.values_list("conversation_id", flat=True))
    return found
