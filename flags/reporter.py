"""One thread per process that reports the process and writes its measures, every few seconds.

The thread begins with the first measured operation, so after every fork. It ends when
performance_monitoring is off. It has a connection of its own, open only while it writes, and
never touches a caller's transaction.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from django.db import Error, InterfaceError, OperationalError, connections

from flags.conf import database_alias
from flags.connections import close_if_lost
from flags.schema import named
from flags.switches import monitored

logger = logging.getLogger("flags")

BEAT_SECONDS = 3.0
# How long an ending process waits for its last report.
LAST_BEAT_SECONDS = 6.0
HOUR_SECONDS = 3600.0
# More waiting records than this are dropped, to bound memory; the log says so.
MOST_WAITING = 1000

Work = Callable[[], object]

_every_beat: list[Work] = []
_every_hour: list[Work] = []
_at_end: list[Work] = []
_on_fork: list[Work] = []
_waiting: deque[Work] = deque()
_thread: threading.Thread | None = None
_stop = threading.Event()
_starting = threading.Lock()
# Held while the thread's connection is open, because no child may inherit it. In the child, SQLite
# would never release its locks, and PostgreSQL's socket would be shared.
_connected = threading.Lock()
# By thread: two threads may fork at once, and one of them may have waited in vain.
_forking = threading.local()
_failing = False
_hour_began = float("-inf")


def every_beat(work: Work) -> None:
    """Register work for every beat, when the process reports."""
    _every_beat.append(work)


def every_hour(work: Work) -> None:
    """Register work for once an hour, in each process."""
    _every_hour.append(work)


def at_end(work: Work) -> None:
    """Register work for the end, when the process exits or monitoring is turned off."""
    _at_end.append(work)


def on_fork(work: Work) -> None:
    """Register work for a forked child, before anything else."""
    _on_fork.append(work)


def defer(work: Work) -> None:
    """Let the monitor do the work at its next beat, outside the caller's transaction."""
    ensure()
    if len(_waiting) >= MOST_WAITING:
        logger.warning("the monitor is behind: a record was dropped")
        return
    _waiting.append(work)


def ensure() -> None:
    """Start the thread of this process, if it does not run."""
    global _thread
    if _thread is not None and _thread.is_alive():
        return
    with _starting:
        if _thread is None or not _thread.is_alive():
            _stop.clear()
            _thread = threading.Thread(target=_run, name="conversations-monitor", daemon=True)
            _thread.start()


def stop() -> None:
    """Write the last measures, sign off, and end; for clean exits and for tests."""
    thread = _thread
    if thread is None or not thread.is_alive():
        return
    _stop.set()
    thread.join(LAST_BEAT_SECONDS)


def beat() -> None:
    """Report this process and write its measures, now and on this thread's connection.

    Raises: the first error of the database, after all work was tried.
    """
    failures = [_failure(work) for work in (*_every_beat, _do_deferred, _do_hourly)]
    for failure in failures:
        if failure is not None:
            raise failure


def _failure(work: Work) -> Error | None:
    """Do one piece of work and return its failure, so that the next piece is done too."""
    try:
        work()
    except Error as error:
        # The next piece of work, and the caller, need a new connection.
        close_if_lost(connections[database_alias()], error)
        return error
    return None


def _do_deferred() -> None:
    while _waiting:
        try:
            _waiting[0]()
        except (OperationalError, InterfaceError):
            # The database does not answer: the next beat tries again.
            raise
        except Error as error:
            logger.warning("a record that cannot be written was dropped: %s", named(error))
        _waiting.popleft()


def _do_hourly() -> None:
    global _hour_began
    if time.monotonic() - _hour_began >= HOUR_SECONDS:
        for work in _every_hour:
            work()
        _hour_began = time.monotonic()


def _run() -> None:
    while not _stop.is_set() and monitored():
        _guarded(beat)
        _stop.wait(BEAT_SECONDS)
    _guarded(beat)
    _guarded(_sign_off)


def _sign_off() -> None:
    for work in _at_end:
        work()


def _guarded(work: Work) -> None:
    """Do the monitor's work; a database that does not answer does not end the thread.

    Unwritten records are kept, or are not needed. The log names the first failure only.
    """
    global _failing
    with _connected:
        try:
            work()
            _failing = False
        except Error as error:
            if not _failing:
                logger.warning("monitoring is interrupted: %s", named(error))
            _failing = True
        finally:
            connections[database_alias()].close()


def _before_fork() -> None:
    # A hanging database delays a fork no longer than this.
    _forking.held = _connected.acquire(timeout=BEAT_SECONDS)


def _after_fork() -> None:
    if _forking.held:
        _connected.release()


def _forked() -> None:
    """Begin anew in a child: it has none of its parent's threads and none of their records."""
    global _thread, _starting, _connected, _stop
    _thread, _stop = None, threading.Event()
    _starting, _connected = threading.Lock(), threading.Lock()
    _waiting.clear()
    for work in _on_fork:
        work()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_forked)
atexit.register(stop)
