"""LangChain's PostgresChatMessageHistory: a row of jsonb a message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import psycopg

from config.bench.peers.shared import Peer, parameters, texts_of

MODULES = ("langchain_postgres",)
_TABLE = "chat_history"


class History(Peer):
    """One history a conversation, on the connection that all share."""

    name = "LangChain"
    exact = False
    limits = (
        "PostgresChatMessageHistory, on a connection with autocommit: without, a load leaves a"
        " transaction open. It locks nothing and checks nothing: messages of two writers come in"
        " the order of ids that a sequence gave out, not of commits. Gives LangChain's messages,"
        " not what it was given."
    )

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._history = import_module("langchain_postgres").PostgresChatMessageHistory
        self._convert = import_module("langchain_core.messages").convert_to_messages
        self._history.create_tables(connection, _TABLE)

    def plain(self) -> Any:
        return self._connection

    def native(self, messages: Sequence[Any]) -> list[Any]:
        converted: list[Any] = self._convert(list(messages))
        return converted

    def create(self, key: str, owner: Any, messages: Sequence[Any]) -> None:
        self.save(key, owner, messages)

    def load(self, key: str, owner: Any) -> Any:
        return self._of(key).get_messages()

    def added(self, loaded: Any, new: Sequence[Any]) -> Any:
        return new

    def save(self, key: str, owner: Any, change: Any) -> None:
        self._of(key).add_messages(change)

    def found(self, loaded: Any) -> list[Any]:
        return ["".join(texts_of(message.content)) for message in loaded]

    def _of(self, key: str) -> Any:
        session = str(uuid5(NAMESPACE_URL, key))
        return self._history(_TABLE, session, sync_connection=self._connection)


@contextmanager
def opened() -> Iterator[list[Peer]]:
    """Give the history, on a connection of its own."""
    with psycopg.connect(**parameters(), autocommit=True) as connection:
        yield [History(connection)]
