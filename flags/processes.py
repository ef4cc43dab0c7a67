"""The live processes, and the transition that each has seen, from their own reports."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from django.db.models.functions import Now

from flags import reporter
from flags.conf import SNAPSHOT_SECONDS, database_alias
from flags.connections import reconnecting
from flags.models import ReportingProcess
from flags.phases import Phase
from flags.records import Record, latest
from flags.switches import snapshot

# A process that has not reported for this long is dead, or cut off.
EXPIRY = timedelta(seconds=5 * reporter.BEAT_SECONDS)
# Within this time a live process has reported that it acts on a new transition.
GRACE = timedelta(seconds=2 * reporter.BEAT_SECONDS + SNAPSHOT_SECONDS)

_token = uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Process:
    """The last report of a process. `age` is its age by the database's clock.

    `epoch` is the latest transition (see `flags.transitions.Record`) that the process acts on, 0
    before the first one.
    """

    host: str
    pid: int
    version: str
    phase: Phase
    epoch: int
    age: timedelta


@cache
def our_version() -> str:
    """Return the version of this package, "unknown" if it is not installed as a package."""
    try:
        return version("django-conversation-store")
    except PackageNotFoundError:
        return "unknown"


@reconnecting
def live() -> list[Process]:
    """Return the processes that reported within `EXPIRY`, by host and pid."""
    rows = _rows().annotate(now=Now()).order_by("host", "pid", "pk")
    found = [
        Process(
            host=row.host,
            pid=row.pid,
            version=row.version,
            phase=Phase(row.phase),
            epoch=row.epoch,
            age=max(row.now - row.seen_at, timedelta(0)),
        )
        for row in rows
    ]
    return [process for process in found if process.age <= EXPIRY]


def on_old_epoch(
    found: Iterable[Process], newest: Record | None, *, now: datetime
) -> list[Process]:
    """Return the processes that should act on the latest transition by now, and do not."""
    if newest is None or now - newest.at <= GRACE:
        return []
    return [process for process in found if process.epoch < newest.epoch]


def report() -> None:
    """Report that this process is alive, and the phase and epoch that it has seen."""
    newest = latest()
    # The switches are read after the transition, so they are at least as new.
    seen = snapshot.refresh()
    values: dict[str, Any] = {
        "host": socket.gethostname()[:255],
        "pid": os.getpid(),
        "version": our_version()[:64],
        "phase": int(snapshot.settings().plan.phase),
        "seen_at": Now(),
    }
    if seen:
        values["epoch"] = newest.epoch if newest else 0
    _rows().update_or_create(token=_token, defaults=values, create_defaults={"epoch": 0, **values})


def expire() -> None:
    """Remove processes that have long been silent; a live one reports again."""
    rows = _rows().annotate(now=Now())
    gone = [row.pk for row in rows if row.now - row.seen_at > 4 * EXPIRY]
    if gone:
        _rows().filter(pk__in=gone).delete()


def sign_off() -> None:
    """Report that this process ends."""
    _rows().filter(token=_token).delete()


def _forked() -> None:
    global _token
    _token = uuid.uuid4().hex


reporter.every_beat(report)
reporter.every_beat(expire)
reporter.at_end(sign_off)
reporter.on_fork(_forked)


def _rows() -> Any:
    return ReportingProcess.objects.using(database_alias())
