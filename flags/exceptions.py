"""Everything `flags` raises. The docstring of a class is its default message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class FlagsError(Exception):
    """The rollout could not do what it was asked; see the subclass for what to do."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or " ".join((type(self).__doc__ or "").split()))


class UnknownSwitch(FlagsError, KeyError):
    """CONVERSATIONS["SWITCHES"] names a switch that does not exist: see flags.phases.Switch."""

    __str__ = Exception.__str__


class FenceBusy(FlagsError):
    """Writes were in flight all the time: the step was not made. Try again when there are fewer."""


class SwitchesUnreadable(FlagsError):
    """The switches could not be read: see whether the database answers, and try again."""


class TransitionRefused(FlagsError):
    """The rollout cannot make this step now: nothing was changed. See `rollout check`.

    `results` is what every gate said, () when it did not come to that.
    """

    def __init__(self, message: str | None = None, *, results: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.results = results


class NoSuchStep(TransitionRefused):
    """There is no such step, whatever the gates say: name a phase and a share that can be."""


class UnknownGate(FlagsError):
    """Only a gate of this step can be waived: `rollout check` names them."""


class UnreadableWaiver(UnknownGate):
    """--waive needs a reason: GATE=REASON."""


class HistoryIsFixed(FlagsError):
    """Transitions are records: they are never changed or deleted. Use `rollout history`."""


class OutOfPatience(FlagsError):
    """The database took too long to be asked everything: ask again when it answers."""
