"""A gate that looks the same way twice, because it is quick."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flags.gates import GateResult, Step
from flags.phases import Phase

Steps = frozenset[tuple[Phase, Phase]]
# How many ids the record of a refusal names, and how many its message.
NAMED = 20
SAID = 3


def some(ids: Sequence[str]) -> str:
    """Return the first few ids, for a message."""
    return ", ".join([*ids[:SAID], *(["…"] if len(ids) > SAID else [])])


@dataclass(frozen=True, slots=True)
class StandingGate:
    """A gate that looks the same way twice, unless its result does not change in between.

    `once` is for gates that take long, and for gates whose result does not change in a moment:
    writers wait while a gate looks again.
    """

    name: str
    steps: Steps
    finds: Callable[[Step], GateResult]
    rehearsals_only: bool = False
    once: bool = False

    def guards(self, step: Step) -> bool:
        asked = step.rehearsed or not self.rehearsals_only
        return asked and (step.source, step.target) in self.steps

    def look(self, step: Step) -> GateResult:
        return self.finds(step)

    def look_again(self, step: Step, found: GateResult) -> GateResult:
        return found if self.once else self.finds(step)
