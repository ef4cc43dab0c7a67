"""Many at once through ASGI: none fails, none is lost, and a small pool is enough."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse
from django.test import override_settings
from django.urls import path

from conversations import storage
from conversations.routing.transactions import give_back
from flags.phases import Phase
from flags.switches import forced_phase
from tests.support.factories import messages, state, texts

pytestmark = pytest.mark.django_db(transaction=True)

USERS = 200
POOL = 10
# Shorter than anything here may take; longer, and a request of the pool's would fail.
PATIENCE_SECONDS = 30
# Of the loop that runs: a barrier for all tasks.
waiting: list[asyncio.Barrier] = []


async def turn(request: HttpRequest, conversation_id: str) -> JsonResponse:
    """Load, wait for a model that answers once all tasks wait for it, append and save."""
    loaded = await storage.aload_state(conversation_id)
    await waiting[-1].wait()
    await storage.aappend_messages(conversation_id, messages("question"), create=True)
    loaded = await storage.aload_state(conversation_id)
    loaded.conversation_history += messages("answer")
    await storage.asave_state(conversation_id, loaded)
    return JsonResponse({"count": len(loaded.conversation_history)})


urlpatterns = [path("<str:conversation_id>/", turn)]


@pytest.fixture
def pooled() -> Iterator[None]:
    """Let Django's connections come from a pool (PostgreSQL)."""
    options = connection.settings_dict["OPTIONS"]
    if connection.vendor != "postgresql":
        yield
        return
    pytest.importorskip("psycopg_pool", reason="psycopg[pool] is not installed")
    connection.close()
    pool = {"min_size": 1, "max_size": POOL, "timeout": PATIENCE_SECONDS}
    connection.settings_dict["OPTIONS"] = {**options, "pool": pool}
    try:
        yield
    finally:
        connection.close()
        connection.close_pool()
        connection.settings_dict["OPTIONS"] = options


async def status_of(application: ASGIHandler, address: str) -> int:
    """Send one request. Returns: the status of the answer."""
    sent: list[dict[str, Any]] = []
    arrived = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if arrived.is_set():
            # The client stays until it has the answer.
            await asyncio.Event().wait()
        arrived.set()
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": address,
        "query_string": b"",
        "headers": [(b"host", b"testserver")],
    }
    await application(scope, receive, send)
    return int(sent[0]["status"])


def test_two_hundred_users_wait_for_their_models_on_a_pool_of_ten(pooled: None) -> None:
    names = [str(uuid.uuid4()) for _ in range(USERS)]

    async def everybody() -> list[int]:
        waiting.append(asyncio.Barrier(USERS))
        application = ASGIHandler()
        calls = (status_of(application, f"/{name}/") for name in names)
        return await asyncio.wait_for(asyncio.gather(*calls), PATIENCE_SECONDS)

    with (
        override_settings(
            ROOT_URLCONF="tests.storage.test_asgi",
            MIDDLEWARE=[],
            CONVERSATIONS={"REQUIRE_OWNER": False},
        ),
        forced_phase(Phase.NEW_ONLY),
    ):
        connection.close()
        assert asyncio.run(everybody()) == [200] * USERS
        for name in names:
            assert texts(storage.load_state(name)) == ["question", "answer"]
    if connection.vendor == "postgresql":
        found = connection.pool.get_stats()
        assert found["pool_max"] == POOL
        assert not found.get("requests_errors")


@pytest.mark.parametrize("inside", [False, True])
def test_a_pooled_connection_is_kept_inside_a_transaction_alone(pooled: None, inside: bool) -> None:
    storage.save_state("c", state("a"))
    if not inside:
        give_back()
        assert (connection.connection is None) is (connection.vendor == "postgresql")
        return
    with transaction.atomic():
        storage.append_messages("c", messages("b"))
        give_back()
        assert connection.connection is not None
    assert texts(storage.load_state("c")) == ["a", "b"]
