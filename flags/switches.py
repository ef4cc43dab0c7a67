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
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from waffle import get_waffle_switch_model

from flags.conf import SNAPSHOT_SECONDS, database_alias, default_switches
from flags.phases import PLANS, Phase, Plan, Switch, plan_of

logger = logging.getLogger("flags")

# How long a locked switch table may hold up an operation.
MOMENT = "40ms"

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
        """Return the switch values, at most `SNAPSHOT_SECONDS` old.

        Where they could not be read, that is tried again only then: a try may take a moment.
        """
        if time.monotonic() - self._read_at >= SNAPSHOT_SECONDS:
            with self._lock:
                started = time.monotonic()
                values = stored_switches()
                self._values = self._values if values is None else values
                self._read_at = started
        return default_switches(strict=False) if self._values is None else self._values


snapshot = Snapshot()


def stored_switches() -> dict[str, bool] | None:
    """Return the switch values of the database, defaults where a row is absent.

    Returns: None when they could not be read.
    """
    alias = database_alias()
    inside = connections[alias].in_atomic_block
    try:
        # A failed read inside a transaction would break it: give it a savepoint of its own.
        with transaction.atomic(using=alias) if inside else nullcontext():
            rows = _rows(connections[alias])
    except (Error, ImproperlyConfigured, LookupError) as error:
        logger.warning("switches could not be read: %s", type(error).__name__)
        return None
    return {**default_switches(strict=False), **rows}


def _rows(connection: BaseDatabaseWrapper) -> dict[str, bool]:
    """Read the switches, and wait for no lock on their table longer than a moment."""
    model = get_waffle_switch_model()
    table = connection.ops.quote_name(model._meta.db_table)
    names = ", ".join(f"'{switch}'" for switch in Switch)
    select = f"SELECT name, active FROM {table} WHERE name IN ({names})"
    before = 0
    # One round trip, in which the patience of a transaction around it is restored. psycopg
    # prepares no statement that is several, unless it is told to prepare every one at once.
    if connection.vendor == "postgresql" and _prepares(connection) != 0:
        select, before = f"{_HURRY}; {select}; {_REST}", 2
    with connection.cursor() as cursor:
        cursor.execute(select)
        for _ in range(before):
            cursor.nextset()
        return {name: bool(active) for name, active in cursor.fetchall()}


def _prepares(connection: BaseDatabaseWrapper) -> int | None:
    """Return after how many executions psycopg prepares a statement; None for never."""
    connection.ensure_connection()
    threshold: int | None = connection.connection.prepare_threshold
    return threshold


_HURRY = (
    "SELECT set_config('flags.lock_timeout', current_setting('lock_timeout'), true);"
    f" SELECT set_config('lock_timeout', '{MOMENT}', true)"
)
_REST = "SELECT set_config('lock_timeout', current_setting('flags.lock_timeout'), true)"


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
