"""Nine processes, one conversation: nothing that was acknowledged is missing or doubled."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from django.test import override_settings

from conversations.state import AgentState
from conversations.storage import load_state, save_state
from flags.phases import SWITCHES_OF, Phase
from flags.switches import forced_phase
from tests.support.processes import Job, result_of, start
from tests.support.scale import examples

WRITERS = 8
WRITES = max(10, min(examples(40), 200))
EVERY_COMBINATION = [list(values) for values in product((False, True), repeat=4)]
BETWEEN_DUAL_WRITE_AND_NEW_ONLY = [
    list(SWITCHES_OF[phase]) for phase in Phase if phase != Phase.LEGACY
]


def run(jobs: list[Job], *, combinations: list[list[bool]], folder: Path, seed: int) -> list[str]:
    """Run the writers while another process flips. Returns: everything acknowledged."""
    done = folder / "done"
    flipper = start(
        Job(
            "tests.concurrency.writers:flip",
            {"until": str(done), "combinations": combinations, "seed": seed},
        )
    )
    writers = [start(job) for job in jobs]
    try:
        acknowledged = [text for writer in writers for text in result_of(writer)]
        done.touch()
        assert min(result_of(flipper)) > 0
    finally:
        done.touch()
        for process in [flipper, *writers]:
            if process.poll() is None:
                process.kill()
                process.wait()
    return acknowledged


def create() -> str:
    conversation_id = str(uuid.uuid4())
    with forced_phase(Phase.DUAL_WRITE):
        save_state(conversation_id, AgentState())
    return conversation_id


def shown(conversation_id: str) -> Counter[str]:
    state = load_state(conversation_id)
    assert not state.load_info.stale
    return Counter(message["content"] for message in state.conversation_history)


@pytest.mark.long
@pytest.mark.django_db(transaction=True)
def test_eight_writers_lose_nothing_while_switches_flip_through_every_combination(
    tmp_path: Path, record_property
) -> None:
    seed = random.randrange(2**32)
    record_property("seed", seed)
    conversation_id = create()
    jobs = [
        Job(
            "tests.concurrency.writers:write",
            {"conversation_id": conversation_id, "name": f"w{n}", "count": WRITES, "seed": n},
        )
        for n in range(WRITERS)
    ]
    acknowledged = run(jobs, combinations=EVERY_COMBINATION, folder=tmp_path, seed=seed)
    assert len(acknowledged) == WRITERS * WRITES
    assert shown(conversation_id) == Counter(acknowledged), f"seed {seed}"


@pytest.mark.long
@pytest.mark.django_db(transaction=True)
@override_settings(CONVERSATIONS={"LEGACY": "memory_chunks"})
def test_two_old_writers_beside_them_lose_nothing_from_dual_write_on(
    tmp_path: Path, record_property
) -> None:
    seed = random.randrange(2**32)
    record_property("seed", seed)
    conversation_id = create()
    names = [("write", f"w{n}") for n in range(WRITERS)] + [("old_write", f"o{n}") for n in (0, 1)]
    jobs = [
        Job(
            f"tests.concurrency.writers:{function}",
            {"conversation_id": conversation_id, "name": name, "count": WRITES, "seed": n},
        )
        for n, (function, name) in enumerate(names)
    ]
    acknowledged = run(
        jobs, combinations=BETWEEN_DUAL_WRITE_AND_NEW_ONLY, folder=tmp_path, seed=seed
    )
    assert len(acknowledged) == (WRITERS + 2) * WRITES
    assert shown(conversation_id) == Counter(acknowledged), f"seed {seed}"
