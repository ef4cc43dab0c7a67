"""What the closing comparison measures, and the mission's floors. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median


@dataclass(slots=True)
class Figures:
    """What one way needed: seconds of every save and load, and bytes."""

    saves: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    bytes: float = 0
    load_peak: int = 0
    turn_peak: int = 0


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the closing table. `floor` is the mission's least saving, a share."""

    name: str
    unit: str
    floor: float
    values: Mapping[str, float]

    def saving(self, against: str) -> float:
        """Return how much less the tables need, as a share of what another way needs.

        Nothing, where that is less than can be measured: databases grow by whole pages.
        """
        needed = self.values[against]
        return 1 - self.values["tables"] / needed if needed else 0.0

    def met(self, against: str) -> bool:
        """Whether the mission's floor is met."""
        return self.saving(against) > self.floor


# The floors are those of the mission (issue 2, point 7): name, unit, floor, value.
_LINES: tuple[tuple[str, str, float, Callable[[Figures], float]], ...] = (
    ("median save", "ms", 0.20, lambda one: median(one.saves)),
    ("median load", "ms", 0.30, lambda one: median(one.loads)),
    ("peak memory, load", "kB", 0.15, lambda one: one.load_peak),
    ("peak memory, turn", "kB", 0.15, lambda one: one.turn_peak),
    ("bytes", "kB", 0.25, lambda one: one.bytes),
)


def measures(figures: Mapping[str, Figures]) -> Iterator[Measure]:
    """Yield the lines of the closing table."""
    for name, unit, floor, value in _LINES:
        yield Measure(name, unit, floor, {way: value(one) for way, one in figures.items()})
