"""The results of docs/performance.md, written from the JSON of runs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# What stands above it in the page is written by hand and stays.
MARK = "<!-- What follows is written by `manage.py bench --page`. -->"
_COUNTS = ("statements", "round_trips", "sent_bytes", "received_bytes")


def renewed(page: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a page with the results of these runs behind its mark.

    Raises: ValueError when the page has no mark.
    """
    above, mark, _ = page.partition(MARK)
    if not mark:
        raise ValueError(f"the page has no line {MARK!r}.")
    return "\n".join([above + mark, *(line for run in runs for line in _run(run)), ""])


def _run(run: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"## {run['database']}, {run['date']}", "")
    yield f"    {run['command']}"
    yield ""
    known = ("database", "date", "command", "workloads")
    about = (
        f"{name.replace('_', ' ')} {value}" for name, value in run.items() if name not in known
    )
    yield ", ".join(about) + "."
    for workload in run["workloads"]:
        yield from ("", f"### {workload['workload']}", "")
        yield from _judged(workload["ratios"])
        yield from (f"\n{note}" for note in workload["notes"])
        if workload["measures"]:
            yield from _measured(workload["measures"])


def _judged(ratios: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from ("| figure | value | bar | |", "|---|---:|---:|---|")
    for ratio in ratios:
        bar = (
            "" if ratio["bar"] is None else f"{'≥' if ratio['at_least'] else '≤'} {ratio['bar']:g}"
        )
        met = {None: "", True: "met", False: "**not met**"}[ratio["met"]]
        yield f"| {ratio['name']} | {ratio['value']:,.2f} {ratio['unit']} | {bar} | {met} |"


def _measured(measures: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    counted = [name for name in _COUNTS if any(measure[name] is not None for measure in measures)]
    titles = ["", "way", "calls", "median ms", "p95 ms", "CPU ms"]
    titles += [name.replace("_", " ") for name in counted]
    yield from ("", f"| {' | '.join(titles)} |", "|---|---|" + "---:|" * (len(titles) - 2))
    for measure in measures:
        times = (measure[name] for name in ("median_ms", "p95_ms", "cpu_ms"))
        cells = [measure["operation"], measure["way"], str(measure["calls"])]
        cells += ["" if value is None else f"{value:.3f}" for value in times]
        counts = (measure[name] for name in counted)
        cells += ["" if value is None else f"{value:,}" for value in counts]
        yield f"| {' | '.join(cells)} |"
