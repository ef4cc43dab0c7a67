"""The health of the stores: the latest measures, and the findings of apps that know stores.

`flags` knows no store: an app that knows one registers a `Probe` in `ready()`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from django.db import Error
from django.utils import timezone

from flags import breaker, metrics, processes, records
from flags.conf import Limits, conversations_settings, limits
from flags.exceptions import TimeIsUp
from flags.histogram import Measure
from flags.phases import PLANS, Phase, Plan, Switch
from flags.processes import Process
from flags.schema import MIGRATE, not_migrated
from flags.switches import Settings, last_known, snapshot
from flags.timeouts import Deadline

__all__ = [
    "Health",
    "Level",
    "Operation",
    "Probe",
    "Reason",
    "Window",
    "recent_report",
    "register",
    "report",
]

WINDOW = timedelta(minutes=5)
# How long all reads of a report may wait together.
SPAN = timedelta(seconds=1)
# How many processes a message names.
NAMED = 5
# For how many seconds a process gives strangers the same report.
KEPT_SECONDS = 1.0


class Level(StrEnum):
    """The levels of health, from good to bad.

    `unknown`: nothing bad was found, but some part could not be looked at, or nothing was
    measured because performance_monitoring is off.
    """

    HEALTHY = "healthy"
    UNKNOWN = "unknown"
    WARNING = "warning"
    CRITICAL = "critical"


_ORDER = list(Level)


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason for a level other than healthy.

    `slug` is stable, for machines. `about` names the subject: an operation and its store, such as
    "load tables", a store, or "". `number` is a count, or a share from 0 to 1.
    """

    slug: str
    level: Level
    message: str
    number: float = 0.0
    about: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """The measures of one operation on one store: counts, `rate` a second, percentiles in s."""

    operation: str
    store: str
    count: int
    errors: int
    fallbacks: int
    stale: int
    mismatches: int
    rate: float
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Health:
    """The findings of a report. `can_serve` says for every store whether it answered a read.

    `measured` says whether performance_monitoring is on. `operations` covers whole minutes from
    `since` on, by operation and store. `processes` are alive; `outdated` are those of them that
    act on an old transition.
    """

    status: Level
    can_serve: Mapping[str, bool]
    reasons: tuple[Reason, ...]
    operations: tuple[Operation, ...]
    processes: tuple[Process, ...]
    outdated: tuple[Process, ...]
    measured: bool
    since: datetime
    at: datetime


@dataclass(frozen=True, slots=True)
class Window:
    """The time that a probe looks at, from `since` on, and the phase, since `entered` (if known).

    In an emergency `phase` is the phase that the emergency overrules.
    """

    since: datetime
    phase: Phase
    emergency: bool = False
    entered: datetime | None = None


class Probe(Protocol):
    """The reads of an app that knows stores; the caller bounds the time of each.

    The methods only name the reads. They use the last known switches of this process, which the
    caller has just read. A read may raise django.db.Error: then its store does not serve, or its
    finding is unread.
    """

    def stores(self) -> Mapping[str, Callable[[], object]]:
        """Return a cheap read for every store, which fails if the store fails."""

    def findings(self, window: Window) -> Mapping[str, Callable[[], Iterable[Reason]]]:
        """Return reads by the name of their subject; each returns the reasons that it found."""


_probes: dict[str, Probe] = {}


def register(name: str, probe: Probe) -> None:
    """Add a probe to every report."""
    _probes[name] = probe


def report(window: timedelta = WINDOW) -> Health:
    """Return the health of the stores, from the measures and findings within `window`.

    Takes about a second at most, also while tables are locked and servers slow or dead. Only
    reads, and does not break the caller's transaction. A failing database raises nothing.
    """
    looked = _Look(timezone.now(), window, limits())
    can_serve = dict(looked.serving())
    reasons = list(looked.reasons(can_serve))
    return Health(
        status=max((reason.level for reason in reasons), key=_ORDER.index, default=Level.HEALTHY),
        can_serve=can_serve,
        reasons=tuple(sorted(reasons, key=lambda reason: -_ORDER.index(reason.level))),
        operations=tuple(looked.operations),
        processes=tuple(looked.live),
        outdated=tuple(looked.outdated),
        measured=looked.measured,
        since=looked.began,
        at=looked.now,
    )


class _Recent:
    """The last report of this process; threads that ask at the same time share one."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew, for a forked child: another thread of the parent may hold the lock."""
        self._lock = threading.Lock()
        self._found: Health | None = None
        self._made_at = float("-inf")

    def report(self) -> Health:
        with self._lock:
            if self._found is None or time.monotonic() - self._made_at >= KEPT_SECONDS:
                self._found = report()
                self._made_at = time.monotonic()
            return self._found


recent = _Recent()
os.register_at_fork(after_in_child=recent.forget)


def recent_report() -> Health:
    """Return a report that is at most a second old, so that frequent requests cost nothing."""
    return recent.report()


class _Look:
    """One report while it is made."""

    def __init__(self, now: datetime, window: timedelta, limits: Limits) -> None:
        self.now = now
        self.since = now - window
        # Measures are kept by whole minutes.
        self.began = self.since.replace(second=0, microsecond=0)
        self.limits = limits
        self.deadline = Deadline(SPAN)
        self.unread: list[str] = []
        self.operations: list[Operation] = []
        self.live: list[Process] = []
        self.outdated: list[Process] = []
        self.measured = False
        # False once a read found no table or no column.
        self.migrated = True
        # If the switches cannot be read now, the last known ones are in force. Probes use them too.
        if self._read(snapshot.refresh, None) is not True:
            self.unread.append("switches")
        self.settings = last_known()

    def serving(self) -> Iterator[tuple[str, bool]]:
        """Yield each store's name, and whether it answered."""
        for probe in _probes.values():
            for name, read in probe.stores().items():
                yield str(name), self._read(read, None) is not _FAILED

    def reasons(self, can_serve: Mapping[str, bool]) -> Iterator[Reason]:
        """Yield a reason for everything that is wrong or could not be looked at."""
        plan = _plan(self.settings)
        yield from _down(plan, can_serve)
        yield from _switched(plan)
        newest = self._read(records.latest, "transitions")
        last = newest if isinstance(newest, records.Record) else None
        yield from self._found(plan, last)
        self.measured = self.settings.switches[Switch.PERFORMANCE_MONITORING]
        yield from self._monitored(last)
        for store in [*breaker.reads.opened(), *breaker.replicas.opened()]:
            message = f"this process reads {store} second: too many of its reads failed."
            yield Reason("reads_moved", Level.WARNING, message, 1.0, store)
        if not self.migrated:
            message = f"a table or a column is missing: {MIGRATE}."
            yield Reason("not_migrated", Level.WARNING, message, 1.0)
        for what in dict.fromkeys(self.unread):
            yield Reason("unread", Level.UNKNOWN, f"{what} could not be looked at.", 1.0, what)

    def _found(self, plan: Plan, last: records.Record | None) -> Iterator[Reason]:
        window = Window(
            since=self.since,
            phase=_plan(self.settings, overruled=False).phase,
            emergency=plan.emergency,
            entered=None if last is None else last.at,
        )
        for probe in _probes.values():
            for what, read in probe.findings(window).items():
                found = self._read(lambda read=read: list(read()), what)  # type: ignore[misc]
                yield from found if isinstance(found, list) else ()

    def _monitored(self, last: records.Record | None) -> Iterator[Reason]:
        """Yield reasons from measures and reports of processes, if monitoring is on."""
        if not self.measured:
            message = "performance_monitoring is off: nothing is measured, no process reports."
            yield Reason("not_measured", Level.UNKNOWN, message)
            return
        totals = self._read(lambda: metrics.totals(self.began), "measures")
        if isinstance(totals, dict):
            seconds = (self.now - self.began).total_seconds()
            for (operation, store), measure in sorted(totals.items()):
                self.operations.append(_operation(operation, store, measure, seconds))
                yield from _judged(f"{operation} {store}", measure, self.limits)
        live = self._read(processes.live, "processes")
        if isinstance(live, list):
            self.live = live
            self.outdated = processes.on_old_epoch(live, last, now=self.now)
        if self.outdated:
            names = ", ".join(f"{each.host}:{each.pid}" for each in self.outdated[:NAMED])
            message = f"{len(self.outdated)} live processes act on an old transition: {names}."
            yield Reason("old_epoch", Level.CRITICAL, message, float(len(self.outdated)))

    def _read(self, work: Callable[[], object], what: str | None) -> object:
        """Return the result of a read, `_FAILED` if it fails or takes too long."""
        try:
            return self.deadline.read(work)
        except (Error, TimeIsUp) as error:
            self.migrated = self.migrated and not not_migrated(error)
            if what is not None:
                self.unread.append(what)
            return _FAILED


_FAILED = object()


def _plan(settings: Settings, *, overruled: bool = True) -> Plan:
    """Return the plan in force; unless `overruled`, the plan that an emergency overrules."""
    if not conversations_settings().get("LEGACY"):
        return PLANS[Phase.NEW_ONLY]
    return settings.plan if overruled else records.routing_plan(settings)


def _down(plan: Plan, can_serve: Mapping[str, bool]) -> Iterator[Reason]:
    for store, serves in can_serve.items():
        if not serves:
            needed = store in (plan.reads, plan.decides)
            level = Level.CRITICAL if needed else Level.WARNING
            yield Reason("store_down", level, f"store {store} does not answer.", 1.0, store)


def _switched(plan: Plan) -> Iterator[Reason]:
    if plan.emergency:
        message = "emergency_rollback is on: legacy alone is written."
        yield Reason("emergency", Level.WARNING, message, 1.0)
    if plan.mixed:
        message = f"the switches spell no phase; they act as {plan.phase.label}."
        yield Reason("mixed_switches", Level.WARNING, message, 1.0)


def _operation(operation: str, store: str, measure: Measure, seconds: float) -> Operation:
    return Operation(
        operation,
        store,
        measure.count,
        measure.errors,
        measure.fallbacks,
        measure.stale,
        measure.mismatches,
        measure.count / seconds,
        measure.p50,
        measure.p95,
        measure.p99,
    )


def _judged(about: str, measure: Measure, limits: Limits) -> Iterator[Reason]:
    """Yield a reason for each share that is too high; a small sample proves nothing."""
    if measure.count < limits.minimum:
        return
    counted = {
        "errors": (measure.errors, "failed"),
        "fallbacks": (measure.fallbacks, "fell back to the other store"),
        "stale": (measure.stale, "were stale"),
    }
    for slug, (number, what) in counted.items():
        share = number / measure.count
        if share < limits.warning:
            continue
        critical = slug == "errors" and share >= limits.critical
        message = f"{about}: {share:.1%} of {measure.count} {what}."
        level = Level.CRITICAL if critical else Level.WARNING
        yield Reason(slug, level, message, share, about)
