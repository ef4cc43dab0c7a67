"""One thread per process that reports it and writes what it measured, every few seconds.

It begins with the first operation that is measured, so behind every fork, and ends when
performance_monitoring is off. It has one connection of its own, open only while it writes;
nothing that it does touches a caller's transaction.
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
from flags.switches import monitored

logger = logging.getLogger("flags")

BEAT_SECONDS = 3.0
HOUR_SECONDS = 3600.0
# What waits to be written beyond this is dropped: memory is bounded, and the log says so.
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
# Held while the thread's connection is open: no child may inherit one. SQLite would count its
# locks in the child for ever, and PostgreSQL's socket would be shared.
_connected = threading.Lock()
# By thread: two may fork at once, of which one waited in vain.
_forking = threading.local()
_failing = False
_hour_began = float("-inf")


def every_beat(work: Work) -> None:
    """Do something each time the process reports."""
    _every_beat.append(work)


def every_hour(work: Work) -> None:
    """Do something once an hour, in whichever process."""
    _every_hour.append(work)


def at_end(work: Work) -> None:
    """Do something last, when the process exits or monitoring is turned off."""
    _at_end.append(work)


def on_fork(work: Work) -> None:
    """Do something in a child that was forked, before anything else."""
    _on_fork.append(work)


def defer(work: Work) -> None:
    """Let the monitor do something at its next beat, outside the caller's transaction."""
    ensure()
    if len(_waiting) >= MOST_WAITING:
        logger.warning("the monitor is behind: a record was dropped")
        return
    _waiting.append(work)


def ensure() -> None:
    """Begin to monitor this process, if that has not begun."""
    global _thread
    if _thread is not None and _thread.is_alive():
        return
    with _starting:
        if _thread is None or not _thread.is_alive():
            _stop.clear()
            _thread = threading.Thread(target=_run, name="conversations-monitor", daemon=True)
            _thread.start()


def stop() -> None:
    """Write what is left, sign off, and end; for clean exits and for tests."""
    thread = _thread
    if thread is None or not thread.is_alive():
        return
    _stop.set()
    thread.join(2 * BEAT_SECONDS)


def beat() -> None:
    """Report this process and write what it measured, now and on this thread's connection.

    Raises: the first error of the database, after everything was tried.
    """
    failures = [_failure(work) for work in (*_every_beat, _do_deferred, _do_hourly)]
    for failure in failures:
        if failure is not None:
            raise failure


def _failure(work: Work) -> Error | None:
    """Do one thing; what fails keeps nothing else from being done."""
    try:
        work()
    except Error as error:
        return error
    return None


def _do_deferred() -> None:
    while _waiting:
        try:
            _waiting[0]()
        except (OperationalError, InterfaceError):
            # The database does not answer: it is tried again at the next beat.
            raise
        except Error as error:
            logger.warning("a record that cannot be written was dropped: %s", type(error).__name__)
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
    """Do the monitor's work; a database that does not answer is no reason to end.

    What was not written is kept, or can be done without; the log says once that it began.
    """
    global _failing
    with _connected:
        try:
            work()
            _failing = False
        except Error as error:
            if not _failing:
                logger.warning("monitoring is interrupted: %s", type(error).__name__)
            _failing = True
        finally:
            connections[database_alias()].close()


def _before_fork() -> None:
    # A database that hangs holds up no fork for longer.
    _forking.held = _connected.acquire(timeout=BEAT_SECONDS)


def _after_fork() -> None:
    if _forking.held:
        _connected.release()


def _forked() -> None:
    """A child has none of its parent's threads, and none of what they were to write."""
    global _thread, _starting, _connected, _stop
    _thread, _stop = None, threading.Event()
    _starting, _connected = threading.Lock(), threading.Lock()
    _waiting.clear()
    for work in _on_fork:
        work()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_forked)
atexit.register(stop)
