"""Conversations carried over or imported at once, and another session beside them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from conversations.models import ConversationMessage, ConversationState, ConversationTombstone
from conversations.state import AgentState
from memory.models import MemoryContextItem
from tests.support.factories import state
from tests.support.legacy_schema import old_save

LONG_AGO = datetime(2024, 5, 1, 12, tzinfo=UTC)

postgresql = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="SQLite has one writer at a time"
)


def written_by_old_code(*names: str, at: datetime | None = None, owner: Any = None) -> list[str]:
    for name in names:
        old_save(connection, name, owner, state(name, "b").to_dict(), at)
    return list(names)


def emptied() -> None:
    """Leave nothing of any conversation, no tombstone either."""
    for model in (ConversationMessage, MemoryContextItem, ConversationState, ConversationTombstone):
        model._base_manager.all()._raw_delete("default")


FREE = ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE", "ROLLBACK")


def statements(call: Callable[[], Any]) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        call()
    return [q["sql"] for q in captured.captured_queries if not q["sql"].startswith(FREE)]


def with_items(name: str) -> AgentState:
    return state(name, "b", memory_context=[{"content": name}, {"content": "c"}])


@contextmanager
def meanwhile(work: Callable[[], Any]) -> Iterator[threading.Event]:
    """Have another session do something in a transaction, which it ends when the event is set."""
    done, over = threading.Event(), threading.Event()

    def run() -> None:
        try:
            with transaction.atomic():
                work()
                done.set()
                over.wait(60)
        finally:
            done.set()
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    assert done.wait(60)
    try:
        yield over
    finally:
        over.set()
        thread.join()
