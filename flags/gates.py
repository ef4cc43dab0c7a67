"""Gates: the conditions of a step of the rollout. `flags` knows no store.

An app that knows stores registers its gates in `ready()`. A gate looks twice: before the fence,
without a limit of time, and inside the fence, where nothing is written and it has a second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from django.db import connections, transaction

from flags.conf import database_alias
from flags.connections import close_if_lost
from flags.phases import Phase
from flags.schema import named
from flags.texts import shown

logger = logging.getLogger("flags")


@dataclass(frozen=True, slots=True)
class Step:
    """A requested step from one phase to the next one, in either direction.

    The end of an emergency is a step from the phase to itself.

    `began` is when the gates began to look, `since` when the present phase was entered (or
    first seen). `rehearsed` says that the step will not be made. `waivers` maps a gate to the
    operator's reason for waiving it; "gate:item" waives one conversation or class of reasons.
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
        """Return the operator's reason for waiving one of the items of a gate, or ""."""
        reasons = (self.waivers.get(f"{gate}:{item}", "") for item in items)
        return next(filter(None, reasons), "")


@dataclass(frozen=True, slots=True)
class GateResult:
    """The finding of a gate. `fix` says what to do if the gate did not pass."""

    gate: str
    passed: bool
    message: str
    fix: str = ""
    # The numbers and ids behind the verdict. The record keeps them, so they are JSON, without
    # content.
    evidence: dict[str, Any] = field(default_factory=dict)
    waived: str = ""

    @property
    def holds(self) -> bool:
        """Whether the step may be made: the gate passed, or the operator waived it."""
        return self.passed or bool(self.waived)


class Gate(Protocol):
    """One condition of one or more steps."""

    @property
    def name(self) -> str:
        """Return its name in `--waive` and in the records."""

    def guards(self, step: Step) -> bool:
        """Whether this step needs this gate."""

    def look(self, step: Step) -> GateResult:
        """Return the present finding. May take long; writes go on meanwhile."""

    def look_again(self, step: Step, found: GateResult) -> GateResult:
        """Return the finding inside the fence, by looking at the changes since `found`."""


_registered: dict[str, Gate] = {}


def register(gate: Gate) -> None:
    """Add a gate to every step that it guards."""
    _registered[gate.name] = gate


def guarding(step: Step) -> Iterator[Gate]:
    """Yield the gates of a step, in the order in which they were registered."""
    return (gate for gate in _registered.values() if gate.guards(step))


def ask(gate: Gate, step: Step) -> GateResult:
    """Return the finding of a gate. A gate that cannot look, because a store is down, refuses."""
    return _ask_safely(gate, lambda: gate.look(step))


def ask_again(gate: Gate, step: Step, found: GateResult) -> GateResult:
    """Return the finding of a gate inside the fence, in a savepoint of its own; see `ask`."""

    def look() -> GateResult:
        with transaction.atomic(using=database_alias()):
            return gate.look_again(step, found)

    return _ask_safely(gate, look)


def _ask_safely(gate: Gate, look: Callable[[], GateResult]) -> GateResult:
    try:
        return look()
    except Exception as error:  # noqa: BLE001 - a gate is an app's, and may raise anything
        kind = named(error)
        # The next gate needs a connection that works.
        close_if_lost(connections[database_alias()], error)
        logger.warning("gate %s could not look: %s", shown(gate.name), kind)
        return GateResult(
            gate.name,
            False,
            f"could not look ({kind}).",
            "See whether both stores answer, and ask again.",
        )
