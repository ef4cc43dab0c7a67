"""One JSON text a conversation, upserted whole: what a team writes itself in ten lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from config.bench.peers.shared import Peer, parameters

_SAVE = (
    "INSERT INTO bench_json_rows (id, messages) VALUES (%s, %s)"
    " ON CONFLICT (id) DO UPDATE SET messages = excluded.messages"
)
_LOAD = "SELECT messages FROM bench_json_rows WHERE id = %s"


class JSONRow(Peer):
    """Text, not jsonb: it is faster to write and to read, and keeps the order of keys."""

    name = "JSON row"
    limits = (
        "psycopg by hand, prepared, on a connection that is kept. It writes the whole conversation"
        " with each turn, and locks nothing: of two writers the first one's messages are lost."
    )

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
def opened() -> Iterator[list[Peer]]:
    """Give the row, whose table is there meanwhile."""
    with psycopg.connect(**parameters(), autocommit=True, prepare_threshold=0) as connection:
        connection.execute("CREATE TABLE bench_json_rows (id text PRIMARY KEY, messages text)")
        try:
            yield [JSONRow(connection)]
        finally:
            connection.execute("DROP TABLE bench_json_rows")
