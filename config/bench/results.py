"""What a run has measured, and the bars that its ratios answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from config.bench.timing import Series


@dataclass(frozen=True, slots=True)
class Measure:
    """One operation in one way: milliseconds, and what one call of it cost besides.

    `statements`, `round_trips` (PostgreSQL) and the bytes on the wire are those of one call;
    None where they were not counted.
    """

    workload: str
    operation: str
    way: str
    calls: int
    median_ms: float
    p95_ms: float
    cpu_ms: float | None
    statements: int | None = None
    round_trips: int | None = None
    sent_bytes: int | None = None
    received_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure beside the bar it answers: at most `bar`, or at least where `at_least`.

    None as `bar`: told, and judged by nobody.
    """

    workload: str
    name: str
    value: float
    bar: float | None = None
    at_least: bool = False
    unit: str = "x"

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None where there is none."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.at_least else self.value <= self.bar


@dataclass(slots=True)
class Results:
    """Everything that one workload has measured."""

    workload: str
    measures: list[Measure] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, operation: str, way: str, series: Series, cost: Mapping[str, int] | None) -> None:
        """Add what one operation took in one way."""
        self.measures.append(
            Measure(
                workload=self.workload,
                operation=operation,
                way=way,
                calls=len(series.seconds),
                median_ms=series.median * 1000,
                p95_ms=series.p95 * 1000,
                cpu_ms=median(series.cpu_seconds) * 1000 if series.cpu_seconds else None,
                **(cost or {}),
            )
        )

    def median(self, operation: str, way: str) -> float:
        """Return the median of an operation in one way, in milliseconds."""
        return next(
            measure.median_ms
            for measure in self.measures
            if (measure.operation, measure.way) == (operation, way)
        )

    def compare(self, operation: str, way: str, against: str, *, bar: float | None = None) -> None:
        """Add the ratio of two ways' medians."""
        value = self.median(operation, way) / self.median(operation, against)
        self.say(f"{operation}: {way} / {against}", value, bar=bar)

    def say(self, name: str, value: float, **more: Any) -> None:
        """Add a ratio."""
        self.ratios.append(Ratio(self.workload, name, value, **more))

    def to_json(self) -> dict[str, Any]:
        """Return the results as a JSON object; ratios say whether their bar is met."""
        return {
            "workload": self.workload,
            "measures": [asdict(measure) for measure in self.measures],
            "ratios": [asdict(ratio) | {"met": ratio.met} for ratio in self.ratios],
            "notes": self.notes,
            "problems": self.problems,
        }
