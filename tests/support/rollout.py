"""Making the steps of a rollout as an operator does, without the waiting."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections

from flags import processes, transitions
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


def elsewhere(call: Callable[[], Any]) -> None:
    """Let another operator do something, on a connection of their own."""

    def run() -> None:
        try:
            call()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(run).result(timeout=60)


def before_the_fence(act: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let another operator act once, when the gates have looked and before the fence closes."""
    looked = transitions._ask_all

    def look(steps: Any) -> Any:
        monkeypatch.setattr(transitions, "_ask_all", looked)
        found = looked(steps)
        elsewhere(act)
        return found

    monkeypatch.setattr(transitions, "_ask_all", look)
