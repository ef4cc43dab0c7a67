"""What one run of the bench was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from config.bench.material import Material


def _silent(line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, slots=True)
class Run:
    """What workloads are given. `owner` is the user whose conversations are measured.

    `prepare` lets the public API prepare statements; `messages` and `conversations` are how many
    the workload scale makes, `writers` are those of concurrent; `say` tells of progress.
    """

    material: Material
    owner: Any
    rounds: int
    seed: int
    prepare: bool = False
    messages: int = 1_000_000
    conversations: int = 50_000
    writers: int | None = None
    say: Callable[[str], Any] = _silent
