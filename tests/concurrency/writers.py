"""What the processes of the concurrency tests do."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from django.db import connection

from conversations import storage
from flags.phases import ROUTING
from tests.support.legacy_schema import old_load, old_save


def message(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def write(conversation_id: str, name: str, count: int, seed: int) -> list[str]:
    """Append and save `count` times. Returns: the texts that were acknowledged."""
    return _write(conversation_id, name, range(count), seed)


def write_until(conversation_id: str, name: str, until: str, seed: int) -> list[str]:
    """Append and save until a file exists. Returns: the texts that were acknowledged."""
    return _write(
        conversation_id, name, takewhile(lambda _: not Path(until).exists(), count()), seed
    )


def _write(conversation_id: str, name: str, numbers: Iterable[int], seed: int) -> list[str]:
    chance = random.Random(seed)
    acknowledged = []
    for number in numbers:
        text = f"{name}-{number}"
        if chance.random() < 0.5:
            storage.append_messages(conversation_id, [message(text)])
        else:
            window = chance.choice([None, 1, 5, 20])
            state = storage.load_state(conversation_id, max_messages=window)
            state.conversation_history.append(message(text))
            state.step_count += 1
            storage.save_state(conversation_id, state)
        acknowledged.append(text)
    return acknowledged


def old_write(conversation_id: str, name: str, count: int, seed: int) -> list[str]:
    """Write as old code does, `count` times: read a blob, add, prune, write the whole."""
    acknowledged = []
    for number in range(count):
        text = f"{name}-{number}"
        state = old_load(connection, conversation_id)
        assert state is not None
        state["conversation_history"].append(message(text))
        old_save(connection, conversation_id, None, state)
        acknowledged.append(text)
    return acknowledged


def flip(until: str, combinations: list[list[bool]], seed: int) -> list[int]:
    """Flip the switches at random, behind waffle's back, until the file `until` exists.

    Returns: how often each combination was set.
    """
    from waffle import get_waffle_switch_model

    rows = get_waffle_switch_model()._base_manager
    chance = random.Random(seed)
    counts = [0] * len(combinations)
    pause = threading.Event()
    order: list[int] = []
    for _ in range(100_000):
        if Path(until).exists() and min(counts) > 0:
            break
        if not order:
            order = chance.sample(range(len(combinations)), len(combinations))
        chosen = order.pop()
        for name, active in zip(ROUTING, combinations[chosen], strict=True):
            rows.filter(name=name).update(active=active)
        counts[chosen] += 1
        pause.wait(0.02)
    return counts
