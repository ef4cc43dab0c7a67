"""Reading the switches and the canary: one query, or a snapshot at most half a second old.

Waffle's own cache is never used: another process sees a flip up to 300 seconds late, and
`QuerySet.update` never flushes it. Reading never raises and never breaks the caller's
transaction. After an error the last known plan holds, or else the static default.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import Error, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from waffle import get_waffle_sample_model, get_waffle_switch_model

from flags.conf import (
    SNAPSHOT_SECONDS,
    conversations_settings,
    database_alias,
    default_switches,
)
from flags.connections import managed, reopened
from flags.phases import CANARY, EVERYTHING, PLANS, Phase, Plan, Switch, lowered, plan_of
from flags.sampling import share_of
from flags.schema import named

logger = logging.getLogger("flags")

T = TypeVar("T")

# How long a locked switch table may hold up an operation.
MOMENT = "40ms"

_forced: ContextVar[Plan | None] = ContextVar("flags_forced_plan", default=None)


@dataclass(frozen=True)
class Settings:
    """The settings in the database: every switch, and the percentage of the canary.

    They may be `age` seconds old at the time of the read: the view of an old transaction.
    """

    switches: Mapping[str, bool]
    canary: float = EVERYTHING
    age: float = field(default=0.0, compare=False)

    @cached_property
    def plan(self) -> Plan:
        """Return the plan of the phase, without regard to the canary."""
        return plan_of(self.switches)

    def plan_for(self, conversation_id: str) -> Plan:
        """Return the plan of one conversation."""
        plan = self.plan
        if self.canary >= EVERYTHING or plan.emergency:
            return plan
        return plan if share_of(conversation_id) * EVERYTHING < self.canary else lowered(plan)


class Snapshot:
    """The settings that this process read last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: Settings | None = None
        # As old as the switches.
        self.retired = False
        self._read_at = float("-inf")
        # By thread, because the view of a transaction belongs to its thread.
        self._tried = threading.local()

    def forked(self) -> None:
        """Make a new lock in a child: another thread of the parent may have held the old one."""
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Make the settings old, so that the next operation reads them anew."""
        self._read_at = float("-inf")
        self._tried = threading.local()

    def forget(self) -> None:
        """Forget the settings too, as in a new process."""
        self._known = None
        self.retired = False
        self.clear()

    def settings(self) -> Settings:
        """Return the settings, at most `SNAPSHOT_SECONDS` old.

        After a failed read the next try comes only then, because a try may take a moment. If
        another thread's try takes longer than that, the last known settings hold.
        """
        # The wait is bounded: the reading thread may need the connection that this thread holds.
        if self._is_old() and self._lock.acquire(timeout=self._longest_wait()):
            try:
                # A thread that waited for another thread's read has its answer.
                if self._is_old():
                    self._read()
            finally:
                self._lock.release()
        return Settings(default_switches(strict=False)) if self._known is None else self._known

    def refresh(self) -> bool:
        """Read the settings now. Returns: whether they could be read."""
        with self._lock:
            return self._read()

    def _longest_wait(self) -> float:
        """Return the seconds to wait for another thread's read; -1 waits without a bound."""
        return -1 if self._known is None else SNAPSHOT_SECONDS

    def _is_old(self) -> bool:
        # A thread in a transaction with an old view would read that same view each time.
        newest = max(self._read_at, getattr(self._tried, "at", float("-inf")))
        return time.monotonic() - newest >= SNAPSHOT_SECONDS

    def _read(self) -> bool:
        started = time.monotonic()
        found = try_read_settings()
        # Read after the switches: a process that sees a flip sees the retirement before it, too. If
        # the switches did not answer, the retirement will not either.
        retired = None if found is None else read_retirement()
        if found is None:
            # Threads that waited for a failed read do not try again: each try may take a minute.
            self._read_at = time.monotonic()
            return False
        self._tried.at = started
        if self._known is None or started - found.age >= self._read_at:
            self._known, self._read_at = found, started - found.age
            self.retired = self.retired if retired is None else retired
        return True


snapshot = Snapshot()
os.register_at_fork(after_in_child=snapshot.forked)


def try_read_settings() -> Settings | None:
    """Return the settings of the database, with defaults for absent rows.

    Returns: None if they could not be read; the log says why.
    """
    try:
        return read_settings()
    except UNREADABLE as error:
        logger.warning("switches could not be read: %s", named(error))
        return None


# The errors of reading the switches.
UNREADABLE = (Error, ImproperlyConfigured, LookupError, SynchronousOnlyOperation)


def read_settings() -> Settings:
    """Return the settings of the database. Raises: one of `UNREADABLE`."""
    rows, age = _isolated(_rows)
    canary = next((float(percent) for _, _, percent in rows if percent is not None), EVERYTHING)
    switches = {name: bool(active) for name, active, percent in rows if percent is None}
    return Settings({**default_switches(strict=False), **switches}, canary, age)


def read_retirement() -> bool | None:
    """Return whether legacy is retired, by the latest record of a retirement or restore.

    Returns: None if the record could not be read.
    """
    if not conversations_settings().get("LEGACY"):
        return False
    try:
        found = _isolated(lambda connection: _hurried(connection, _RETIREMENT))
    except (Error, ImproperlyConfigured) as error:
        logger.warning("the retirement could not be read: %s", named(error))
        return None
    return bool(found) and found[0][0] == "retired"


def _isolated(read: Callable[[BaseDatabaseWrapper], T]) -> T:
    """Return the result of a read; the caller's transaction survives a failure.

    A connection that was lost while idle is replaced here, because nothing else may replace it.
    """
    connection = connections[database_alias()]

    def bounded() -> T:
        # A failed read inside a transaction would break it: give it a savepoint of its own.
        inside = managed(connection)
        with transaction.atomic(using=connection.alias) if inside else nullcontext():
            return read(connection)

    return reopened(connection, bounded)


_RETIREMENT = (
    "SELECT kind FROM rollout_transitions WHERE kind IN ('retired', 'restored')"
    " ORDER BY id DESC LIMIT 1"
)


# A transaction may see everything as of its beginning, at any time ago. If the clock was put back,
# the age stays 0: a time in the future would stop all reads until then.
_AGE = (
    "CASE WHEN current_setting('transaction_isolation') IN ('read committed', 'read uncommitted')"
    " THEN 0"
    " ELSE greatest(extract(epoch FROM clock_timestamp() - transaction_timestamp()), 0) END"
)


def _rows(
    connection: BaseDatabaseWrapper,
) -> tuple[list[tuple[str, bool | None, float | None]], float]:
    """Read switches and canary, and the possible age of the view in seconds."""
    switches, samples = (
        connection.ops.quote_name(model._meta.db_table)
        for model in (get_waffle_switch_model(), get_waffle_sample_model())
    )
    names = ", ".join(f"'{switch}'" for switch in Switch)
    select = (
        f"SELECT name, active, NULL FROM {switches} WHERE name IN ({names})"
        f" UNION ALL SELECT name, NULL, percent FROM {samples} WHERE name = '{CANARY}'"
    )
    if connection.vendor != "postgresql":
        # On SQLite, a check warns of transactions that see an old state (IMMEDIATE).
        return _hurried(connection, select), 0.0
    rows = _hurried(connection, f"{select} UNION ALL SELECT NULL, NULL, {_AGE}")
    age = next(float(seconds) for name, _, seconds in rows if name is None)
    return [row for row in rows if row[0] is not None], age


def _hurried(connection: BaseDatabaseWrapper, select: str) -> list[Any]:
    """Return the rows of a SELECT whose wait for a lock is bounded."""
    before = 0
    # One round trip, which also restores the lock_timeout of the transaction around it. psycopg
    # does not prepare several statements in one, unless it prepares each at its first execution.
    if connection.vendor == "postgresql" and _prepares(connection) != 0:
        select, before = f"{_HURRY}; {select}; {_REST}", 2
    with connection.cursor() as cursor:
        cursor.execute(select)
        for _ in range(before):
            cursor.nextset()
        return list(cursor.fetchall())


def _prepares(connection: BaseDatabaseWrapper) -> int | None:
    """Return the number of executions after which psycopg prepares a statement; None for never."""
    connection.ensure_connection()
    threshold: int | None = connection.connection.prepare_threshold
    return threshold


_HURRY = (
    "SELECT set_config('flags.lock_timeout', current_setting('lock_timeout'), true);"
    f" SELECT set_config('lock_timeout', '{MOMENT}', true)"
)
_REST = "SELECT set_config('lock_timeout', current_setting('flags.lock_timeout'), true)"


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look at the switches found: the plan of any conversation, and the retirement."""

    # What `forced_phase` says instead of them.
    settings: Settings | Plan
    retired: bool

    def plan_for(self, conversation_id: str | None) -> Plan:
        """Return the plan of a conversation; without an id, where the phase is in force."""
        settings = self.settings
        if isinstance(settings, Plan):
            return settings
        return settings.plan if conversation_id is None else settings.plan_for(conversation_id)


def look() -> Seen:
    """Look at the switches and the retirement, once for one operation. Never raises."""
    forced = _forced.get()
    # Where a phase is forced, what was not known to be retired is not asked about.
    if forced is None or snapshot.retired:
        settings = snapshot.settings()
        return Seen(settings if forced is None else forced, snapshot.retired)
    return Seen(forced, retired=False)


def current_plan(conversation_id: str | None = None) -> Plan:
    """Return the plan in force for one operation on a conversation. Never raises.

    Without an id, return the plan of the phase, as for a conversation within the canary.
    """
    return look().plan_for(conversation_id)


def last_known() -> Settings:
    """Return the settings that this process read last, else the defaults. Reads nothing."""
    known = snapshot._known
    return Settings(default_switches(strict=False)) if known is None else known


def last_known_retirement() -> bool:
    """Whether legacy was given up, as this process saw it last. Reads nothing."""
    return snapshot.retired


def monitored() -> bool:
    """Whether performance_monitoring is on, by the last read of this process. Reads nothing."""
    known = snapshot._known
    return known is not None and known.switches.get(Switch.PERFORMANCE_MONITORING, False)


@contextmanager
def forced_phase(phase: Phase) -> Iterator[None]:
    """Make `current_plan` answer with one phase in this context, for tests and rehearsals."""
    token = _forced.set(PLANS[phase])
    try:
        yield
    finally:
        _forced.reset(token)
