"""Gates: what has to hold before the rollout makes a step. `flags` knows no store.

An app that does registers its gates in `ready()`. A gate looks twice: before the fence, where
it may take its time, and inside it, where nothing is being written and it has a second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from django.db import transaction

from flags.conf import database_alias
from flags.phases import Phase

logger = logging.getLogger("flags")


@dataclass(frozen=True, slots=True)
class Step:
    """A step that is asked for: from one phase to the next one, either way.

    The end of an emergency is a step from the phase to itself.

    `began` is when the gates began to look, `since` when the present phase was entered (or
    first seen). `rehearsed` says that the step is not going to be made. `waivers` has why somebody
    answers for a gate, or, as "gate:item", for one conversation or class of reasons of it.
    """

    source: Phase
    target: Phase
    began: datetime
    since: datetime
    rehearsed: bool = False
    waivers: Mapping[str, str] = field(default_factory=dict)

    @property
    def forwards(self) -> bool:
        """Whether the step leads towards new_only."""
        return self.target > self.source

    def waiver(self, gate: str, items: Iterable[str]) -> str:
        """Return why somebody answers for one of the items of a gate, or ""."""
        reasons = (self.waivers.get(f"{gate}:{item}", "") for item in items)
        return next(filter(None, reasons), "")


@dataclass(frozen=True, slots=True)
class GateResult:
    """What a gate found. `fix` says what to do when it did not pass."""

    gate: str
    passed: bool
    message: str
    fix: str = ""
    # Numbers and ids that the verdict rests on; for the record, so JSON and without content.
    evidence: dict[str, Any] = field(default_factory=dict)
    waived: str = ""

    @property
    def holds(self) -> bool:
        """Whether the step may be made: the gate passed, or somebody answers for it."""
        return self.passed or bool(self.waived)


class Gate(Protocol):
    """One condition of one or more steps."""

    @property
    def name(self) -> str:
        """Return what `--waive` and the records call it."""

    def guards(self, step: Step) -> bool:
        """Whether this gate has a say in this step."""

    def look(self, step: Step) -> GateResult:
        """Return what holds now. May take long; writes go on meanwhile."""

    def look_again(self, step: Step, found: GateResult) -> GateResult:
        """Return what holds inside the fence, given what `look` found: only what changed since."""


_registered: dict[str, Gate] = {}


def register(gate: Gate) -> None:
    """Let a gate have its say in every step that it guards."""
    _registered[gate.name] = gate


def guarding(step: Step) -> Iterator[Gate]:
    """Yield the gates of a step, in the order in which they were registered."""
    return (gate for gate in _registered.values() if gate.guards(step))


def looked(gate: Gate, step: Step) -> GateResult:
    """Return what a gate finds. One that cannot look, because a store is down, refuses."""
    return _found(gate, lambda: gate.look(step))


def looked_again(gate: Gate, step: Step, found: GateResult) -> GateResult:
    """Return what a gate finds inside the fence, as `looked` does, in a savepoint of its own."""

    def look() -> GateResult:
        with transaction.atomic(using=database_alias()):
            return gate.look_again(step, found)

    return _found(gate, look)


def _found(gate: Gate, look: Callable[[], GateResult]) -> GateResult:
    try:
        return look()
    except Exception as error:  # noqa: BLE001 - a gate is an app's, and may raise anything
        kind = type(error).__name__
        logger.warning("gate %s could not look: %s", gate.name, kind)
        return GateResult(
            gate.name,
            False,
            f"could not look ({kind}).",
            "See whether both stores answer, and ask again.",
        )
