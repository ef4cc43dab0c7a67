"""Playing the rollout: from legacy to the tables and back, with turns saved at every step."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from django.db import transaction
from waffle import get_waffle_switch_model

from config.demo.sizes import TABLES, Size, clocked, size_of
from config.demo.turns import Conversation
from conversations.rollout.sync import Action, sync
from conversations.rollout.verification import verify
from conversations.storage import load_state
from flags.phases import Phase, switches_for

# The phases after the first one, there and back; each saves turns that the first one left out.
THERE = (Phase.DUAL_WRITE, Phase.NEW_READS, Phase.NEW_PRIMARY, Phase.NEW_ONLY)
BACK = (Phase.NEW_PRIMARY, Phase.NEW_READS, Phase.DUAL_WRITE, Phase.LEGACY)
HELD_BACK = (len(THERE) + len(BACK)) // 2
# A description of the step, and its problems.
Act = tuple[str, list[str]]


@dataclass(frozen=True, slots=True)
class Step:
    """One played step: its description, the size of each store behind it, and its problems."""

    name: str
    done: str
    sizes: dict[str, Size]
    seconds: dict[str, float]
    problems: tuple[str, ...] = ()


@dataclass(slots=True)
class Rollout:
    """Plays the steps over conversations, and counts the played turns of each.

    In each phase every other conversation is saved, so that a sync has conversations to carry over.
    """

    conversations: Sequence[Conversation]
    played: dict[str, int] = field(default_factory=dict)
    phases: int = 0

    def steps(self) -> Iterator[Step]:
        """Play and yield the steps. After each, load and compare every conversation."""
        yield self._step("legacy", self._fill)
        for phase in THERE:
            yield self._step(phase.label, self._play_one_more, phase)
            if phase == Phase.DUAL_WRITE:
                yield self._step("sync --to tables", lambda: _synced("tables"))
                yield self._step("verify", _verified)
        for phase in BACK:
            yield self._step(f"back to {phase.label}", self._play_one_more, phase)
            if phase == Phase.NEW_PRIMARY:
                yield self._step("sync --to legacy", lambda: _synced("legacy"))
        yield self._step("verify", _verified)

    def _step(self, name: str, act: Callable[[], Act], phase: Phase | None = None) -> Step:
        if phase is not None:
            flip(phase)
        with clocked() as clock:
            done, problems = act()
            problems += self._unequal()
        sizes = {store: size_of(store) for store in TABLES}
        return Step(name, done, sizes, clock.seconds, tuple(problems))

    def _fill(self) -> Act:
        """Play every conversation, without a few turns for the later steps."""
        flip(Phase.LEGACY)
        turns = 0
        for conversation in self.conversations:
            kept = min(HELD_BACK, len(conversation.turns) // 2)
            for number in range(len(conversation.turns) - kept):
                conversation.play(number)
            self.played[conversation.id] = len(conversation.turns) - kept
            turns += self.played[conversation.id]
        return f"{turns} turns", []

    def _play_one_more(self) -> Act:
        turns = 0
        self.phases += 1
        for conversation in self.conversations[self.phases % 2 :: 2]:
            number = self.played[conversation.id]
            if number < len(conversation.turns):
                conversation.play(number)
                self.played[conversation.id] = number + 1
                turns += 1
        return f"{turns} turns", []

    def _unequal(self) -> list[str]:
        """Return a line for every conversation whose load differs from its turns."""
        lines = []
        for conversation in self.conversations:
            state = load_state(conversation.id, user_id=conversation.owner)
            expected = conversation.state_after(self.played[conversation.id])
            if json.dumps(state.to_dict()) != json.dumps(expected):
                lines.append(f"{conversation.id} does not load as it was put in")
        return lines


def flip(phase: Phase) -> None:
    """Set waffle's switches, in the database, to those of a phase."""
    model = get_waffle_switch_model()
    with transaction.atomic():
        for name, active in switches_for(phase).items():
            switch, _ = model._base_manager.get_or_create(name=name)
            switch.active = active
            switch.save()


def _synced(to: str) -> Act:
    counts: Counter[str] = Counter()
    problems = []
    for found in sync(to):
        counts[found.action] += 1
        if found.action == Action.FAILED:
            problems.append(f"{found.conversation_id} was not synced: {found.reason}")
    again = sum(found.action != Action.UNCHANGED for found in sync(to))
    if again:
        problems.append(f"a second sync did something to {again} conversations")
    return ", ".join(f"{count} {action}" for action, count in counts.items()), problems


def _verified() -> Act:
    counts: Counter[str] = Counter()
    problems = []
    for found in verify():
        counts[found.kinds[0]] += 1
        if found.mismatched or found.failed:
            problems.append(f"{found.conversation_id}: {', '.join(found.kinds)}")
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return f"{len(problems)} mismatches; {summary}", problems
