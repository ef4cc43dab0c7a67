"""Series, bars, tables and the chart. Nothing here judges a time."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from benchmarks import chart
from benchmarks.results import Figure, Results
from benchmarks.timing import Series, percentile, rotations


def test_each_way_is_first_as_often_as_the_others() -> None:
    assert list(islice(rotations("abc"), 4)) == [list("abc"), list("bca"), list("cab"), list("abc")]


def test_a_series_says_median_and_p95() -> None:
    series = Series()
    assert series.timed(max, 2, 3) == 3
    assert (len(series.seconds), len(series.cpu_seconds)) == (1, 1)
    series.seconds = [float(number) for number in range(100)]
    assert (series.median, series.p95) == (49.5, 95.0)
    assert percentile([3.0, 1.0], 0.99) == 3.0


def test_a_figure_equal_to_its_bar_meets_it() -> None:
    assert Figure("r", 1.5, bar=1.5).met
    assert not Figure("r", 1.51, bar=1.5).met
    assert Figure("r", 0.6, bar=0.6, at_least=True).met
    assert not Figure("r", 0.59, bar=0.6, at_least=True).met
    assert Figure("r", 1.0).met is None


def test_a_table_shows_each_figure_beside_its_bar() -> None:
    results = Results("w", {"save": (1.8, None), "rate": (0.6, 0.6)}, vendor="postgresql")
    results.series["save", "tables"] = Series([0.002], [0.001])
    results.series["save", "floor"] = Series([0.001])
    results.costs["save", "tables"] = {"statements": 1}
    results.compare("save", "tables", "floor", bar="save")
    results.compare("save", "tables", "a contender that took no part", bar="save")
    results.tell("rate", 0.7, bar="rate", at_least=True, unit="share")
    results.problems.append("something is not equal")
    text = [" ".join(line.split()) for line in results.lines()]
    assert text == [
        "w",
        "operation contender calls median_ms p95_ms cpu_ms statements round_trips sent_bytes"
        " received_bytes",
        "save tables 1 2.000 2.000 1.000 1 - - -",
        "save floor 1 1.000 1.000 - - - - -",
        "save: tables / floor 2.00 x <= 1.8 NOT MET",
        "rate 0.70 share >= 0.6 met",
        "! something is not equal",
        "",
    ]
    assert results.to_json()["figures"][0] == {
        "name": "save: tables / floor",
        "value": 2.0,
        "bar": 1.8,
        "at_least": False,
        "unit": "x",
        "met": False,
    }


def test_a_bar_is_that_of_the_database() -> None:
    results = Results("w", {"save": (1.8, None)}, vendor="sqlite")
    results.tell("save", 2.0, bar="save")
    assert results.figures == [Figure("save", 2.0)]
    with pytest.raises(KeyError):
        results.tell("save", 2.0, bar="a bar that the table does not have")


def figures(database: str) -> dict[str, Any]:
    workloads: dict[str, list[Any]] = {}
    for workload, operation, _ in chart.GROUPS:
        for name in chart.WAYS:
            measure = {"operation": operation, "contender": name, "median_ms": 1.234}
            workloads.setdefault(workload, []).append(measure)
    found = [{"workload": name, "measures": measures} for name, measures in workloads.items()]
    return {"database": database, "workloads": found}


def test_the_chart_shows_every_figure_of_a_run(tmp_path: Path) -> None:
    runs = [figures("postgresql 18.1"), figures("sqlite 3.40.1")]
    paths = []
    for place, found in enumerate(runs):
        paths.append(tmp_path / f"{place}.json")
        paths[-1].write_text(json.dumps(found))
    target = tmp_path / "bench.svg"
    call_command("bench", "--chart", str(target), "--from", *map(str, paths))
    text = target.read_text()
    assert text == chart.drawn(runs)
    assert text.count(">1.23<") == 2 * len(chart.GROUPS) * len(chart.WAYS)
    assert "PostgreSQL 18.1" in text
    assert "prefers-color-scheme: dark" in text
    del runs[0]["workloads"][0]["measures"][0]
    with pytest.raises(ValueError, match="has not measured"):
        chart.drawn(runs)
