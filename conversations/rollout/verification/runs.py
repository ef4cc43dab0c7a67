"""A verification at scale: of all conversations or a sample, and again of changed ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone

from conversations.exceptions import StorageUnavailable
from conversations.models import ConversationState, SyncRun
from conversations.rollout.runs import working
from conversations.rollout.runs.progress import progress
from conversations.rollout.runs.records import (
    Note,
    begin as begin_run,
    find_run,
    latest_finished,
    tally,
)
from conversations.rollout.runs.tasks import Blobs, Nothing, Outcome, Source, Tables
from conversations.rollout.runs.throttle import SaveTimes, measured_saves, throttle
from conversations.rollout.verification.kinds import Kind, Verified
from conversations.rollout.verification.one import unverified, verify
from conversations.routing.ids import known
from conversations.routing.standing import truth_by_token_value
from conversations.routing.truth import Truth
from conversations.stores.base import LegacyStore
from conversations.stores.normalized import find_rows_with_token_between
from conversations.stores.registry import configured_store
from conversations.stores.sql.expressions import between
from flags.connections import reconnecting
from flags.sampling import share_of
from flags.texts import quoted

TARGET = "verification"
# The last round had this few looks, or there were this many rounds.
LITTLE, MOST_ROUNDS = 50, 10


@dataclass(frozen=True, slots=True)
class Verification:
    """A finished verification.

    `whole` says that it covered everything, otherwise the share `sample`. `counts` is by the name
    of the kind in lower case, joined by "+" if there are several. The last look at each
    conversation counts. Conversations that began to exist meanwhile and are in order are not
    counted. `notes` names those not in order: conversation_id, `count` (the kinds), `reason`
    (places) and `reason_class` (the first kind). It covers every write into legacy before `mark`:
    see `LegacyStore.ids_written_since`.
    """

    run: int
    sample: float | None
    started_at: datetime
    finished_at: datetime
    mark: str
    looks: int
    counts: Mapping[str, int]
    notes: tuple[Note, ...]

    @property
    def whole(self) -> bool:
        """Whether everything was verified, rather than a sample."""
        return self.sample is None

    @property
    def in_order(self) -> bool:
        """Whether every conversation that was looked at is in order."""
        return not self.notes


@dataclass(frozen=True, slots=True)
class _Sampled(Tables):
    """Every row, or those of the sample."""

    sample: float | None

    def ids_between(self, low: Any, high: Any) -> Sequence[str]:
        return _of_sample(Tables.ids_between(self, low, high), self.sample)


@dataclass(frozen=True, slots=True)
class _Changed(_Sampled):
    """Conversations written since they were verified, and those that others wrote into legacy."""

    legacy: LegacyStore | None

    def ids_between(self, low: Any, high: Any) -> Sequence[str]:
        rows = between(self.chosen(), low, high, name="pk").order_by("pk")
        found = dict.fromkeys(rows.values_list("conversation_id", flat=True))
        if self.legacy is not None:
            for row in find_rows_with_token_between(self.legacy.token_sql(), low=low, high=high):
                if truth_by_token_value(row, self.legacy, row.token_value) == Truth.MERGE:
                    found[row.conversation_id] = None
        return _of_sample(list(found), self.sample)

    def chosen(self) -> QuerySet[ConversationState]:
        return unverified()


class _OnlyInLegacy(Blobs):
    """Conversations that legacy holds, and the tables do not."""

    def __init__(self, legacy: LegacyStore, began: datetime, sample: float | None) -> None:
        super().__init__(legacy, began)
        self.sample = sample

    def ids_between(self, low: Any, high: Any) -> Sequence[str]:
        ids = super().ids_between(low, high)
        in_tables: set[str] = set()
        for start in range(0, len(ids), 500):
            in_tables |= known(ids[start : start + 500])
        return _of_sample([found for found in ids if found not in in_tables], self.sample)


def _of_sample(ids: Sequence[str], sample: float | None) -> Sequence[str]:
    return ids if sample is None else [found for found in ids if share_of(found) < sample]


@dataclass(frozen=True, slots=True)
class _Verify:
    """Rounds of two stages: over the tables' rows, then over conversations only legacy holds.

    The first round covers everything, each later one the changes meanwhile.
    """

    sample: float | None
    legacy: LegacyStore | None
    began: datetime

    def source(self, stage: int) -> Source:
        if stage % 2:
            if self.legacy is None:
                return Nothing()
            return _OnlyInLegacy(self.legacy, self.began, self.sample)
        if stage == 0:
            return _Sampled(self.sample)
        return _Changed(self.sample, self.legacy)

    def goes_on(self, stage: int, looked: Mapping[int, int]) -> bool:
        if stage < 2 or stage % 2 == 0:
            return True
        this = looked.get(stage, 0) + looked.get(stage - 1, 0)
        before = looked.get(stage - 2, 0) + looked.get(stage - 3, 0)
        shrinks = stage == 3 or this < before
        return this > LITTLE and shrinks and stage // 2 < MOST_ROUNDS

    def mark(self, stage: int) -> str | None:
        if stage % 2:
            return None
        return self.legacy.mark() if self.legacy else ""

    def share(self, ids: Sequence[str]) -> float:
        return 0

    def do(self, ids: Sequence[str]) -> Sequence[Verified]:
        return list(verify(ids))

    def met(self, ids: Sequence[str], stage: int, low: Any) -> Collection[str]:
        if self.legacy is None or low is None or stage != 1:
            return ()
        return self.legacy.met(ids, low)

    def outcome(self, result: Verified, stage: int) -> Outcome:
        # A conversation that the walk met and no store holds was deleted meanwhile.
        harmless = result.in_order or result.kinds == (Kind.UNKNOWN,)
        return Outcome(
            result.conversation_id,
            "+".join(kind.name.lower() for kind in result.kinds),
            # A later look replaces an earlier one.
            noted=stage > 1 or not harmless,
            failed=Kind.FAILED in result.kinds,
            unanswered=result.places == (StorageUnavailable.__name__,),
            reason="; ".join(result.places),
            reason_class="" if harmless else result.kinds[0].name.lower(),
        )


def _task_of(row: SyncRun) -> _Verify:
    return _Verify(row.sample, configured_store(), row.started_at)


@reconnecting
def begin(*, sample: float | None = None) -> int:
    """Begin a verification, or join a living one. Returns: the number of its run.

    `sample` is the share (above 0, up to 1) of the conversations to verify, always the same ones:
    see `flags.sampling`. None means everything.

    Raises: SyncRefused if the living one has another sample.
    """
    if sample is not None and not 0 < sample <= 1:
        raise ValueError(f"a sample is a share above 0 and up to 1, not {quoted(sample)}")
    return begin_run(TARGET, _Verify(sample, configured_store(), timezone.now()), sample=sample)


@reconnecting
def work(
    run: int,
    *,
    until: Callable[[], bool] = lambda: False,
    seconds: float | None = None,
    saves: SaveTimes = measured_saves,
) -> Iterator[list[Verified]]:
    """Verify batch after batch until the run is done; see `rollout.sync.runs.work`."""
    started_at = find_run(run).started_at
    return working.work(
        run, _task_of, until=until, seconds=seconds, throttle=throttle(started_at, saves=saves)
    )


@reconnecting
def latest_verification(*, whole: bool = True) -> Verification | None:
    """Return the latest finished verification, or None.

    With `whole` False, one of a sample counts too.
    """
    row = latest_finished(TARGET, whole=whole)
    if row is None:
        return None
    assert row.finished_at is not None
    found = tally(row.pk)
    return Verification(
        run=int(row.pk),
        sample=row.sample,
        started_at=row.started_at,
        finished_at=row.finished_at,
        mark=row.mark,
        looks=progress(row.pk).looks,
        counts=found.counts,
        notes=tuple(found.notes),
    )
