"""Histograms, and percentiles that are read from them."""

from __future__ import annotations

import random
from statistics import quantiles

import pytest

from flags.histogram import BOUNDS, Measure, percentile


def measured(*seconds: float) -> Measure:
    measure = Measure()
    for each in seconds:
        measure.observe(each)
    return measure


def test_nothing_measured_has_no_percentile() -> None:
    assert (Measure().p50, Measure().p95, Measure().p99, Measure().error_ratio) == (None,) * 3 + (
        0.0,
    )


def test_an_operation_is_counted_with_how_it_ended() -> None:
    measure = Measure()
    measure.observe(0.001)
    measure.observe(0.002, error=True, fallback=True)
    measure.observe(None, stale=True, mismatch=True)
    assert (measure.count, measure.errors, measure.fallbacks, measure.stale) == (3, 1, 1, 1)
    assert (measure.mismatches, measure.error_ratio) == (1, 1 / 3)
    assert measure.seconds == pytest.approx(0.003)
    assert sum(measure.cells) == 2


def test_percentiles_equal_those_of_the_durations_to_the_width_of_a_cell() -> None:
    chance = random.Random(1)
    seconds = [chance.lognormvariate(-5, 1) for _ in range(5_000)]
    measure = measured(*seconds)
    cuts = quantiles(seconds, n=100)
    for found, exact in ((measure.p50, cuts[49]), (measure.p95, cuts[94]), (measure.p99, cuts[98])):
        assert found == pytest.approx(exact, rel=0.25)


@pytest.mark.parametrize("seconds", [0.0, BOUNDS[0], BOUNDS[3], BOUNDS[-1], 1000.0])
def test_the_cell_of_a_duration_holds_it(seconds: float) -> None:
    found = measured(seconds).p50
    assert found is not None
    assert found <= max(seconds, BOUNDS[0]) or seconds > BOUNDS[-1]
    assert measured(seconds).p99 <= 2 * BOUNDS[-1]


def test_measures_add_up() -> None:
    total = measured(0.001, 0.1)
    total.add(measured(0.001, 20))
    assert total == measured(0.001, 0.1, 0.001, 20)


def test_a_share_of_zero_is_the_least() -> None:
    assert percentile(measured(0.5, 0.5).cells, 0.0) == BOUNDS[10]
