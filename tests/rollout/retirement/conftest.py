"""A rollout over legacy's chunks that waits for nothing; or over a host's table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from flags.phases import Phase
from tests.flags.test_emergency import set_emergency
from tests.machine.oldcode import OldSession
from tests.support.retirement import CHUNKS, enter


@pytest.fixture(autouse=True)
def _in_new_only(settings: Any) -> Iterator[None]:
    settings.CONVERSATIONS = CHUNKS
    enter(Phase.LEGACY)
    yield
    set_emergency(on=False)


@pytest.fixture(params=["chunks", "jsonfield"])
def either_store(request: pytest.FixtureRequest, settings: Any) -> str:
    if request.param == "jsonfield":
        settings.CONVERSATIONS = CHUNKS | {"LEGACY": OldSession.settings}
        enter(Phase.LEGACY)
    return str(request.param)
