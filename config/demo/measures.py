"""The measures of the closing comparison, and their floors. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median


@dataclass(slots=True)
class Figures:
    """The figures of one way: seconds of every save and load, and bytes."""

    saves: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    bytes: float = 0
    load_peak: int = 0
    turn_peak: int = 0


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the closing table. `floor` is the least saving that we ask for, a share."""

    name: str
    unit: str
    floor: float
    values: Mapping[str, float]

    def saving(self, against: str) -> float:
        """Return the saving of the tables, as a share of another way's value.

        The saving is 0 if the other value is too small to measure: databases grow by whole pages.
        """
        needed = self.values[against]
        return 1 - self.values["tables"] / needed if needed else 0.0

    def met(self, against: str) -> bool:
        """Whether the saving exceeds the floor."""
        return self.saving(against) > self.floor


# Name, unit, floor, value. README, "Measured", has the same floors.
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
