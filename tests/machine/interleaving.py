"""Two writers at once: the second starts in the middle of the first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from django.db import connection, connections

# How long the first writer waits for the second, which the lock must keep out.
PAUSE_SECONDS = 0.05


def interleaved(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """Run `second` in a thread, from the moment that `first` has read under its lock.

    With the lock, `second` waits for the end of `first`; without it, both start from the
    same view. Raises whatever either raises.
    """
    results: list[Any] = []
    errors: list[BaseException] = []

    def other() -> None:
        try:
            results.append(second())
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=other)
    started = False

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal started
        result = execute(sql, params, many, context)
        if not started and sql.startswith("SELECT") and "conversation_states" in sql:
            started = True
            thread.start()
            thread.join(PAUSE_SECONDS)
        return result

    try:
        with connection.execute_wrapper(wrapper):
            mine = first()
    finally:
        if started:
            thread.join()
    if not started:
        results.append(second())
    if errors:
        raise errors[0]
    return mine, results[0]
