"""A process that dies by SIGKILL in a dual write leaves both stores equal, and nothing lost."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from conversations.rollout.verification import Kind, Verified, verify
from conversations.storage import load_state, save_state
from flags.phases import Phase
from flags.switches import forced_phase
from tests.faults.cases import Conversation
from tests.support.factories import state, texts
from tests.support.legacy_schema import old_load
from tests.support.processes import Job, together
from tests.support.scale import examples, profile

DEATHS = examples(100)
CONVERSATIONS = 4


def killed(
    folder: Path,
    phase: Phase,
    points: list[int | None],
    *,
    seed: int,
    without_transaction: bool = False,
) -> tuple[list[str], dict[str, list[str]]]:
    """Let writers die. Returns: conversations, and the texts acknowledged in each.

    The writers share a few conversations. Without transactions each has one of its own: a later
    write mends what an earlier one left.
    """
    ids = [Conversation().id for _ in (points if without_transaction else range(CONVERSATIONS))]
    with forced_phase(phase):
        for conversation_id in ids:
            save_state(conversation_id, state("first"))
    arguments = {
        "ids": [[one] for one in ids] if without_transaction else [ids] * len(points),
        "phase": int(phase),
        "points": points,
        "folder": str(folder),
        "seed": seed,
        "without_transaction": without_transaction,
    }
    assert together([Job("tests.faults.victims:kill_writers", arguments)]) == [len(points)]
    acknowledged = {conversation_id: ["first"] for conversation_id in ids}
    for log in folder.iterdir():
        for line in log.read_text().splitlines():
            conversation_id, text = line.split()
            acknowledged[conversation_id].append(text)
    return ids, acknowledged


def diverged(ids: list[str]) -> list[Verified]:
    """Return the conversations that the two stores do not agree about."""
    return [found for found in verify(ids) if found.kinds != (Kind.EQUAL,)]


def check(ids: list[str], acknowledged: dict[str, list[str]], phase: Phase, *, what: str) -> None:
    assert diverged(ids) == [], what
    for conversation_id in ids:
        with forced_phase(phase):
            found = Counter(texts(load_state(conversation_id)))
        blob = old_load(connection, conversation_id)
        assert blob is not None
        assert Counter(entry["content"] for entry in blob["conversation_history"]) == found, what
        assert set(found.values()) == {1}, what
        lost = set(acknowledged[conversation_id]) - set(found)
        assert not lost, what


@pytest.mark.long
@pytest.mark.django_db(transaction=True)
def test_a_writer_killed_in_a_dual_write_leaves_no_divergence_and_loses_nothing(
    tmp_path: Path, record_property: Any
) -> None:
    seed = random.randrange(2**32)
    record_property("seed", seed)
    chance = random.Random(seed)
    phase = chance.choice([Phase.DUAL_WRITE, Phase.NEW_READS, Phase.NEW_PRIMARY])
    # Half of them die at a point of their own, half by another process at any time.
    points = [chance.randrange(1, 80) if number % 2 else None for number in range(DEATHS)]
    ids, acknowledged = killed(tmp_path, phase, points, seed=seed)
    # Some of them wrote before they died.
    assert sum(map(len, acknowledged.values())) > CONVERSATIONS
    check(ids, acknowledged, phase, what=f"seed {seed}, {phase.label}")


@pytest.mark.skipif(profile() not in ("full", "long"), reason="full and long runs see it fail")
@pytest.mark.django_db(transaction=True)
def test_without_one_transaction_for_both_legs_the_stores_diverge(tmp_path: Path) -> None:
    everywhere = list(range(1, 21))
    ids, _ = killed(tmp_path, Phase.DUAL_WRITE, everywhere, seed=1, without_transaction=True)
    assert diverged(ids)
