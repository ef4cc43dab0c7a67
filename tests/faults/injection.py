"""Making the statements of one store fail, once or for as long as it is "down"."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import OperationalError, connection, connections, transaction

# What each store's statements mention. Items read memory_metadata too: that is no legacy read.
_LEGACY = re.compile(r"memory_chunks|memory_metadata|blobs_\w+session|hostshapes_\w+")
_ITEMS = re.compile(r'memory_context_items|"context_item_id" (IN|=)')
_TABLES = re.compile(r"conversation_states|conversation_messages|conversation_tombstones")


def touches_legacy(sql: str) -> bool:
    """Whether a statement reads or writes the legacy store."""
    return bool(_LEGACY.search(sql)) and not _ITEMS.search(sql)


def touches_tables(sql: str) -> bool:
    """Whether a statement reads or writes our tables alone."""
    return bool(_TABLES.search(sql) or _ITEMS.search(sql)) and not touches_legacy(sql)


def mentions_tables(sql: str) -> bool:
    """Whether a statement needs our tables: alone, or together with the legacy store."""
    return bool(_TABLES.search(sql) or _ITEMS.search(sql))


def mentions_either(sql: str) -> bool:
    """Whether a statement needs one of the two stores."""
    return mentions_tables(sql) or touches_legacy(sql)


def touches_messages(sql: str) -> bool:
    """Whether a statement reads or writes messages: the rows of conversations stay readable."""
    return "conversation_messages" in sql


def inserts_messages(sql: str) -> bool:
    """Whether a statement inserts messages: of one conversation, or of many at once."""
    return sql.startswith(("INSERT INTO", "COPY")) and "conversation_messages" in sql


@contextmanager
def failing(
    matches: Callable[[str], bool], *, after: int = 0, times: int | None = None
) -> Iterator[list[str]]:
    """Let matching statements fail, the first `after` excepted, `times` times (None: always).

    Gives the list of the statements that failed.
    """
    failed: list[str] = []
    seen = 0

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal seen
        if matches(sql):
            seen += 1
            if seen > after and (times is None or len(failed) < times):
                failed.append(sql)
                raise OperationalError("injected: this store is down")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(wrapper):
        yield failed


@contextmanager
def broken(
    matches: Callable[[str], bool], *, at: int, lasting: bool = False
) -> Iterator[list[str]]:
    """Let the database itself refuse the `at`-th matching statement, and later ones if `lasting`.

    A real error aborts PostgreSQL's transaction, which an exception raised in Python does not.
    Gives the list of the statements that were refused.
    """
    refused: list[str] = []
    seen = 0

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal seen
        if matches(sql):
            seen += 1
            if seen == at or (lasting and seen > at):
                refused.append(sql)
                return execute("SELECT * FROM no_such_table", None, False, context)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(wrapper):
        yield refused


@contextmanager
def locked(*tables: str) -> Iterator[None]:
    """Let another session lock tables exclusively, as a migration does (PostgreSQL only)."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE")
            held.set()
            # A longer wait was one for the lock.
            done.wait(60)
        connections.close_all()

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    try:
        yield
    finally:
        done.set()
        thread.join()
