"""The page of health: its status, its reasons, and nothing else."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import OperationalError, connection, connections
from django.test import AsyncClient, Client
from django.test.utils import CaptureQueriesContext

from flags import health
from flags.health import KEPT_SECONDS, report
from tests.faults.injection import failing, touches_legacy, touches_tables
from tests.support.health import committed, conflict, measured, monitor

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _monitored(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor(settings, monkeypatch)


def test_the_view_says_the_status_and_why_and_nothing_else(client: Client) -> None:
    conflict("merged")
    measured(count=100, errors=4)
    measured(operation="save", count=100, errors=4)
    response = client.get("/health/")
    assert (response.status_code, response.json()) == (
        200,
        {"status": "critical", "reasons": ["conflicts", "errors"]},
    )
    assert "no-store" in response["Cache-Control"]
    assert not response.cookies
    head = client.head("/health/")
    assert (head.status_code, head.content) == (200, b"")
    assert client.post("/health/").status_code == 405


def test_the_view_refuses_only_when_no_store_can_serve(client: Client) -> None:
    with failing(touches_tables):
        assert client.get("/health/").status_code == 200
    health.recent.forget()
    with failing(lambda sql: touches_tables(sql) or touches_legacy(sql)):
        response = client.get("/health/")
        assert (response.status_code, response.json()["status"]) == (503, "critical")
        assert client.head("/health/").status_code == 503


def test_a_process_looks_once_a_second_however_many_ask(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(health.time, "monotonic", lambda: clock[0])
    with CaptureQueriesContext(connection) as first:
        client.get("/health/")
    assert len(first) > 0
    clock[0] += KEPT_SECONDS - 0.01
    with CaptureQueriesContext(connection) as second:
        assert client.get("/health/").json()["reasons"] == []
        client.head("/health/")
    assert len(second) == 0
    conflict("merged")
    clock[0] += 0.01
    assert client.get("/health/").json()["reasons"] == ["conflicts"]


def test_many_who_ask_at_once_share_one_report(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    inside = threading.Event()

    def slow() -> Any:
        made.append(1)
        inside.wait(10)
        return found

    found = report()
    monkeypatch.setattr(health, "report", slow)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(health.recent_report) for _ in range(8)]
        inside.set()
        assert all(each.result() is found for each in asked)
    assert made == [1]


@committed
def test_a_dead_database_is_a_503_also_where_requests_are_transactions(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(*args: Any) -> Any:
        raise OperationalError("injected: no server")

    with monkeypatch.context() as patched:
        patched.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
        connection.close()
        patched.setattr(connection, "connect", dead)
        started = time.monotonic()
        response = client.get("/health/")
        assert time.monotonic() - started < 1.5
    assert (response.status_code, response.json()["status"]) == (503, "critical")


def test_the_view_needs_no_login(client: Client, settings: Any) -> None:
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    assert client.get("/").status_code == 302
    assert client.get("/health/").status_code == 200


@committed
def test_the_view_answers_in_an_asynchronous_host() -> None:
    response = async_to_sync(AsyncClient().get)("/health/")
    assert (response.status_code, response.json()) == (200, {"status": "healthy", "reasons": []})
