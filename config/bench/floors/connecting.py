"""Which connection a floor works on: Django's own, or one that Django knows nothing of."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from django.db import connection

from config.bench.floors.postgresql import PostgresFloor
from config.bench.floors.shared import Floor
from config.bench.floors.sqlite import SqliteFloor


def floor_here() -> Floor:
    """Return the floor on Django's own connection."""
    if connection.vendor == "postgresql":
        return PostgresFloor(lambda: connection.connection)
    return SqliteFloor(lambda: connection.connection)


@contextmanager
def prepared(*, wanted: bool = True) -> Iterator[None]:
    """Let Django's connection prepare statements at once meanwhile, for the floor alone."""
    connection.ensure_connection()
    if connection.vendor != "postgresql" or not wanted:
        yield
        return
    before = connection.connection.prepare_threshold
    connection.connection.prepare_threshold = 0
    try:
        yield
    finally:
        connection.connection.prepare_threshold = before


@contextmanager
def bare_floor() -> Iterator[Floor]:
    """Give the floor on a connection of its own that Django knows nothing of."""
    parameters = connection.get_connection_params()
    if connection.vendor == "postgresql":
        for ours in ("cursor_factory", "context", "prepare_threshold"):
            parameters.pop(ours, None)
        bare = psycopg.connect(**parameters, autocommit=True, prepare_threshold=0)
        with bare:
            yield PostgresFloor(lambda: bare)
        return
    plain = sqlite3.connect(parameters["database"], timeout=20, isolation_level=None)
    plain.execute("PRAGMA journal_mode = WAL")
    plain.execute("PRAGMA synchronous = NORMAL")
    plain.execute("PRAGMA foreign_keys = ON")
    try:
        yield SqliteFloor(lambda: plain)
    finally:
        plain.close()
