"""A run of the bench on a few messages."""

from __future__ import annotations

import pytest

from benchmarks.corpus import Corpus, new_owner
from benchmarks.rounds import Run
from config.demo.rollout import flip
from conversations.storage import save_state
from flags.phases import Phase
from tests.benchmarks.said import TURNS
from tests.support.factories import state


@pytest.fixture
def run() -> Run:
    """Return a run on a few messages, on the test database, which is not empty."""
    flip(Phase.NEW_ONLY)
    save_state("here before", state("a"))
    return Run(Corpus("few", (TURNS,)), new_owner(), rounds=2, seed=1, messages=60, conversations=6)
