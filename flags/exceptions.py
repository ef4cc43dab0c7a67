"""Everything `flags` raises. The docstring of a class is its default message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flags.texts import escaped


class OwnError(Exception):
    """One of the three apps could not do what it was asked; see the subclass for what to do.

    The text is ours: it quotes no content, and little of an argument (`flags.texts`).
    """

    def __init__(self, message: str | None = None) -> None:
        super().__init__(escaped(message or " ".join((type(self).__doc__ or "").split())))


class FlagsError(OwnError):
    """The rollout could not do what it was asked; see the subclass for what to do."""


class UnknownSwitch(FlagsError, KeyError):
    """CONVERSATIONS["SWITCHES"] names a switch that does not exist: see flags.phases.Switch."""

    __str__ = Exception.__str__


class FenceBusy(FlagsError):
    """Writes were in flight all the time: the step was not made. Try again when there are fewer."""


class SwitchesUnreadable(FlagsError):
    """The switches could not be read: see whether the database answers, and try again."""


class TransitionRefused(FlagsError):
    """The rollout cannot make this step now: nothing was changed. See `rollout check`.

    `results` has the answer of every gate, () if no gate was asked.
    """

    def __init__(self, message: str | None = None, *, results: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.results = results


class NoSuchStep(TransitionRefused):
    """There is no such step: name an adjacent phase, and a share of 0 to 100."""


class UnknownGate(FlagsError):
    """Only a gate of this step can be waived: `rollout check` names them."""


class UnreadableWaiver(UnknownGate):
    """--waive needs a reason: GATE=REASON."""


class HistoryIsFixed(FlagsError):
    """Transitions are records: they are never changed or deleted. Use `rollout history`."""


class TimeIsUp(FlagsError):
    """The database took too long to be asked everything: ask again when it answers."""
