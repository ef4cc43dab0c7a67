"""Results as text. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from config.bench.results import Measure, Ratio, Results

_COSTS = (
    ("statements", "stmts"),
    ("round_trips", "trips"),
    ("sent_bytes", "sent"),
    ("received_bytes", "received"),
)


def lines_of(results: Results) -> Iterator[str]:
    """Yield the two tables of a workload: what was measured, then the ratios and their bars."""
    yield results.workload
    if results.measures:
        titles = ("median ms", "p95 ms", "cpu ms", *(title for _, title in _COSTS))
        columns = "".join(f"{title:>10}" for title in titles)
        yield f"  {'':<40}{'way':<22}{'calls':>7}{columns}"
        yield from map(_measured, results.measures)
        yield ""
    yield from map(_judged, results.ratios)
    yield from (f"  {note}" for note in results.notes)
    yield from (f"  ! {problem}" for problem in results.problems)
    yield ""


def _measured(measure: Measure) -> str:
    costs = "".join(
        f"{'-' if (cost := getattr(measure, name)) is None else format(cost, ','):>10}"
        for name, _ in _COSTS
    )
    times = "".join(
        f"{'-' if value is None else format(value, '.3f'):>10}"
        for value in (measure.median_ms, measure.p95_ms, measure.cpu_ms)
    )
    return f"  {measure.operation:<40}{measure.way:<22}{measure.calls:>7}{times}{costs}"


def _judged(ratio: Ratio) -> str:
    line = f"  {ratio.name:<72}{ratio.value:>10,.2f} {ratio.unit:<6} "
    if ratio.bar is None:
        return line.rstrip()
    sign = ">=" if ratio.at_least else "<="
    return f"{line}{sign} {ratio.bar:<8,g}{'met' if ratio.met else 'NOT MET'}"
