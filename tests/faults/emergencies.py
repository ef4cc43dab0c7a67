"""What writers do in an emergency: go on, and note what was acknowledged and what was not."""

from __future__ import annotations

import os
import random
import threading
from itertools import count
from pathlib import Path
from typing import Any

from conversations import storage
from conversations.exceptions import StorageUnavailable
from tests.faults.cases import Conversation
from tests.faults.victims import forked
from tests.support.factories import message


def write(ids: list[str], writers: int, folder: str, until: str, seed: int) -> int:
    """Write from several processes until a file exists. Returns: how many ended well."""
    pids = [
        forked(lambda: _write_until(list(ids), Path(folder) / f"{n}", Path(until), seed + n, n))  # noqa: B023
        for n in range(writers)
    ]
    return sum(os.waitpid(pid, 0)[1] == 0 for pid in pids)


def _write_until(ids: list[str], log: Path, until: Path, seed: int, number: int) -> None:
    chance = random.Random(seed)
    with log.open("ab", buffering=0) as noted:
        for write in count():
            if until.exists():
                break
            conversation_id, text = chance.choice(ids), f"{number}-{write}"
            try:
                if chance.random() < 0.1:
                    # An id of the caller's own: conversations are begun all the time.
                    conversation_id = Conversation().id
                    storage.append_messages(conversation_id, [message(text)], create=True)
                    ids.append(conversation_id)
                else:
                    _add(chance, conversation_id, text)
            except StorageUnavailable:
                noted.write(f"{conversation_id} {text} refused\n".encode())
                threading.Event().wait(0.01)
            else:
                noted.write(f"{conversation_id} {text} acknowledged\n".encode())


def _add(chance: random.Random, conversation_id: str, text: str) -> None:
    if chance.random() < 0.5:
        storage.append_messages(conversation_id, [message(text)])
        return
    state: Any = storage.load_state(conversation_id)
    state.conversation_history.append(message(text))
    state.step_count += 1
    storage.save_state(conversation_id, state)
