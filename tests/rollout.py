"""Making the steps of a rollout as an operator does, without the waiting."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from flags import processes
from flags.phases import Phase
from flags.transitions import Record, advance, rehearse, status

# Gates that ask for time and traffic ask for none.
EASED: dict[str, Any] = {
    "SOAK_TIME": timedelta(0),
    "FOREIGN_QUIET": timedelta(0),
    "SHADOW_READS": 0,
}


def prepare() -> None:
    """Do what the gates of the next step ask of an operator."""
    phase = status().phase
    if phase == Phase.LEGACY:
        processes.report()
    elif phase == Phase.DUAL_WRITE:
        rehearse()


def step_forward(**options: Any) -> Record:
    """Prepare and make the next step."""
    prepare()
    return advance(**options)
