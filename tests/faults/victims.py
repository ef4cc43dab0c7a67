"""Writers that die by SIGKILL. One process forks them, so that each costs no start of Django."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from django.db import connection, connections, transaction

from conversations import storage
from conversations.exceptions import StorageUnavailable
from flags.phases import Phase
from flags.switches import forced_phase
from tests.support.factories import message

# No victim lives that long.
WRITES = 500


def forked(work: Callable[[], Any]) -> int:
    """Run a function in a child process. Returns: its pid. The child never returns."""
    connections.close_all()
    pid = os.fork()
    if pid:
        return pid
    # The log of a child is not read while it runs, and a pipe that is full would stop it.
    logging.disable()
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def kill_writers(
    ids: list[list[str]],
    phase: int,
    points: list[int | None],
    folder: str,
    seed: int,
    without_transaction: bool,
) -> int:
    """Fork writers, two at a time, and let each die. Returns: how many died by SIGKILL.

    Each has its conversations, and the point at which it dies; None: another process kills it.
    """
    chance = random.Random(seed)
    if without_transaction:
        transaction.atomic = lambda **_: nullcontext()  # type: ignore[assignment]
    died = 0
    for first in range(0, len(points), 2):
        pids = []
        for number, at in list(enumerate(points))[first : first + 2]:
            log = Path(folder) / f"{number}"
            pids.append((forked(lambda: _victim(ids[number], phase, log, number, at)), log, at))  # noqa: B023
        for pid, log, at in pids:
            if at is None:
                _kill(pid, log, after=chance.random() * 0.05)
            died += os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    return died


def _kill(pid: int, log: Path, *, after: float) -> None:
    """Kill a writer some seconds after it has written for the first time."""
    never = threading.Event()
    while not (log.exists() and log.stat().st_size) and os.waitid(os.P_PID, pid, _LOOK) is None:
        never.wait(0.001)
    never.wait(after)
    os.kill(pid, signal.SIGKILL)


_LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT


def _victim(ids: list[str], phase: int, log: Path, number: int, at: int | None) -> None:
    """Write until death; note each text once it is acknowledged."""
    chance = random.Random(number)
    with forced_phase(Phase(phase)), _dying(at), log.open("ab", buffering=0) as noted:
        for write in range(WRITES):
            conversation_id, text = chance.choice(ids), f"{number}-{write}"
            try:
                _write(chance, conversation_id, text)
            except StorageUnavailable:
                continue
            noted.write(f"{conversation_id} {text}\n".encode())


def _write(chance: random.Random, conversation_id: str, text: str) -> None:
    if chance.random() < 0.5:
        storage.append_messages(conversation_id, [message(text)])
        return
    state = storage.load_state(conversation_id, max_messages=chance.choice([None, 1, 5]))
    state.conversation_history.append(message(text))
    state.step_count += 1
    storage.save_state(conversation_id, state)


@contextmanager
def _dying(at: int | None) -> Iterator[None]:
    """Kill this process at its `at`-th point: before a statement, before or after a COMMIT."""
    seen = 0

    def point() -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        point()
        return execute(sql, params, many, context)

    commit = connection._commit

    def committing() -> None:
        point()
        commit()
        point()

    connection._commit = committing
    with connection.execute_wrapper(wrapper):
        yield
