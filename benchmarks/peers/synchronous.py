"""Peers on psycopg: a JSON row by hand, LangChain's history, LangGraph's saver."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import psycopg
from psycopg.conninfo import make_conninfo

from benchmarks.baseline import parameters
from benchmarks.contenders import Contender
from benchmarks.corpus import texts_of

_SAVE = """INSERT INTO bench_json_rows (id, messages) VALUES (%s, %s)
    ON CONFLICT (id) DO UPDATE SET messages = excluded.messages"""
_LOAD = "SELECT messages FROM bench_json_rows WHERE id = %s"
_HISTORIES = "chat_history"
_CHANNEL = "messages"


class JSONRow(Contender):
    """One JSON text a conversation, upserted whole: what a team writes itself in ten lines.

    Text, not jsonb: it is faster to write and to read, and keeps the order of keys.
    """

    name = "JSON row"

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def plain(self) -> Any:
        return self._connection

    def create(self, key: str, owner: Any, messages: Sequence[Any]) -> None:
        self.save(key, owner, messages)

    def load(self, key: str, owner: Any) -> Any:
        row = self._connection.execute(_LOAD, [key]).fetchone()
        return json.loads(row[0]) if row else []

    def added(self, loaded: Any, new: Sequence[Any]) -> Any:
        return [*loaded, *new]

    def save(self, key: str, owner: Any, change: Any) -> None:
        self._connection.execute(_SAVE, [key, json.dumps(change)])

    def found(self, loaded: Any) -> list[Any]:
        return list(loaded)


@contextmanager
def json_rows() -> Iterator[list[Contender]]:
    """Give the row, whose table is there meanwhile."""
    with psycopg.connect(**parameters(), autocommit=True, prepare_threshold=0) as connection:
        connection.execute("CREATE TABLE bench_json_rows (id text PRIMARY KEY, messages text)")
        try:
            yield [JSONRow(connection)]
        finally:
            connection.execute("DROP TABLE bench_json_rows")


def _converted(messages: Sequence[Any]) -> list[Any]:
    """Return messages as LangChain has them."""
    found: list[Any] = import_module("langchain_core.messages").convert_to_messages(list(messages))
    return found


def _texts(messages: Sequence[Any]) -> list[Any]:
    return ["".join(texts_of(message.content)) for message in messages]


class History(Contender):
    """LangChain's PostgresChatMessageHistory, a row of jsonb a message, on a shared connection."""

    name = "LangChain"
    exact = False

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._history = import_module("langchain_postgres").PostgresChatMessageHistory
        self._history.create_tables(connection, _HISTORIES)

    def plain(self) -> Any:
        return self._connection

    def native(self, messages: Sequence[Any]) -> list[Any]:
        return _converted(messages)

    def create(self, key: str, owner: Any, messages: Sequence[Any]) -> None:
        self.save(key, owner, messages)

    def load(self, key: str, owner: Any) -> Any:
        return self._of(key).get_messages()

    def added(self, loaded: Any, new: Sequence[Any]) -> Any:
        return new

    def save(self, key: str, owner: Any, change: Any) -> None:
        self._of(key).add_messages(change)

    def found(self, loaded: Any) -> list[Any]:
        return _texts(loaded)

    def _of(self, key: str) -> Any:
        session = str(uuid5(NAMESPACE_URL, key))
        return self._history(_HISTORIES, session, sync_connection=self._connection)


@contextmanager
def histories() -> Iterator[list[Contender]]:
    """Give the history. Without autocommit, a load would leave a transaction open."""
    with psycopg.connect(**parameters(), autocommit=True) as connection:
        yield [History(connection)]


class Dicts(Contender):
    """LangGraph's PostgresSaver: a checkpoint a turn, which holds all messages.

    They are plain dicts, which its msgpack gives back as they were: its fastest way.
    """

    name = "LangGraph, dicts"

    def __init__(self, saver: Any) -> None:
        self._saver = saver
        self._new_id = import_module("langgraph.checkpoint.base.id").uuid6

    def plain(self) -> Any:
        return self._saver.conn

    def create(self, key: str, owner: Any, messages: Sequence[Any]) -> None:
        self._put(self._config(key), None, list(messages), step=0)

    def load(self, key: str, owner: Any) -> Any:
        return self._saver.get_tuple(self._config(key))

    def added(self, loaded: Any, new: Sequence[Any]) -> Any:
        return loaded, [*loaded.checkpoint["channel_values"][_CHANNEL], *new]

    def save(self, key: str, owner: Any, change: Any) -> None:
        loaded, messages = change
        version = loaded.checkpoint["channel_versions"][_CHANNEL]
        self._put(loaded.config, version, messages, step=loaded.metadata["step"] + 1)

    def found(self, loaded: Any) -> list[Any]:
        return list(loaded.checkpoint["channel_values"][_CHANNEL])

    def _put(self, config: Any, version: str | None, messages: list[Any], *, step: int) -> None:
        """Put a checkpoint behind another, as the loop of a graph does after a step."""
        versions = {_CHANNEL: self._saver.get_next_version(version, None)}
        checkpoint = {
            # As graphs write them. With an older one each load asks for what it may have to move.
            "v": 4,
            "ts": datetime.now(UTC).isoformat(),
            "id": str(self._new_id()),
            "channel_values": {_CHANNEL: messages},
            "channel_versions": versions,
            "versions_seen": {},
        }
        metadata = {"source": "loop", "step": step, "parents": {}}
        self._saver.put(config, checkpoint, metadata, versions)

    def _config(self, key: str) -> dict[str, Any]:
        return {"configurable": {"thread_id": f"{self.name}:{key}", "checkpoint_ns": ""}}


class Messages(Dicts):
    """Messages are LangChain's, as in every graph with MessagesState."""

    name = "LangGraph"
    exact = False

    def native(self, messages: Sequence[Any]) -> list[Any]:
        return _converted(messages)

    def found(self, loaded: Any) -> list[Any]:
        return _texts(super().found(loaded))


@contextmanager
def savers() -> Iterator[list[Contender]]:
    """Give the saver with either kind of messages, on a connection as it makes them: prepared."""
    postgres = import_module("langgraph.checkpoint.postgres")
    with postgres.PostgresSaver.from_conn_string(make_conninfo(**parameters())) as saver:
        saver.setup()
        yield [Messages(saver), Dicts(saver)]
