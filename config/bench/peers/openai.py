"""The OpenAI Agents SDK's SQLAlchemySession: a row of JSON text a message."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from config.bench.peers.engines import MODULES as ENGINE, engine
from config.bench.peers.shared import Peer

MODULES = ("agents.extensions.memory.sqlalchemy_session", *ENGINE)


class Sessions(Peer):
    """A session object for each conversation, which is kept: a new one compiles its SQL again."""

    name = "OpenAI Agents"
    limits = (
        "SQLAlchemySession on asyncpg, one object a conversation, kept between turns. Gives back"
        " what it was given. It locks the session while it adds, but orders by when a transaction"
        " began, not by commits, and does not see that the conversation changed since the load."
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, made: Any) -> None:
        self._loop, self._engine = loop, made
        self._known: dict[str, Any] = {}
        loop.run_until_complete(self._new("bench", create_tables=True).get_items())

    def create(self, key: str, owner: Any, messages: Sequence[Any]) -> None:
        self._known[key] = self._new(key)
        self.save(key, owner, messages)

    def load(self, key: str, owner: Any) -> Any:
        return self._loop.run_until_complete(self._known[key].get_items())

    def added(self, loaded: Any, new: Sequence[Any]) -> Any:
        return list(new)

    def save(self, key: str, owner: Any, change: Any) -> None:
        self._loop.run_until_complete(self._known[key].add_items(change))

    def found(self, loaded: Any) -> list[Any]:
        return list(loaded)

    def _new(self, key: str, **more: Any) -> Any:
        module = import_module("agents.extensions.memory.sqlalchemy_session")
        return module.SQLAlchemySession(key, engine=self._engine, **more)


@contextmanager
def opened() -> Iterator[list[Peer]]:
    """Give the sessions, on an engine of their own."""
    with engine() as (loop, made):
        yield [Sessions(loop, made)]
