"""What a workload has measured, and the bars that its figures answer. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from benchmarks.timing import Result, Series

# At most, on PostgreSQL and on SQLite; None where a database has no bar.
Bars = Mapping[str, tuple[float | None, float | None]]
_VENDORS = ("postgresql", "sqlite")
COSTS = ("statements", "round_trips", "sent_bytes", "received_bytes")


@dataclass(frozen=True, slots=True)
class Figure:
    """A number beside the bar it answers: at most `bar`, or at least where `at_least`.

    Without a bar it is told, and not judged.
    """

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
    """Everything that one workload has measured: series of calls, and figures made of them.

    `costs` are the statements, round trips (PostgreSQL) and bytes on the wire of one call.
    `contenders` says in which order they are told, if not in that of their first turns.
    """

    workload: str
    bars: Bars = field(default_factory=dict)
    vendor: str = "postgresql"
    contenders: list[str] = field(default_factory=list)
    series: dict[tuple[str, str], Series] = field(default_factory=lambda: defaultdict(Series))
    costs: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def timed(
        self, operation: str, name: str, call: Callable[..., Result], *args: Any, **named: Any
    ) -> Result:
        """Call, and add what that took to an operation of a contender."""
        return self.series[operation, name].timed(call, *args, **named)

    def median(self, operation: str, name: str) -> float:
        """Return the median of an operation of a contender, in milliseconds."""
        return self.series[operation, name].median * 1000

    def compare(self, operation: str, name: str, against: str, *, bar: str = "") -> None:
        """Tell the ratio of two contenders' medians, if the second one took part."""
        if (operation, against) in self.series:
            value = self.median(operation, name) / self.median(operation, against)
            self.tell(f"{operation}: {name} / {against}", value, bar=bar)

    def tell(self, name: str, value: float, *, bar: str = "", **more: Any) -> None:
        """Add a figure; `bar` names one of the workload's bars."""
        limit = self.bars[bar][_VENDORS.index(self.vendor)] if bar else None
        self.figures.append(Figure(name, value, limit, **more))

    def measures(self) -> Iterator[dict[str, Any]]:
        """Yield a line for each operation and contender: milliseconds, and what one call cost."""
        operations = dict.fromkeys(operation for operation, _ in self.series)
        names = dict.fromkeys((*self.contenders, *(name for _, name in self.series)))
        for key in ((operation, name) for operation in operations for name in names):
            if key in self.series:
                series, cost = self.series[key], self.costs.get(key, {})
                yield {
                    "operation": key[0],
                    "contender": key[1],
                    "calls": len(series.seconds),
                    "median_ms": series.median * 1000,
                    "p95_ms": series.p95 * 1000,
                    "cpu_ms": median(series.cpu_seconds) * 1000 if series.cpu_seconds else None,
                    **{name: cost.get(name) for name in COSTS},
                }

    def to_json(self) -> dict[str, Any]:
        """Return the results as a JSON object; figures say whether their bar is met."""
        return {
            "workload": self.workload,
            "figures": [asdict(figure) | {"met": figure.met} for figure in self.figures],
            "measures": list(self.measures()),
            "notes": self.notes,
            "problems": self.problems,
        }

    def lines(self) -> Iterator[str]:
        """Yield the results as text: what was measured, then the figures and their bars."""
        yield self.workload
        for place, line in enumerate(self.measures()):
            if not place:
                yield "".join(f"{title:>{_width(title)}}" for title in line)
            yield "".join(f"{_shown(value):>{_width(title)}}" for title, value in line.items())
        for one in self.figures:
            judged = (
                f"{'>=' if one.at_least else '<='} {one.bar:<8,g}" if one.bar is not None else ""
            )
            met = {None: "", True: "met", False: "NOT MET"}[one.met]
            yield f"  {one.name:<72}{one.value:>10,.2f} {one.unit:<6} {judged}{met}".rstrip()
        yield from (f"  {note}" for note in self.notes)
        yield from (f"  ! {problem}" for problem in self.problems)
        yield ""


def _width(title: str) -> int:
    return {"operation": 44, "contender": 24}.get(title, max(len(title) + 2, 9))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
