"""Reading the four routing switches: one query, or a snapshot at most half a second old.

Waffle's own cache is never used: another process sees a flip up to 300 seconds late, and
`QuerySet.update` never flushes it. Reading never raises and never breaks the caller's
transaction; on any error the last known plan holds, else the static default.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections, transaction
from waffle import get_waffle_switch_model

from flags.conf import SNAPSHOT_SECONDS, database_alias, default_switches
from flags.phases import PLANS, Phase, Plan, Switch, plan_of

logger = logging.getLogger("flags")

_forced: ContextVar[Plan | None] = ContextVar("flags_forced_plan", default=None)


class Snapshot:
    """The switch values that this process read last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: Mapping[str, bool] | None = None
        self._read_at = float("-inf")

    def clear(self) -> None:
        """Forget the age of the values, so that the next operation reads them anew."""
        self._read_at = float("-inf")

    def forget(self) -> None:
        """Forget the values as well, as a new process has none."""
        self._values = None
        self.clear()

    def values(self) -> Mapping[str, bool]:
        """Return the switch values, at most `SNAPSHOT_SECONDS` old."""
        if self._values is not None and time.monotonic() - self._read_at < SNAPSHOT_SECONDS:
            return self._values
        with self._lock:
            started = time.monotonic()
            values = stored_switches()
            if values is not None:
                self._values, self._read_at = values, started
            return default_switches(strict=False) if self._values is None else self._values


snapshot = Snapshot()


def stored_switches() -> dict[str, bool] | None:
    """Return the switch values of the database, defaults where a row is absent.

    Returns: None when they could not be read.
    """
    alias = database_alias()
    try:
        model = get_waffle_switch_model()
        query = model._base_manager.using(alias).filter(name__in=list(Switch))
        # A failed read inside a transaction would break it: give it a savepoint of its own.
        if connections[alias].in_atomic_block:
            with transaction.atomic(using=alias):
                rows = dict(query.values_list("name", "active"))
        else:
            rows = dict(query.values_list("name", "active"))
    except (Error, ImproperlyConfigured, LookupError) as error:
        logger.warning("switches could not be read: %s", type(error).__name__)
        return None
    return {**default_switches(strict=False), **rows}


def current_plan() -> Plan:
    """Return the plan in force for one operation. Never raises."""
    forced = _forced.get()
    return plan_of(snapshot.values()) if forced is None else forced


@contextmanager
def forced_phase(phase: Phase) -> Iterator[None]:
    """Make `current_plan` answer with one phase in this context, for tests and rehearsals."""
    token = _forced.set(PLANS[phase])
    try:
        yield
    finally:
        _forced.reset(token)
