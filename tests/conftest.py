"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from flags import health
from flags.phases import Phase
from flags.switches import forced_phase, snapshot
from tests.support import emptying

emptying.install()


@pytest.fixture(autouse=True)
def _fresh_switches() -> Iterator[None]:
    """Let no test see the switches, or the health, of another."""
    snapshot.forget()
    health.recent.forget()
    yield
    snapshot.forget()


@pytest.fixture(params=list(Phase), ids=lambda phase: phase.label)
def phase(request: pytest.FixtureRequest) -> Iterator[Phase]:
    """Run the test in each of the five phases."""
    with forced_phase(request.param):
        yield request.param


@pytest.fixture
def new_only() -> Iterator[None]:
    """Run the test in the last phase: the tables alone."""
    with forced_phase(Phase.NEW_ONLY):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real conversations beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip("no shared data beside the repository: real conversations are not tried")
    return folder


@pytest.fixture
def no_sql() -> Iterator[None]:
    """Fail on any statement."""

    def refuse(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        raise AssertionError(f"a statement was executed: {sql}")

    with connection.execute_wrapper(refuse):
        yield
