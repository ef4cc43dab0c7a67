"""Workloads load what they saved, and say what is lost. Nothing here judges a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from benchmarks import concurrent
from benchmarks.contenders import Bottom, StateContender, begun, hosts
from benchmarks.results import Results
from benchmarks.rounds import Run, check, count_costs
from benchmarks.workloads import WORKLOADS
from conversations.models import ConversationMessage, ConversationState
from conversations.storage import load_state, save_state
from tests.benchmarks.said import MESSAGES
from tests.benchmarks.tables import rows_of
from tests.support.factories import state

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.django_db(transaction=True)


# Of each workload that needs no process of its own: how little of it will do.
SIZES: dict[str, Any] = {
    "short": {},
    "long": {"sizes": (4, 20), "longest": 60},
    "dual": {},
    "legacy": {"turns": 3, "messages": 12},
    "memory": {"messages": 20, "stream": 2},
    "moving": {"conversations": 3},
    "scale": {"small": (30, 3)},
}


@pytest.mark.parametrize("name", SIZES)
def test_a_workload_loads_what_it_saved_and_answers_its_bars(run: Run, name: str) -> None:
    before = rows_of("here before")
    # Of scale two hundred pages are asked for in each round.
    run = replace(run, rounds=1) if name == "scale" else run
    results = WORKLOADS[name].measure(run, **SIZES[name])
    assert results.problems == []
    assert any(figure.bar is not None for figure in results.figures)
    assert all(measure["median_ms"] > 0 for measure in results.measures())
    assert json.loads(json.dumps(results.to_json()))["workload"] == name
    assert rows_of("here before") == before


def test_a_loss_of_a_contender_is_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Bottom.save

    def forgetful(self: Bottom, key: str, owner: Any, change: Any) -> None:
        state, new, held = change
        whole(self, key, owner, (state, new[1:], held))

    monkeypatch.setattr(Bottom, "save", forgetful)
    problems = WORKLOADS["short"].measure(run).problems
    assert "bench-short-0-saved-floor does not load as put in by tables" in problems
    assert not any("saved-tables" in problem for problem in problems)


def test_a_lost_message_and_a_wrong_count_are_found(run: Run) -> None:
    save_state("a", state("x", "y", "z"))
    assert concurrent.lost("a", 3) == []
    ConversationMessage.rows.filter(sequence=2).delete()
    assert concurrent.lost("a", 3) == ["1 of 3 messages were lost"]
    ConversationState.rows.filter(conversation_id="a").update(message_count=2)
    assert len(concurrent.lost("a", 3)) == 2


def test_every_contender_is_checked_through_its_own_loads(run: Run) -> None:
    results = Results("short")
    with hosts(prepare=False) as known:
        for one in known:
            with one.configured():
                one.create(f"c-{one.name}", run.owner, MESSAGES)
            check(run, results, one, f"c-{one.name}", MESSAGES)
            assert results.problems == []
            check(run, results, one, f"c-{one.name}", MESSAGES[:-1])
            assert len(results.problems) == 1
            results.problems.clear()


def test_many_writers_lose_nothing() -> None:
    # Processes are forked: from one that has no threads, which pytest's may have.
    arguments = [
        *(sys.executable, "manage.py", "bench", "--workload", "concurrent"),
        *("--rounds", "1", "--writers", "4", "--json", "--database", connection.vendor),
    ]
    done = subprocess.run(
        arguments,
        cwd=ROOT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["workloads"]
    assert found["problems"] == []
    lost = [figure for figure in found["figures"] if "lost" in figure["name"]]
    assert [(figure["value"], figure["met"]) for figure in lost] == [(0.0, True), (0.0, True)]
    assert {measure["calls"] for measure in found["measures"]} == {
        4 * WORKLOADS["concurrent"].sizes["appends"]
    }


class Reader(StateContender):
    """Reads something beside each conversation at some of its loads, as settings are read."""

    name = "reader"

    def __init__(self) -> None:
        self.loads = 0

    def create(self, key: str, owner: Any, messages: Any) -> None:
        save_state(key, begun(messages), owner)

    def load(self, key: str, owner: Any) -> Any:
        self.loads += 1
        if self.loads != 2:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        return load_state(key, user_id=owner), None

    def save(self, key: str, owner: Any, change: Any) -> None:
        save_state(key, change[0], owner)


def test_statements_that_some_calls_alone_need_are_not_told(run: Run) -> None:
    results, one = Results("short"), Reader()
    one.create("a", run.owner, MESSAGES[:2])
    count_costs(run, results, one, "a", MESSAGES[2:4])
    assert one.loads > 2
    assert results.costs["load", "reader"]["statements"] == 1
