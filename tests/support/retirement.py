"""Conversations that a rollout brought to new_only, and their retirement."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from conversations import storage
from conversations.rollout import retirement
from conversations.rollout.sync import sync
from conversations.stores.chunks.store import ChunkStore
from conversations.stores.registry import configured_store
from flags import transitions
from flags.exceptions import TransitionRefused
from flags.phases import Phase
from flags.switches import forced_phase, snapshot
from memory.models import MemoryChunk, MemoryMetadata
from tests.flags.test_switches import set_rows
from tests.machine.oldcode import OldChunks, OldSession
from tests.support.factories import messages, state, texts

CHUNKS: dict[str, Any] = {
    "LEGACY": "memory_chunks",
    "SOAK_TIME": timedelta(0),
    "RETIRE_AFTER": timedelta(0),
}


def enter(phase: Phase) -> None:
    set_rows(phase)
    snapshot.forget()
    transitions.status()


def written(*names: str, user: Any = None) -> None:
    """Write conversations as a rollout does: legacy first, then both, then the tables."""
    for name in names:
        enter(Phase.LEGACY)
        storage.save_state(name, state("one"), user)
    list(sync("tables"))
    enter(Phase.NEW_PRIMARY)
    for name in names:
        storage.append_messages(name, messages("two"))
    enter(Phase.NEW_ONLY)
    for name in names[::2]:
        storage.append_messages(name, messages("three"))


def expected(*names: str) -> dict[str, list[str]]:
    behind = set(names[::2])
    return {name: ["one", "two"] + (["three"] if name in behind else []) for name in names}


def loaded(*names: str) -> dict[str, list[Any]]:
    return {name: texts(storage.load_state(name)) for name in names}


def retired(**options: Any) -> dict[str, str]:
    return {one.conversation_id: one.reason for one in retirement.retire(**options)}


def refused_by(**options: Any) -> list[str]:
    with pytest.raises(TransitionRefused) as refused:
        list(retirement.retire(**options))
    assert not transitions.status().retired
    assert all(result.fix for result in refused.value.results if not result.holds)
    return [result.gate for result in refused.value.results if not result.holds]


def state_chunks() -> int:
    typed = MemoryMetadata.objects.filter(key="type", value="state")
    return MemoryChunk.objects.filter(pk__in=typed.values("chunk_id")).count()


def only_in_legacy(name: str) -> None:
    """What a sync leaves out, and a save in phase legacy by a process that was late."""
    with forced_phase(Phase.LEGACY):
        storage.save_state(name, state("only here"))


def ahead_in_legacy(name: str) -> None:
    with forced_phase(Phase.LEGACY):
        storage.append_messages(name, messages("only here"))


def by_old_code(name: str) -> None:
    chunks = isinstance(configured_store(), ChunkStore)
    (OldChunks() if chunks else OldSession()).write(name, state("one", "two", "old").to_dict())


def everything_stored() -> list[Any]:
    columns = ("pk", "user_id", "content", "embedding", "created_at")
    chunks = list(MemoryChunk.objects.order_by("pk").values_list(*columns))
    said = MemoryMetadata.objects.exclude(key__startswith="store.").order_by("pk")
    return [*chunks, *said.values_list("chunk_id", "key", "value")]
