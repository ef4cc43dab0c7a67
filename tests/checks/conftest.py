"""Settings and databases that are wrong on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.utils import ConnectionHandler

from tests.support.scratch import ALIAS, scratch_database


@pytest.fixture
def configure(settings: Any) -> Callable[..., None]:
    """Set `CONVERSATIONS` to the given keys."""

    def set_to(**values: Any) -> None:
        settings.CONVERSATIONS = values

    set_to()
    return set_to


@pytest.fixture
def other_alias(configure: Any) -> Iterator[Callable[..., Any]]:
    """Make DATABASE an alias with the given settings, which nothing connects to."""

    def make(engine: str, **values: Any) -> Any:
        chosen = {"ENGINE": f"django.db.backends.{engine}", "NAME": "nowhere", **values}
        handler = ConnectionHandler({DEFAULT_DB_ALIAS: {}, "other": chosen})
        connections.databases["other"] = handler.settings["other"]
        configure(DATABASE="other")
        return connections["other"]

    yield make
    if "other" in connections.databases:
        del connections["other"]
        del connections.databases["other"]


@pytest.fixture
def scratch(tmp_path: Any, django_db_blocker: Any, configure: Any) -> Iterator[Any]:
    """An empty database as the configured one."""
    configure(DATABASE=ALIAS)
    with django_db_blocker.unblock(), scratch_database(tmp_path) as made:
        yield made
