"""A server that stops at once, again and again, loses nothing that was acknowledged."""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from conversations.rollout.verification import Kind
from flags.phases import Phase
from tests.faults.cases import Conversation
from tests.flags.test_fence import until_true
from tests.support.plugin import new_server
from tests.support.processes import Job, result_of, start
from tests.support.scale import examples

STOPS = max(1, min(examples(5), 20))
WRITERS = 8
CONVERSATIONS = 6
# Of each writer, between two stops.
WRITES = 3
# What is acknowledged is on the disk, as by default; a recovery need not visit every file.
DURABLE = {
    "fsync": "on",
    "synchronous_commit": "on",
    "recovery_init_sync_method": "syncfs",
    "autovacuum": "off",
}


@pytest.fixture
def server() -> Iterator[Any]:
    """A server of the test's own, with an empty database."""
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no server that could stop")
    folder = Path(tempfile.mkdtemp(prefix="stopped-"))
    own = new_server(folder / "postgresql", DURABLE)
    try:
        own.start()
        yield own
    finally:
        own.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def stop_at_once(server: Any) -> None:
    """Stop a server as `pg_ctl stop -m immediate` does: the next start has to recover."""
    process = server.get_postmaster_info().process
    process.send_signal(signal.SIGQUIT)
    process.wait(60)


def noted(folder: Path) -> list[list[str]]:
    """Return what was acknowledged so far: pairs of a conversation and a text."""
    logs = [log.read_text() for log in folder.iterdir()]
    return [line.split() for log in logs for line in log[: log.rfind("\n") + 1].splitlines()]


@pytest.mark.long
@pytest.mark.django_db(transaction=True)
def test_a_server_that_stops_under_eight_writers_loses_and_doubles_nothing(
    server: Any, tmp_path: Path, record_property: Any
) -> None:
    seed = random.randrange(2**32)
    record_property("seed", seed)
    phase = random.Random(seed).choice([Phase.DUAL_WRITE, Phase.NEW_READS, Phase.NEW_PRIMARY])
    what = f"seed {seed}, {phase.label}"
    url, folder, until = server.get_uri(), tmp_path / "noted", tmp_path / "until"
    folder.mkdir()
    common = {"ids": [Conversation().id for _ in range(CONVERSATIONS)], "phase": int(phase)}
    result_of(start(Job("tests.faults.stops:prepare", common), url=url))
    arguments = {**common, "writers": WRITERS, "folder": str(folder), "until": str(until)}
    writers = start(Job("tests.faults.stops:write", arguments), url=url)
    try:
        for stop in range(STOPS + 1):
            before = len(noted(folder))
            until_true(lambda: len(noted(folder)) >= before + WRITERS * WRITES)  # noqa: B023
            if stop < STOPS:
                stop_at_once(server)
                server.ensure_postgres_running()
        until.touch()
        assert result_of(writers) == WRITERS, what
    finally:
        until.touch()
        if writers.poll() is None:
            writers.kill()
            writers.wait()
    found = result_of(start(Job("tests.faults.stops:look", common), url=url))
    for conversation_id, (kinds, loaded, legacy) in found.items():
        acknowledged = [text for name, text in noted(folder) if name == conversation_id]
        assert kinds == [Kind.EQUAL], what
        assert Counter(loaded) == Counter(["first", *acknowledged]), what
        assert loaded == legacy, what
