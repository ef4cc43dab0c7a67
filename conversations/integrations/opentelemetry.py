"""Metrics for OpenTelemetry, of the process that observes them; see `flags.metrics`.

A host calls `instrument()` once, where it sets its meter provider. Operations are recorded while
performance_monitoring is on.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from flags import metrics
from flags.histogram import BOUNDS

try:
    from opentelemetry.metrics import MeterProvider, get_meter_provider
except ImportError as error:
    raise ImportError(
        "conversations.integrations.opentelemetry needs opentelemetry-api:"
        " pip install 'django-conversation-store[opentelemetry]'."
    ) from error

NAME = "conversations"
# The outcomes of an operation in `flags.metrics.observe`, and the counter of each.
COUNTED: Mapping[str, str] = {
    "error": "errors",
    "fallback": "fallbacks",
    "stale": "stale",
    "mismatch": "mismatches",
}


def instrument(provider: MeterProvider | None = None) -> None:
    """Record every operation with a meter of this provider, the global one by default.

    Instruments, each with the attributes `operation` and `store`: the histogram
    `conversations.operation.duration` in seconds, and the counters `conversations.operations`,
    `.errors`, `.fallbacks`, `.stale` and `.mismatches`. A second call replaces the first.
    """
    meter = (provider or get_meter_provider()).get_meter(NAME, _version())
    duration = meter.create_histogram(
        "conversations.operation.duration",
        unit="s",
        description="How long operations on conversations took.",
        explicit_bucket_boundaries_advisory=list(BOUNDS),
    )
    operations = meter.create_counter(
        "conversations.operations", unit="{operation}", description="Operations on conversations."
    )
    ended = {
        how: meter.create_counter(
            f"conversations.{name}",
            unit="{operation}",
            description=f"Operations on conversations counted as {name}.",
        )
        for how, name in COUNTED.items()
    }

    def record(operation: str, store: str, seconds: float | None, how: Mapping[str, bool]) -> None:
        attributes = {"operation": str(operation), "store": str(store)}
        operations.add(1, attributes)
        if seconds is not None:
            duration.record(seconds, attributes)
        for name, is_so in how.items():
            if is_so:
                ended[name].add(1, attributes)

    metrics.listen(NAME, record)


def _version() -> str | None:
    try:
        return version("django-conversation-store")
    except PackageNotFoundError:
        return None
