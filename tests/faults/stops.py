"""What the processes do whose server is stopped in the middle: write, and write again."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.db import close_old_connections, connection

from conversations import storage
from conversations.exceptions import StorageUnavailable
from conversations.rollout.verification import verify
from flags.phases import Phase
from flags.switches import forced_phase
from tests.faults.victims import forked
from tests.support.factories import message, state, texts
from tests.support.legacy_schema import old_load


def prepare(ids: list[str], phase: int) -> None:
    """Make the tables, and the conversations."""
    call_command("migrate", verbosity=0)
    with forced_phase(Phase(phase)):
        for conversation_id in ids:
            storage.save_state(conversation_id, state("first"))


def write(ids: list[str], phase: int, writers: int, folder: str, until: str) -> int:
    """Write from several processes until a file exists. Returns: how many ended well."""

    def child(number: int) -> Callable[[], None]:
        return lambda: _write_until(ids, phase, number, Path(folder) / f"{number}", Path(until))

    pids = [forked(child(number)) for number in range(writers)]
    return sum(os.waitpid(pid, 0)[1] == 0 for pid in pids)


def _write_until(ids: list[str], phase: int, number: int, log: Path, until: Path) -> None:
    chance = random.Random(number)
    with forced_phase(Phase(phase)), log.open("ab", buffering=0) as noted:
        for write in count():
            if until.exists():
                break
            conversation_id, text = chance.choice(ids), f"{number}-{write}"
            if chance.random() < 0.5:
                persist(
                    lambda: storage.append_messages(conversation_id, [message(text)], keys=[text])  # noqa: B023
                )
            else:
                held = persist(lambda: storage.load_state(conversation_id))  # noqa: B023
                held.conversation_history.append(message(text))
                persist(lambda: storage.save_state(conversation_id, held))  # noqa: B023
            noted.write(f"{conversation_id} {text}\n".encode())


def persist(call: Callable[[], Any]) -> Any:
    """Do something until it is acknowledged, with a new connection each time."""
    while True:
        try:
            return call()
        except StorageUnavailable:
            close_old_connections()
            threading.Event().wait(0.1)


def look(ids: list[str], phase: int) -> dict[str, Any]:
    """Return what the stores hold: kinds, texts of a load, and texts as old code reads them."""
    found = {}
    for one in verify(ids):
        with forced_phase(Phase(phase)):
            loaded = texts(storage.load_state(one.conversation_id))
        blob = old_load(connection, one.conversation_id) or {"conversation_history": []}
        legacy = [entry["content"] for entry in blob["conversation_history"]]
        found[one.conversation_id] = [[str(kind) for kind in one.kinds], loaded, legacy]
    return found
