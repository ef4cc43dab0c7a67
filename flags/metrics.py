"""Counting and timing operations, while performance_monitoring is on.

A process adds up in memory. Its monitor (`flags.reporter`) writes the sums every few seconds, in
a transaction of its own, so a caller's rollback takes nothing back. All processes share the rows:
one a minute for each operation and store.

Operations are:

- `save`, `append`, `edit`, `load` and `list`, by the store that decided them;
- `leg`, the part of a write that goes to the other store;
- `shadow`, a load that was compared;
- `read` of `replica`, a load's read of a replica (fallback: it failed; mismatch: it was behind).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import BigIntegerField, Func, Sum
from django.db.models.functions import Now, TruncHour
from django.utils import timezone

from flags import reporter
from flags.conf import database_alias
from flags.histogram import BOUNDS, Measure
from flags.models import MeasuredMinute
from flags.switches import monitored

KEPT = timedelta(days=30)
MINUTE = timedelta(minutes=1)
_KEY = ("operation", "store")
_NUMBERS = tuple(each.name for each in fields(Measure) if each.name != "cells")

# When the minute began, the operation and the store.
Key = tuple[datetime, str, str]
# The first minute, and up to when.
Stretch = tuple[datetime, datetime | None]

# Takes the operation, the store, its seconds (or None) and its end, as `observe` does.
Listener = Callable[[str, str, float | None, Mapping[str, bool]], object]

_listeners: dict[str, Listener] = {}
_lock = threading.Lock()
_measured: dict[tuple[str, str], Measure] = {}


_unmeasured: ContextVar[bool] = ContextVar("flags_unmeasured", default=False)
# The totals by stretch of time, while `read_once` is in force.
_read: ContextVar[dict[Stretch, Mapping[tuple[str, str], Measure]] | None] = ContextVar(
    "flags_read_once", default=None
)


def enabled() -> bool:
    """Whether operations are measured. Costs next to nothing."""
    return not _unmeasured.get() and monitored()


@contextmanager
def unmeasured() -> Iterator[None]:
    """Count nothing in this context: a gate's own operations are no evidence for a gate."""
    token = _unmeasured.set(True)
    try:
        yield
    finally:
        _unmeasured.reset(token)


def observe(operation: str, store: str, seconds: float | None, **how: bool) -> None:
    """Count one operation on a store, if measuring is on.

    `how` it ended is `error`, `fallback`, `stale`, `mismatch`; see `flags.histogram.Measure`.
    """
    if not enabled():
        return
    reporter.ensure()
    with _lock:
        measure = _measured.get((operation, store))
        if measure is None:
            measure = _measured[operation, store] = Measure()
        measure.observe(seconds, **how)
    for listener in _listeners.values():
        listener(operation, store, seconds, how)


def listen(name: str, listener: Listener) -> None:
    """Call a listener, one per name, for every operation that is counted.

    The call comes after the operation, in the caller's thread. It must neither wait nor raise.
    """
    _listeners[name] = listener


def totals(since: datetime, until: datetime | None = None) -> Mapping[tuple[str, str], Measure]:
    """Return the measures of all processes, by operation and store. Do not change them.

    They cover whole minutes, from the minute of `since` to the minute of `until`.
    """
    stretch = (_minute(since), until)
    read = _read.get()
    if read is not None and stretch in read:
        return read[stretch]
    rows = _rows().filter(began_at__gte=stretch[0])
    if until is not None:
        rows = rows.filter(began_at__lte=until)
    found = _added(rows)
    if read is not None:
        read[stretch] = found
    return found


@contextmanager
def read_once() -> Iterator[None]:
    """Read a stretch of time once in this context: the gates of one report ask for the same."""
    token = _read.set({})
    try:
        yield
    finally:
        _read.reset(token)


def this_hour() -> dict[tuple[str, str], Measure]:
    """Return the measures of all processes since the full hour, by the database's clock.

    Every process gets the same sums, which never fall within an hour.
    """
    return _added(_rows().filter(began_at__gte=TruncHour(Now(), tzinfo=UTC)))


class _Cell(Func):
    """One cell of a histogram; NULL where no time was measured.

    PostgreSQL splits the text, because its JSON functions would read all of it for each cell and
    take twice as long.
    """

    template = (
        "CAST(SPLIT_PART(BTRIM(NULLIF(%(expressions)s, ''), '[]'), ',', %(place)s) AS bigint)"
    )
    output_field = BigIntegerField()

    def __init__(self, column: str, cell: int) -> None:
        super().__init__(column, cell=cell, place=cell + 1)

    def as_sqlite(self, *args: Any, **options: Any) -> Any:
        options["template"] = "JSON_EXTRACT(NULLIF(%(expressions)s, ''), '$[%(cell)s]')"
        return self.as_sql(*args, **options)


def _added(rows: Any) -> dict[tuple[str, str], Measure]:
    """Add up minutes, in the database: four weeks of twelve series are half a million rows."""
    sums = {f"sum_of_{name}": Sum(name) for name in _NUMBERS}
    cells = {f"cell_{cell}": Sum(_Cell("cells", cell)) for cell in range(len(BOUNDS) + 1)}
    found: dict[tuple[str, str], Measure] = {}
    for operation, store, *values in rows.values_list(*_KEY).annotate(**sums, **cells):
        numbers, counts = values[: len(sums)], values[len(sums) :]
        measure = Measure(**dict(zip(_NUMBERS, numbers, strict=True)))
        measure.cells = [count or 0 for count in counts]
        found[operation, store] = measure
    return found


def flush(*, now: datetime | None = None) -> None:
    """Write this process's measures since the last flush; an error keeps them for the next."""
    taken = _take()
    if not taken:
        return
    try:
        _write({(_minute(now or timezone.now()), *key): value for key, value in taken.items()})
    except BaseException:
        _give_back(taken)
        raise


def prune(*, now: datetime | None = None) -> int:
    """Remove measures older than 30 days. Returns: the number of rows."""
    removed: int = _rows().filter(began_at__lt=(now or timezone.now()) - KEPT).delete()[0]
    return removed


def forget() -> None:
    """Drop the unwritten measures, which in a forked child are the parent's."""
    global _lock
    _lock = threading.Lock()
    _measured.clear()


reporter.on_fork(forget)
reporter.every_beat(flush)
reporter.every_hour(prune)


def _take() -> dict[tuple[str, str], Measure]:
    with _lock:
        taken = dict(_measured)
        _measured.clear()
    return taken


def _give_back(taken: Mapping[tuple[str, str], Measure]) -> None:
    with _lock:
        for key, value in taken.items():
            _measured.setdefault(key, Measure()).add(value)


def _write(measured: Mapping[Key, Measure]) -> None:
    """Add to the rows of a minute, to which other processes add too."""
    with transaction.atomic(using=database_alias()):
        rows = _rows()
        rows.bulk_create(
            [
                MeasuredMinute(began_at=at, operation=op, store=store)
                # One order, here and below: otherwise two processes could wait for each other.
                for at, op, store in sorted(measured)
            ],
            ignore_conflicts=True,
        )
        (at,) = {began for began, _, _ in measured}
        locked = list(rows.select_for_update().filter(began_at=at).order_by("pk"))
        changed = [row for row in locked if (at, row.operation, row.store) in measured]
        for row in changed:
            total = _measure(row)
            total.add(measured[at, row.operation, row.store])
            for name, value in _columns(total):
                setattr(row, name, value)
        rows.bulk_update(changed, [*_NUMBERS, "cells"])


def _measure(row: MeasuredMinute) -> Measure:
    measure = Measure(**{name: getattr(row, name) for name in _NUMBERS})
    if row.cells:
        measure.cells = json.loads(row.cells)
    return measure


def _columns(measure: Measure) -> Iterator[tuple[str, Any]]:
    yield from ((name, getattr(measure, name)) for name in _NUMBERS)
    yield "cells", json.dumps(measure.cells)


def _minute(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


def _rows() -> Any:
    return MeasuredMinute.objects.using(database_alias())
