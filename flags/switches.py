"""Reading the switches and the canary: one query, or a snapshot at most half a second old.

Waffle's own cache is never used: another process sees a flip up to 300 seconds late, and
`QuerySet.update` never flushes it. Reading never raises and never breaks the caller's
transaction; on any error the last known plan holds, else the static default.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

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
from flags.phases import CANARY, EVERYTHING, PLANS, Phase, Plan, Switch, lowered, plan_of
from flags.sampling import share_of

logger = logging.getLogger("flags")

# How long a locked switch table may hold up an operation.
MOMENT = "40ms"

_forced: ContextVar[Plan | None] = ContextVar("flags_forced_plan", default=None)


@dataclass(frozen=True)
class Settings:
    """What the database says: every switch, and for how many percent the phase is in force.

    `age` is for how many seconds it may have said something else by the time it was asked.
    """

    switches: Mapping[str, bool]
    canary: float = EVERYTHING
    age: float = field(default=0.0, compare=False)

    @cached_property
    def plan(self) -> Plan:
        """Return the plan of the phase, leaving the canary aside."""
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
        self._retired = False
        self._read_at = float("-inf")
        # By thread, for the view of one's transaction is nobody else's.
        self._tried = threading.local()

    def forked(self) -> None:
        """Take a lock of its own: in the parent, another thread may have held this one."""
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget the age of the settings, so that the next operation reads them anew."""
        self._read_at = float("-inf")
        self._tried = threading.local()

    def forget(self) -> None:
        """Forget the settings as well, as a new process has none."""
        self._known = None
        self._retired = False
        self.clear()

    def settings(self) -> Settings:
        """Return the settings, at most `SNAPSHOT_SECONDS` old.

        Where they could not be read, that is tried again only then: a try may take a moment.
        Where another thread's try takes longer than that, the last known ones hold.
        """
        # A thread that waits for a connection may wait for the one that this thread holds.
        if self._is_old() and self._lock.acquire(timeout=self._patience()):
            try:
                # Whoever waited for another thread's read has its answer.
                if self._is_old():
                    self._read()
            finally:
                self._lock.release()
        return Settings(default_switches(strict=False)) if self._known is None else self._known

    def refresh(self) -> bool:
        """Read the settings now. Returns: whether they could be read."""
        with self._lock:
            return self._read()

    def _patience(self) -> float:
        """Return for how many seconds to wait for another thread's read; -1 for any time."""
        return -1 if self._known is None else SNAPSHOT_SECONDS

    def _is_old(self) -> bool:
        # A thread in a transaction with an old view would find that, again, each time.
        newest = max(self._read_at, getattr(self._tried, "at", float("-inf")))
        return time.monotonic() - newest >= SNAPSHOT_SECONDS

    def _read(self) -> bool:
        started = time.monotonic()
        found = stored_settings()
        # After the switches: whoever sees a flip that was made behind a retirement sees
        # the retirement as well. Where those did not answer, this will not.
        retired = None if found is None else stored_retirement()
        if found is None:
            # Whoever waited for a read that failed does not try again: each may take a minute.
            self._read_at = time.monotonic()
            return False
        self._tried.at = started
        if self._known is None or started - found.age >= self._read_at:
            self._known, self._read_at = found, started - found.age
            self._retired = self._retired if retired is None else retired
        return True

    def retired(self) -> bool:
        """Return whether legacy is retired, as old as the switches.

        Where a phase is forced, one that was not known to be retired is not asked about.
        """
        if _forced.get() is None or self._retired:
            self.settings()
        return self._retired


snapshot = Snapshot()
os.register_at_fork(after_in_child=snapshot.forked)


def stored_settings() -> Settings | None:
    """Return the settings of the database, defaults where a row is absent.

    Returns: None when they could not be read.
    """
    alias = database_alias()
    inside = connections[alias].in_atomic_block
    try:
        # A failed read inside a transaction would break it: give it a savepoint of its own.
        with transaction.atomic(using=alias) if inside else nullcontext():
            rows, age = _rows(connections[alias])
    except (Error, ImproperlyConfigured, LookupError, SynchronousOnlyOperation) as error:
        logger.warning("switches could not be read: %s", type(error).__name__)
        return None
    canary = next((float(percent) for _, _, percent in rows if percent is not None), EVERYTHING)
    switches = {name: bool(active) for name, active, percent in rows if percent is None}
    return Settings({**default_switches(strict=False), **switches}, canary, age)


def stored_retirement() -> bool | None:
    """Return whether the latest record of it says that legacy is retired.

    Returns: None when that could not be read.
    """
    if not conversations_settings().get("LEGACY"):
        return False
    alias = database_alias()
    inside = connections[alias].in_atomic_block
    try:
        with transaction.atomic(using=alias) if inside else nullcontext():
            found = _hurried(connections[alias], _RETIREMENT)
    except (Error, ImproperlyConfigured) as error:
        logger.warning("the retirement could not be read: %s", type(error).__name__)
        return None
    return bool(found) and found[0][0] == "retired"


_RETIREMENT = (
    "SELECT kind FROM rollout_transitions WHERE kind IN ('retired', 'restored')"
    " ORDER BY id DESC LIMIT 1"
)


# A transaction may see everything as it was when it began, however long ago that is. A clock that
# was put back gives no time in the future, until which nothing would be read.
_AGE = (
    "CASE WHEN current_setting('transaction_isolation') IN ('read committed', 'read uncommitted')"
    " THEN 0"
    " ELSE greatest(extract(epoch FROM clock_timestamp() - transaction_timestamp()), 0) END"
)


def _rows(
    connection: BaseDatabaseWrapper,
) -> tuple[list[tuple[str, bool | None, float | None]], float]:
    """Read switches and canary, and how old what is seen may be, in seconds."""
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
        # On SQLite, transactions that see an old state are warned of by a check (IMMEDIATE).
        return _hurried(connection, select), 0.0
    rows = _hurried(connection, f"{select} UNION ALL SELECT NULL, NULL, {_AGE}")
    age = next(float(seconds) for name, _, seconds in rows if name is None)
    return [row for row in rows if row[0] is not None], age


def _hurried(connection: BaseDatabaseWrapper, select: str) -> list[Any]:
    """Return the rows of a SELECT that waits for no lock longer than a moment."""
    before = 0
    # One round trip, in which the patience of a transaction around it is restored. psycopg
    # prepares no statement that is several, unless it is told to prepare every one at once.
    if connection.vendor == "postgresql" and _prepares(connection) != 0:
        select, before = f"{_HURRY}; {select}; {_REST}", 2
    with connection.cursor() as cursor:
        cursor.execute(select)
        for _ in range(before):
            cursor.nextset()
        return list(cursor.fetchall())


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


def current_plan(conversation_id: str | None = None) -> Plan:
    """Return the plan in force for one operation on a conversation. Never raises.

    Without an id, that of the conversations for which the phase is in force.
    """
    forced = _forced.get()
    if forced is not None:
        return forced
    settings = snapshot.settings()
    return settings.plan if conversation_id is None else settings.plan_for(conversation_id)


def last_known() -> Settings:
    """Return the settings as this process saw them last, else the defaults. Reads nothing."""
    known = snapshot._known
    return Settings(default_switches(strict=False)) if known is None else known


def last_known_retirement() -> bool:
    """Whether legacy was given up, as this process saw it last. Reads nothing."""
    return snapshot._retired


def monitored() -> bool:
    """Whether performance_monitoring is on, as this process saw it last. Reads nothing."""
    known = snapshot._known
    return known is not None and known.switches.get(Switch.PERFORMANCE_MONITORING, False)


def legacy_is_retired() -> bool:
    """Whether legacy was given up; see `flags.retirement`. Never raises."""
    return snapshot.retired()


@contextmanager
def forced_phase(phase: Phase) -> Iterator[None]:
    """Make `current_plan` answer with one phase in this context, for tests and rehearsals."""
    token = _forced.set(PLANS[phase])
    try:
        yield
    finally:
        _forced.reset(token)
