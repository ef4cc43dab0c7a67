"""Counting and timing what callers ask for, while performance_monitoring is on."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

from conversations import conf
from conversations.exceptions import StorageUnavailable
from conversations.operations import Outcome
from conversations.reading import Loaded
from conversations.routing import plan_for
from flags import metrics
from flags.phases import Plan, StoreName

Listed = TypeVar("Listed")


def measured_write(operation: str, conversation_id: str, write: Callable[[], Outcome]) -> Outcome:
    """Write; count it for the store that the phase lets decide.

    What the caller did wrong (InvalidState, ConversationNotFound, …) is not counted.
    """
    if not metrics.enabled():
        return write()
    store = _plan(conversation_id).decides
    started = perf_counter()
    try:
        outcome = write()
    except StorageUnavailable:
        metrics.observe(operation, store, perf_counter() - started, error=True)
        raise
    metrics.observe(operation, store, perf_counter() - started, fallback=outcome.fallback)
    return outcome


def measured_read(conversation_id: str, read: Callable[[], Loaded | None]) -> Loaded | None:
    """Load while measuring is on; count it for the store that answered, or should have."""
    started = perf_counter()
    try:
        found = read()
    except StorageUnavailable:
        store = _plan(conversation_id).reads
        metrics.observe("load", store, perf_counter() - started, error=True)
        raise
    seconds = perf_counter() - started
    if found is None:
        metrics.observe("load", _plan(conversation_id).reads, seconds)
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


def _plan(conversation_id: str) -> Plan:
    return plan_for(conversation_id, has_legacy=conf.legacy() is not None)
