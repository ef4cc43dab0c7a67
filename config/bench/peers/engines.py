"""An SQLAlchemy engine on asyncpg, for peers that only know coroutines, and a loop kept open."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from django.db import connection

from config.bench.peers.shared import parameters

MODULES = ("sqlalchemy.ext.asyncio", "asyncpg")
_NAMES = {
    "host": "host",
    "port": "port",
    "user": "user",
    "password": "password",
    "dbname": "database",
    "sslmode": "ssl",
}


@contextmanager
def engine() -> Iterator[tuple[asyncio.AbstractEventLoop, Any]]:
    """Give a loop, and an engine whose connections commit as Django's here does.

    No connection is tried before it is used (SQLAlchemy's default): that costs a round trip.
    """
    create = import_module("sqlalchemy.ext.asyncio").create_async_engine
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        made = create("postgresql+asyncpg://", connect_args=_arguments())
        try:
            yield loop, made
        finally:
            loop.run_until_complete(made.dispose())


def _arguments() -> dict[str, Any]:
    """Return what asyncpg takes to connect to the same database with the same setting."""
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        (commit,) = cursor.fetchone()
    known = parameters()
    named = {theirs: known[ours] for ours, theirs in _NAMES.items() if known.get(ours)}
    return {**named, "server_settings": {"synchronous_commit": commit}}
