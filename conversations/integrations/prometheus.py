"""Metrics for Prometheus, from the minutes that all processes share; see `flags.metrics`.

In a host's URLs: `path("metrics/", conversations.integrations.prometheus.metrics)`. Every process
returns the same numbers, so no multi-process directory is needed. The view requires no login: only
Prometheus should reach it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

from django.db import Error
from django.http import HttpRequest, HttpResponse

from flags.exceptions import TimeIsUp
from flags.health import SPAN, Level, report
from flags.histogram import BOUNDS, Measure
from flags.metrics import this_hour
from flags.timeouts import Deadline
from flags.views import for_machines

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        "conversations.integrations.prometheus needs prometheus-client:"
        " pip install 'django-conversation-store[prometheus]'."
    ) from error

LABELS = ("operation", "store")
# The counts of operations: the attribute of a measure, and its description.
COUNTED: Mapping[str, str] = {
    "count": "Operations on conversations.",
    "errors": "Operations that failed.",
    "fallbacks": "Operations for which the other store stood in.",
    "stale": "Loads whose state was marked stale.",
    "mismatches": "Loads that differed from the other store.",
}
# The last bound of a histogram.
ABOVE = "+Inf"


@for_machines
def metrics(request: HttpRequest) -> HttpResponse:
    """Return all metrics in the text format of Prometheus.

    Counters begin anew with every full hour (UTC, by the database's clock), which Prometheus takes
    for the restart of a process. So a scrape reads an hour's minutes, not a month's. If the
    database does not answer, the health says so, and the counters are left out.
    """
    registry = CollectorRegistry()
    registry.register(_Shared())
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


class _Shared(Collector):
    """The database's metrics at the moment of a scrape."""

    def collect(self) -> Iterator[Metric]:
        yield from _health()
        try:
            totals = Deadline(SPAN).read(this_hour)
        except (Error, TimeIsUp):
            return
        yield from _operations(totals)

    def describe(self) -> list[Metric]:
        """Return nothing: otherwise a registry would collect once only to learn the names."""
        return []


def _health() -> Iterator[Metric]:
    found = report()
    status = GaugeMetricFamily(
        "conversations_health", "1 for the status that holds, 0 for the others.", labels=["status"]
    )
    for level in Level:
        status.add_metric([str(level)], float(level == found.status))
    stores = GaugeMetricFamily(
        "conversations_store_up", "Whether a read of the store was answered.", labels=["store"]
    )
    for store, serves in found.can_serve.items():
        stores.add_metric([store], float(serves))
    yield from (status, stores)


def _operations(totals: Mapping[tuple[str, str], Measure]) -> Iterator[Metric]:
    for name, text in COUNTED.items():
        what = "operations" if name == "count" else f"operation_{name}"
        family = CounterMetricFamily(f"conversations_{what}", text, labels=LABELS)
        for labels, measure in totals.items():
            family.add_metric(labels, getattr(measure, name))
        yield family
    seconds = HistogramMetricFamily(
        "conversations_operation_seconds", "How long operations took.", labels=LABELS
    )
    bounds = [*map(str, BOUNDS), ABOVE]
    for labels, measure in totals.items():
        cumulated = accumulate(measure.cells)
        seconds.add_metric(
            labels, [*zip(bounds, map(float, cumulated), strict=True)], measure.seconds
        )
    yield seconds
