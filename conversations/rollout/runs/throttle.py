"""The reasons for a run to wait: live saves have become slow, or a replica lags behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from django.db import Error, connections
from django.utils import timezone

from conversations import conf
from conversations.routing.transactions import attempt
from flags import metrics
from flags.histogram import Measure

# Saves of the last minute are compared with those of the hour before the run.
RECENT, BASELINE = timedelta(minutes=1), timedelta(hours=1)
# Fewer saves prove nothing.
LEAST_SAVES = 20
# How long an answer is used: each look costs a query.
LOOK_EVERY_SECONDS = 1.0

_SAVES = frozenset({"save", "append"})
# Positions in the log as numbers: the primary's, that of the replica which replayed least, and the
# server's own measure of the lag.
_LAG = """
    SELECT pg_current_wal_flush_lsn() - '0/0', min(replay_lsn) - '0/0', max(replay_lag)
    FROM pg_stat_replication"""


@dataclass(frozen=True, slots=True)
class Saves:
    """Saves of a period: how many, and within how many seconds 95 % of them were done."""

    count: int
    p95_seconds: float | None


class SaveTimes(Protocol):
    """The source of the times of live saves."""

    def __call__(self, since: datetime, until: datetime | None) -> Saves:
        """Return the saves of a period; `until` None means: until now."""


def measured_saves(since: datetime, until: datetime | None) -> Saves:
    """Return the saves that every process measured, in whole minutes: see `flags.metrics`.

    While performance_monitoring is off there are none, and nothing is slow.
    """
    saves = Measure()
    for (operation, _store), measure in metrics.totals(since, until).items():
        if operation in _SAVES:
            saves.add(measure)
    return Saves(saves.count, saves.p95)


def throttle(started_at: datetime, *, saves: SaveTimes = measured_saves) -> Callable[[], str]:
    """Return a function that says why a run must wait, or "", for a run begun at `started_at`.

    An answer is used for a second.
    """
    slow, replicas = _Slowdown(started_at, saves), _Replicas()
    answer, looked = "", float("-inf")

    def why() -> str:
        nonlocal answer, looked
        if time.monotonic() - looked >= LOOK_EVERY_SECONDS:
            answer = replicas.why() or slow.why()
            looked = time.monotonic()
        return answer

    return why


class _Replicas:
    """How far the slowest replica is behind (PostgreSQL only).

    The primary answers. A user who may not see other sessions (no pg_monitor) sees no lag, and the
    run does not wait. The server reports no lag (replay_lag is null) of a replica that paused
    after it had replayed everything. So a position of the log is noted here: the replica is behind
    for as long as it has not replayed that.
    """

    def __init__(self) -> None:
        self.position: int | None = None
        self.noted_at = 0.0

    def why(self) -> str:
        """Return the reason if a replica lags too far behind, or ""."""
        lag = self._lag()
        if lag <= conf.get("SYNC_MAX_REPLICA_LAG"):
            return ""
        return f"a replica lags {lag.total_seconds():.0f} s behind"

    def _lag(self) -> timedelta:
        connection = connections[conf.alias()]
        if connection.vendor != "postgresql":
            return timedelta(0)
        try:
            with attempt(), connection.cursor() as cursor:
                cursor.execute(_LAG)
                written, replayed, lag = cursor.fetchone()
        except Error:
            # An invisible lag is no reason to stop; the batch will report a real problem.
            return timedelta(0)
        now = time.monotonic()
        if replayed is None or self.position is None or replayed >= self.position:
            self.position, self.noted_at = written, now
        return max(lag or timedelta(0), timedelta(seconds=now - self.noted_at))


class _Slowdown:
    """Live saves compared with those of the hour before the run."""

    def __init__(self, started_at: datetime, saves: SaveTimes) -> None:
        self.saves = saves
        self.started_at = started_at
        self.baseline: Saves | None = None

    def why(self) -> str:
        try:
            with attempt():
                return self._why()
        except Error:
            return ""

    def _why(self) -> str:
        if self.baseline is None:
            self.baseline = self.saves(self.started_at - BASELINE, self.started_at)
        usual = self.baseline.p95_seconds
        if self.baseline.count < LEAST_SAVES or not usual:
            return ""
        recent = self.saves(timezone.now() - RECENT, None)
        now = recent.p95_seconds
        if recent.count < LEAST_SAVES or now is None:
            return ""
        if now <= usual * conf.get("SYNC_MAX_SLOWDOWN"):
            return ""
        return f"saves take {now * 1000:.0f} ms, {usual * 1000:.0f} ms before the run"
