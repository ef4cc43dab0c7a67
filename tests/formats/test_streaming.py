"""Exports, imports, syncs and verifications take memory by the largest conversation, not by all."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection

from conversations import formats
from conversations.models import (
    ConversationMessage,
    ConversationState,
    SyncBatch,
    SyncRun,
)
from conversations.rollout.sync import runs
from conversations.rollout.verification import runs as verification_runs, verify
from conversations.routing import ids
from conversations.state import AgentState
from memory.models import MemoryChunk, MemoryContextItem, MemoryMetadata
from tests.support.legacy_schema import old_save

pytestmark = [pytest.mark.django_db, pytest.mark.long]

FEW, MANY = 30, 60
AHEAD = 5
# A conversation of this many messages, each of this many characters, is 100 kB.
MESSAGES, LENGTH = 20, 5_000
# What grows by a few bytes a conversation: an id, a count, a dict that doubles.
SLACK = 60_000


@pytest.fixture(autouse=True)
def _chunks(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    monkeypatch.setattr(formats, "TOGETHER", AHEAD)
    monkeypatch.setattr(ids, "TOGETHER", AHEAD)


def content(number: int, *, messages: int = MESSAGES) -> dict[str, Any]:
    history = [
        {"role": "user", "content": f"{number}-{place}".ljust(LENGTH)} for place in range(messages)
    ]
    return AgentState(
        conversation_history=history, memory_context=[{"content": str(number)}]
    ).to_dict()


def in_legacy(count: int) -> None:
    for number in range(count):
        old_save(connection, f"c{number:03}", None, content(number), keep=None)


def in_tables(count: int) -> None:
    in_legacy(count)
    list(runs.work(runs.begin("tables")))


def emptied() -> None:
    for model in (
        MemoryMetadata,
        MemoryChunk,
        MemoryContextItem,
        ConversationMessage,
        ConversationState,
        SyncBatch,
        SyncRun,
    ):
        model._base_manager.all()._raw_delete("default")


def peak_of(call: Callable[[], Any]) -> int:
    """Return the most bytes that were held at once, beyond what was held before."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def exhausted(results: Iterator[Any]) -> None:
    for _ in results:
        pass


def exporting(folder: Path) -> None:
    call_command("conversations", "export", str(folder / "out.jsonl"), stdout=io.StringIO())


def importing(folder: Path) -> None:
    call_command("conversations", "import", str(folder / "in.jsonl"), stdout=io.StringIO())


def syncing(folder: Path) -> None:
    exhausted(runs.work(runs.begin("tables")))


def verifying(folder: Path) -> None:
    exhausted(verify())


def verifying_at_scale(folder: Path) -> None:
    exhausted(verification_runs.work(verification_runs.begin()))


def before_import(count: int, folder: Path) -> None:
    in_tables(count)
    call_command("conversations", "export", str(folder / "in.jsonl"), stdout=io.StringIO())
    emptied()


WALKS: list[Any] = [
    (exporting, lambda count, folder: in_tables(count)),
    (importing, before_import),
    (syncing, lambda count, folder: in_legacy(count)),
    (verifying, lambda count, folder: in_tables(count)),
    (verifying_at_scale, lambda count, folder: in_tables(count)),
]


@pytest.mark.parametrize(("walk", "prepare"), WALKS, ids=lambda one: getattr(one, "__name__", ""))
def test_twice_as_many_conversations_take_no_more_memory(
    walk: Any, prepare: Any, tmp_path: Path
) -> None:
    peaks = []
    # The first one warms what is cached once.
    for count in (AHEAD, FEW, MANY):
        prepare(count, tmp_path)
        peaks.append(peak_of(lambda: walk(tmp_path)))
        assert ConversationState.rows.count() == count
        emptied()
    assert peaks[2] < peaks[1] * 1.1 + SLACK


@pytest.mark.parametrize(
    ("walk", "prepare", "times"),
    [(*WALKS[0], 5), (*WALKS[1], 5), (*WALKS[2], 5), (*WALKS[3], 4)],
    ids=["export", "import", "sync", "verify"],
)
def test_one_large_conversation_is_in_memory_a_few_times_over(
    walk: Any, prepare: Any, times: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line, and a blob, are one JSON text: it is there whole, with what is made of it."""
    prepare(1, tmp_path)
    walk(tmp_path)
    emptied()
    large = content(0, messages=30 * MESSAGES)
    monkeypatch.setattr(f"{__name__}.content", lambda number: large)
    prepare(1, tmp_path)
    size = 30 * MESSAGES * LENGTH
    assert peak_of(lambda: walk(tmp_path)) < times * size
