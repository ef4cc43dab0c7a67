"""Count and time the callers' operations, while performance_monitoring is on."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

from conversations.exceptions import StorageUnavailable
from conversations.reading import Loaded
from conversations.routing.standing import Decision
from conversations.writing.write import Outcome
from flags import metrics
from flags.phases import StoreName

Listed = TypeVar("Listed")


def measured_write(operation: str, decision: Decision, write: Callable[[], Outcome]) -> Outcome:
    """Write while measuring is on; count it for the store that the phase lets decide.

    Errors of the caller (InvalidState, ConversationNotFound, …) are not counted.
    """
    store = decision.plan.decides
    started = perf_counter()
    try:
        outcome = write()
    except StorageUnavailable:
        metrics.observe(operation, store, perf_counter() - started, error=True)
        raise
    metrics.observe(operation, store, perf_counter() - started, fallback=outcome.fallback)
    return outcome


def measured_read(decision: Decision, read: Callable[[], Loaded | None]) -> Loaded | None:
    """Load while measuring is on; count it for the store that answered, or should have."""
    started = perf_counter()
    try:
        found = read()
    except StorageUnavailable:
        metrics.observe("load", decision.plan.reads, perf_counter() - started, error=True)
        raise
    seconds = perf_counter() - started
    if found is None:
        metrics.observe("load", decision.plan.reads, seconds)
    else:
        metrics.observe("load", found.info.store, seconds, stale=found.info.stale)
    return found


def measured_list(read: Callable[[], Listed]) -> Listed:
    """List; count it for the tables, which every list asks first."""
    if not metrics.enabled():
        return read()
    started = perf_counter()
    try:
        found = read()
    except StorageUnavailable:
        metrics.observe("list", StoreName.NORMALIZED, perf_counter() - started, error=True)
        raise
    metrics.observe("list", StoreName.NORMALIZED, perf_counter() - started)
    return found
