"""LangGraph's PostgresSaver: a checkpoint a turn, which holds all messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from psycopg.conninfo import make_conninfo

from config.bench.peers.shared import Peer, parameters, texts_of

MODULES = ("langgraph.checkpoint.postgres", "langgraph.checkpoint.base.id")
_CHANNEL = "messages"


class Dicts(Peer):
    """Messages are plain dicts, which its msgpack gives back as they were: its fastest way."""

    name = "LangGraph, dicts"
    limits = (
        "the same, with messages that are plain dicts and come back as they were; a graph with"
        " MessagesState does not have them so."
    )

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
        step = loaded.metadata["step"] + 1
        version = loaded.checkpoint["channel_versions"][_CHANNEL]
        self._put(loaded.config, version, messages, step=step)

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
    limits = (
        "PostgresSaver alone, one put a turn: by default a graph puts several, and writes beside"
        " them. Each checkpoint holds all messages and stays until it is pruned. It locks nothing:"
        " of two writers the one whose checkpoint has the later id is loaded, without the other's"
        " messages. Gives LangChain's messages, not what it was given."
    )

    def native(self, messages: Sequence[Any]) -> list[Any]:
        converted: list[Any] = import_module("langchain_core.messages").convert_to_messages(
            list(messages)
        )
        return converted

    def found(self, loaded: Any) -> list[Any]:
        return ["".join(texts_of(message.content)) for message in super().found(loaded)]


@contextmanager
def opened() -> Iterator[list[Peer]]:
    """Give the saver with either kind of messages, on a connection as it makes them: prepared."""
    postgres = import_module("langgraph.checkpoint.postgres")
    with postgres.PostgresSaver.from_conn_string(make_conninfo(**parameters())) as saver:
        saver.setup()
        yield [Messages(saver), Dicts(saver)]
