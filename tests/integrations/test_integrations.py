"""What other tools are told: django-health-check, OpenTelemetry and Prometheus."""

from __future__ import annotations

import builtins
import importlib
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import path
from django.utils import timezone
from health_check.views import HealthCheckView
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families

from conversations.integrations import health_check, opentelemetry, prometheus
from conversations.storage import load_state, save_state
from flags import health, metrics, reporter
from flags.histogram import BOUNDS, Measure
from flags.models import MeasuredMinute
from flags.phases import Phase, Switch
from flags.switches import snapshot
from tests.faults.injection import failing, touches_legacy, touches_tables
from tests.flags.test_switches import Rows, set_rows
from tests.support.factories import state

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]

LABELS = ("operation", "store", "status", "le")
CHECK = "conversations.integrations.health_check.ConversationStores"
urlpatterns = [
    path("ht/", HealthCheckView.as_view(checks=[CHECK])),
    path("strict/", HealthCheckView.as_view(checks=[(CHECK, {"strict": True})])),
    path("metrics/", prometheus.metrics),
]


@pytest.fixture(autouse=True)
def _monitored(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    monkeypatch.setattr(reporter, "ensure", lambda: None)
    metrics.forget()
    set_rows(Phase.DUAL_WRITE)
    Rows._base_manager.update_or_create(
        name=Switch.PERFORMANCE_MONITORING, defaults={"active": True}
    )
    snapshot.forget()
    snapshot.refresh()
    yield
    metrics._listeners.clear()
    metrics.forget()


def minute(*, ago: timedelta = timedelta(0), **numbers: Any) -> None:
    began = (timezone.now() - ago).replace(second=0, microsecond=0)
    values = {"operation": "load", "store": "legacy", **numbers}
    MeasuredMinute.objects.create(began_at=began, **values)


def test_the_error_of_a_missing_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in ("health_check", "opentelemetry", "prometheus_client"):
            raise ImportError(f"No module named {name}")
        return found(name, *args, **kwargs)

    extras = {
        health_check: "health-check",
        opentelemetry: "opentelemetry",
        prometheus: "prometheus",
    }
    for module, extra in extras.items():
        with monkeypatch.context() as patched:
            patched.setattr(builtins, "__import__", without)
            with pytest.raises(ImportError, match=rf"django-conversation-store\[{extra}\]"):
                importlib.reload(module)
        importlib.reload(module)


# django-health-check


@pytest.mark.django_db(transaction=True)
def test_the_check_says_the_status_and_fails_when_nothing_serves(client: Client) -> None:
    def asked(address: str) -> tuple[int, Any]:
        response = client.get(address, {"format": "json"})
        return response.status_code, response.json()

    code, said = asked("/ht/")
    assert (code, list(said.values())) == (200, ["OK"])
    minute(count=100, errors=50)
    health.recent.forget()
    code, said = asked("/ht/")
    assert (code, list(said.values())) == (200, ["OK"])
    code, said = asked("/strict/")
    assert (code, list(said.values())) == (500, ["Warning: critical: errors"])
    health.recent.forget()
    with failing(lambda sql: touches_tables(sql) or touches_legacy(sql)):
        code, said = asked("/ht/")
    assert (code, list(said.values())) == (
        500,
        ["Unavailable: no store of conversations can serve"],
    )


# OpenTelemetry


def recorded(reader: InMemoryMetricReader) -> dict[str, Any]:
    """Return each metric's points by its name, and their attributes by operation and store."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        metric.name: {
            (point.attributes["operation"], point.attributes["store"]): point
            for point in metric.data.data_points
        }
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def test_operations_are_recorded_with_a_meter() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    opentelemetry.instrument(provider)
    opentelemetry.instrument(provider)
    save_state("c", state("a"))
    for _ in range(3):
        load_state("c")
    metrics.observe("load", "legacy", None, error=True, fallback=True)
    found = recorded(reader)
    assert found["conversations.operations"]["save", "legacy"].value == 1
    assert found["conversations.operations"]["load", "legacy"].value == 4
    assert found["conversations.errors"]["load", "legacy"].value == 1
    assert found["conversations.fallbacks"]["load", "legacy"].value == 1
    assert "conversations.mismatches" not in found or not found["conversations.mismatches"]
    duration = found["conversations.operation.duration"]["load", "legacy"]
    assert duration.count == 3
    assert duration.sum > 0
    assert tuple(duration.explicit_bounds) == BOUNDS


def test_nothing_is_recorded_while_monitoring_is_off() -> None:
    reader = InMemoryMetricReader()
    opentelemetry.instrument(MeterProvider(metric_readers=[reader]))
    Rows._base_manager.filter(name=Switch.PERFORMANCE_MONITORING).update(active=False)
    snapshot.refresh()
    save_state("c", state("a"))
    assert recorded(reader) == {}


# Prometheus


def scraped(client: Client) -> dict[str, dict[tuple[str, ...], float]]:
    """Return every sample by its name and the values of its labels."""
    response = client.get("/metrics/")
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/plain; version=")
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(response.content.decode()):
        for sample in family.samples:
            labels = tuple(sample.labels[name] for name in LABELS if name in sample.labels)
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def test_the_minutes_that_are_shared_are_scraped(client: Client) -> None:
    measure = Measure()
    for seconds in (0.0002, 0.003, 0.003, 100.0):
        measure.observe(seconds)
    measure.observe(None, error=True)
    cells = json.dumps(measure.cells)
    minute(count=5, errors=1, seconds=measure.seconds, cells=cells)
    minute(operation="save", count=7, fallbacks=2)
    found = scraped(client)
    assert found["conversations_operations_total"] == {
        ("load", "legacy"): 5,
        ("save", "legacy"): 7,
    }
    assert found["conversations_operation_errors_total"]["load", "legacy"] == 1
    assert found["conversations_operation_fallbacks_total"]["save", "legacy"] == 2
    buckets = found["conversations_operation_seconds_bucket"]
    assert buckets["load", "legacy", "0.00025"] == 1
    assert buckets["load", "legacy", "0.002"] == 1
    assert buckets["load", "legacy", "0.004"] == 3
    assert buckets["load", "legacy", str(BOUNDS[-1])] == 3
    assert buckets["load", "legacy", "+Inf"] == 4
    assert found["conversations_operation_seconds_count"]["load", "legacy"] == 4
    assert found["conversations_operation_seconds_sum"]["load", "legacy"] == measure.seconds
    assert found["conversations_health"] == {
        ("healthy",): 1,
        ("unknown",): 0,
        ("warning",): 0,
        ("critical",): 0,
    }
    assert found["conversations_store_up"] == {("tables",): 1, ("legacy",): 1}


def test_counters_begin_anew_with_the_hour_of_the_database(client: Client) -> None:
    minute(count=5, ago=timedelta(hours=1))
    assert "conversations_operations_total" not in scraped(client)
    minute(count=6)
    assert scraped(client)["conversations_operations_total"] == {("load", "legacy"): 6}


def test_a_scrape_of_a_dead_database_says_so(client: Client) -> None:
    minute(count=6)
    with failing(lambda sql: "SELECT" in sql):
        found = scraped(client)
    assert found["conversations_health"]["critical",] == 1
    assert found["conversations_store_up"] == {("tables",): 0, ("legacy",): 0}
    assert "conversations_operations_total" not in found


def test_a_scrape_needs_no_login_and_is_never_cached(client: Client, settings: Any) -> None:
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    response = client.get("/metrics/")
    assert response.status_code == 200
    assert "no-store" in response["Cache-Control"]
    assert client.head("/metrics/").status_code == 200
    assert client.post("/metrics/").status_code == 405
