"""The closing comparison: the same turns through legacy and through the tables, interleaved."""

from __future__ import annotations

import gc
import json
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from config.demo.measures import Figures, Measure, measures
from config.demo.oldcode import old_load, old_save
from config.demo.rollout import flip
from config.demo.sizes import TABLES, compact, size_of
from config.demo.turns import Conversation
from conversations.state import AgentState
from conversations.storage import load_state, save_state
from conversations.stores.chunks.store import ChunkStore
from conversations.stores.normalized import NormalizedStore
from flags.phases import Phase
from flags.switches import current_plan

# About so many turns are compared: whole conversations, none longer than half of this.
TURNS = 400


def _load(conversation_id: str, owner: Any) -> Any:
    return load_state(conversation_id, user_id=owner)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to load and to save, in a phase; `store` names the tables it writes."""

    phase: Phase
    store: str
    load: Callable[[str, Any], Any] = _load
    save: Callable[[str, Any, Any], Any] = save_state

    def take(self) -> None:
        """Set the switches and read them, so that the process knows them as between two flips."""
        if current_plan().phase != self.phase:
            flip(self.phase)
            current_plan()


WAYS: Mapping[str, Way] = {
    "old code": Way(Phase.LEGACY, "legacy", lambda name, _: old_load(name), old_save),
    "legacy": Way(Phase.LEGACY, "legacy"),
    "tables": Way(Phase.NEW_ONLY, "tables"),
}


@dataclass(slots=True)
class Comparison:
    """Plays a sample of the conversations again, under other ids, in every way."""

    conversations: Sequence[Conversation]
    figures: dict[str, Figures] = field(default_factory=lambda: {way: Figures() for way in WAYS})
    problems: list[str] = field(default_factory=list)
    turns: int = 0

    def run(self) -> list[Measure]:
        """Measure, and remove the played conversations. Returns: the lines of the table."""
        sample = sampled(self.conversations)
        longest = max(self.conversations, key=lambda one: len(one.document.messages))
        compact()
        before = {store: size_of(store).bytes for store in TABLES}
        try:
            for conversation in sample:
                self._play(conversation)
            self._weigh(before)
            for name, figures in self.figures.items():
                figures.load_peak, figures.turn_peak = self._peaks(longest, name)
        finally:
            flip(Phase.LEGACY)
            self._remove([*sample, longest])
        return list(measures(self.figures))

    def _id(self, conversation: Conversation, name: str) -> str:
        return f"{conversation.id}-in-{name.replace(' ', '-')}"

    def _play(self, conversation: Conversation) -> None:
        """Play every turn in every way; each way is first equally often."""
        names = list(WAYS)
        for number in range(len(conversation.turns)):
            names = [*names[1:], names[0]]
            for name in names:
                self._turn(conversation, number, name)
        self.turns += len(conversation.turns)
        expected = json.dumps(conversation.state_after(len(conversation.turns)))
        for name, way in WAYS.items():
            way.take()
            state = way.load(self._id(conversation, name), conversation.owner)
            if json.dumps(state.to_dict(with_baseline=False)) != expected:
                self.problems.append(f"{self._id(conversation, name)} does not load as put in")

    def _turn(self, conversation: Conversation, number: int, name: str) -> None:
        key, way, figures = self._id(conversation, name), WAYS[name], self.figures[name]
        way.take()
        # An unmeasured load first: cold caches of the processor after a flip are no cost of a way.
        way.load(key, conversation.owner)
        started = time.perf_counter()
        state = way.load(key, conversation.owner)
        loaded = time.perf_counter()
        conversation.add(state, number)
        added = time.perf_counter()
        way.save(key, state, conversation.owner)
        saved = time.perf_counter()
        figures.loads.append(loaded - started)
        figures.saves.append(saved - added)

    def _weigh(self, before: Mapping[str, int]) -> None:
        """Measure the bytes; ways that share tables wrote the same, so each gets an equal part."""
        for figures, way in ((self.figures[name], way) for name, way in WAYS.items()):
            sharing = sum(other.store == way.store for other in WAYS.values())
            figures.bytes = (size_of(way.store).bytes - before[way.store]) / sharing

    def _peaks(self, conversation: Conversation, name: str) -> tuple[int, int]:
        """Return the peak memory of a load, and of the whole last turn: load, add, save."""
        key, way = f"{self._id(conversation, name)}-peak", WAYS[name]
        way.take()
        last = len(conversation.turns) - 1
        way.save(key, AgentState.from_dict(conversation.state_after(last)), conversation.owner)
        gc.collect()
        tracemalloc.start()
        try:
            state = way.load(key, conversation.owner)
            load_peak = tracemalloc.get_traced_memory()[1]
            conversation.add(state, last)
            way.save(key, state, conversation.owner)
            return load_peak, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def _remove(self, played: Sequence[Conversation]) -> None:
        for conversation in played:
            for name in WAYS:
                key = self._id(conversation, name)
                for store in (ChunkStore(), NormalizedStore()):
                    store.delete(key)
                    store.delete(f"{key}-peak")


def sampled(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Return conversations with about `TURNS` turns together, evenly spread by length."""
    ordered = sorted(conversations, key=lambda one: (-len(one.turns), one.id))
    ordered = [one for one in ordered if len(one.turns) <= TURNS / 2] or ordered[-1:]
    total = sum(len(one.turns) for one in ordered)
    step = max(1, round(total / TURNS))
    return ordered[step // 2 :: step] or ordered[:1]
