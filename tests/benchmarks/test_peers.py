"""The bench against others' stores: those that are absent are named, and what is lost is told.

None of their packages is needed here: stores in memory stand for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, pairwise
from typing import Any

import pytest
from django.db import connection

from benchmarks.baseline import baseline_here
from benchmarks.contenders import FLOOR, FRESH, Bottom, Contender, api
from benchmarks.corpus import Corpus, new_owner, said
from benchmarks.peers import known
from benchmarks.peers.known import PACKAGES, Package, missing
from benchmarks.results import Results
from benchmarks.rounds import Run
from benchmarks.timing import Series, balanced
from benchmarks.turns import judge, measure
from benchmarks.workloads import WORKLOADS
from config.demo.rollout import flip
from conversations.models import ConversationState
from conversations.storage import load_state, save_state
from flags.phases import Phase
from tests.support.factories import state

pytestmark = pytest.mark.django_db(transaction=True)

PARTS = [{"type": "text", "text": "a"}, {"type": "image"}, "b"]
TURNS: tuple[Any, ...] = (
    ({"role": "user", "content": "hello"}, {"content": "hello", "role": "assistant"}),
    ({"role": "user", "content": PARTS}, {"role": "assistant", "content": None}),
    ({"role": "user", "content": "é 🚲"}, {"role": "assistant", "content": "1.0"}),
)
# The first turn creates a conversation; those after it are measured, in each of two rounds.
STEPS = 2 * (len(TURNS) - 1)


class Memory(Contender):
    """A store that forgets the last `lost` messages of each save."""

    def __init__(self, name: str = "memory", *, exact: bool = True, lost: int = 0) -> None:
        self.name, self.exact, self._lost = name, exact, lost
        self._kept: dict[str, list[Any]] = {}

    def native(self, messages: Sequence[Any]) -> list[Any]:
        return list(messages) if self.exact else [said(message) for message in messages]

    def create(self, key: str, owner: Any, messages: Sequence[Any]) -> None:
        self._kept[key] = list(messages)

    def load(self, key: str, owner: Any) -> Any:
        return self._kept[key]

    def added(self, loaded: Any, new: Sequence[Any]) -> Any:
        return [*loaded, *new]

    def save(self, key: str, owner: Any, change: Any) -> None:
        self._kept[key] = change[: len(change) - self._lost]

    def found(self, loaded: Any) -> list[Any]:
        return list(loaded)


@pytest.fixture
def run() -> Run:
    flip(Phase.NEW_ONLY)
    save_state("here before", state("a"))
    return Run(Corpus("few", (TURNS,)), new_owner(), rounds=2, seed=1)


def absent(name: str) -> Any:
    raise ImportError(name)


def test_peers_that_are_not_installed_are_named_and_the_json_row_is_measured(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "import_module", absent)
    results = WORKLOADS["peers"].measure(run, sizes=(8,))
    assert results.problems == []
    if connection.vendor == "sqlite":
        assert results.notes == ["Peers are measured on PostgreSQL only."]
        assert list(results.measures()) == results.figures == []
        return
    ways = [FRESH, FLOOR, "JSON row"]
    operations = ["load", "save", "load at 8", "save at 8"]
    assert [(one["operation"], one["contender"]) for one in results.measures()] == [
        (operation, way) for operation in operations for way in ways
    ]
    calls = {one["operation"]: one["calls"] for one in results.measures()}
    assert calls == {"load": STEPS, "save": STEPS, "load at 8": 2, "save at 8": 2}
    assert all(one["median_ms"] > 0 for one in results.measures())
    counts = {(m["operation"], m["contender"]): m["round_trips"] for m in results.measures()}
    assert counts["save", "JSON row"] == counts["load", "JSON row"] == 1
    assert {figure.name: figure.bar for figure in results.figures} == {
        f"{operation}: {FRESH} / {way}": {"JSON row": 1.0, FLOOR: None}[way]
        for operation in operations
        for way in ("JSON row", FLOOR)
    }
    assert results.notes == [missing(package) for package in PACKAGES]
    assert [row.conversation_id for row in ConversationState.objects.filter(user=None)] == [
        "here before"
    ]
    # Its table is not left behind.
    assert not set(connection.introspection.table_names()) & {"bench_json_rows"}


@pytest.mark.parametrize("count", range(1, 10))
def test_each_store_is_first_and_behind_each_other_as_often_as_all(count: int) -> None:
    length = count * (2 if count % 2 else 1)
    orders = list(islice(balanced(range(count)), 2 * length))
    assert orders[:length] == orders[length:]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert set(Counter(order[0] for order in orders[:length]).values()) == {length // count}
    pairs = Counter(pair for order in orders[:length] for pair in pairwise(order))
    assert len(pairs) == count * (count - 1)
    assert set(pairs.values()) <= {length // count}


def test_a_missing_package_is_named_with_its_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = Package(("some-sdk[db]", "driver"), ("json", "no_such_module_here"), absent_store)
    assert (package.name, package.installed) == ("some-sdk", False)
    assert missing(package) == (
        "some-sdk is not installed, so not measured: pip install 'some-sdk[db]' driver"
    )
    assert Package(("json",), ("json", "json.decoder"), absent_store).installed


@contextmanager
def absent_store() -> Iterator[list[Contender]]:
    raise AssertionError("not to be opened")
    yield []


def ours() -> list[Contender]:
    return [api(FRESH), Bottom(FLOOR, baseline_here())]


def test_all_stores_play_the_same_turns_as_often(run: Run) -> None:
    results = Results("peers")
    measure(run, results, [*ours(), Memory(), Memory("texts", exact=False)], sizes=(4, 9))
    assert results.problems == []
    calls: dict[str, list[tuple[str, int]]] = {}
    for one in results.measures():
        calls.setdefault(one["contender"], []).append((one["operation"], one["calls"]))
    assert set(calls) == {FRESH, FLOOR, "memory", "texts"}
    assert {tuple(found) for found in calls.values()} == {tuple(calls[FRESH])}
    assert dict(calls[FRESH]) == {
        "load": STEPS,
        "save": STEPS,
        **{f"{operation} at {size}": 2 for operation in ("load", "save") for size in (4, 9)},
    }
    # As long as put in, and a turn more for each round and for the one that is not counted.
    kept = load_state(f"bench-peers-9-{FRESH}", user_id=run.owner).conversation_history
    assert kept[:9] == run.corpus.messages(9)
    assert kept[9:] == [message for number in range(3) for message in run.corpus.turn(number)]


@pytest.mark.parametrize("exact", [True, False])
def test_a_loss_of_a_peer_is_reported(run: Run, exact: bool) -> None:
    results = Results("peers")
    measure(run, results, [*ours(), Memory(exact=exact, lost=1)], sizes=(4,))
    assert results.problems == [
        f"bench-peers-{kind}-memory does not load as put in by memory"
        for kind in ("warm-0-saved", "0-saved", "1-saved", "4")
    ]


def test_the_order_of_keys_counts_where_a_store_is_said_to_be_exact(run: Run) -> None:
    class Sorting(Memory):
        def save(self, key: str, owner: Any, change: Any) -> None:
            super().save(key, owner, [dict(sorted(message.items())) for message in change])

    results = Results("peers")
    measure(run, results, [*ours(), Sorting()], sizes=(4,))
    assert len(results.problems) == 4


OPERATIONS = ("save", "load", "save at 9", "load at 9")


def judged(name: str, ours: float, theirs: float) -> dict[str, bool | None]:
    results = Results("peers", WORKLOADS["peers"].bars)
    for operation in OPERATIONS:
        for one, milliseconds in ((FRESH, ours), (name, theirs), (FLOOR, 1.0)):
            results.series[operation, one] = Series([milliseconds / 1000])
    judge(results, sizes=(9,))
    told = {figure.name: figure.met for figure in results.figures}
    assert [told.pop(name) for name in list(told) if name.endswith(FLOOR)] == [None] * 4
    return {name.partition(":")[0]: met for name, met in told.items()}


def test_each_peer_has_to_be_slower_and_the_save_of_langchain_hardly_faster() -> None:
    assert judged("JSON row", 0.9, 1.0) == dict.fromkeys(OPERATIONS, True)
    assert judged("JSON row", 1.1, 1.0) == dict.fromkeys(OPERATIONS, False)
    assert judged("LangChain", 1.1, 1.0) == {name: name.startswith("save") for name in OPERATIONS}
    assert judged("LangChain", 1.3, 1.0) == dict.fromkeys(OPERATIONS, False)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "a"}, "a"),
        ({"content": PARTS}, "ab"),
        ({"content": None}, ""),
        ({"role": "user"}, ""),
        ("a", ""),
    ],
)
def test_the_text_of_a_message(message: Any, text: str) -> None:
    assert said(message) == text
