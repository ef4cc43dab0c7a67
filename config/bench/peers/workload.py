"""Ours against the peers: a turn added to a conversation that was loaded, and loads of all of it.

Peers save messages and nothing else; ours saves the state around them as well. What an
application does between a load and a save, such as making its objects, is on nobody's clock.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connection

from config.bench.counting import counted
from config.bench.floors import floor_here
from config.bench.long import analyze
from config.bench.peers.known import peers
from config.bench.peers.langchain import History
from config.bench.peers.shared import Ours, Peer, said
from config.bench.population import populated
from config.bench.results import Results
from config.bench.runs import Run
from config.bench.short import Timed
from config.bench.timing import Series, balanced, settled_heap
from config.bench.ways import FLOOR, FRESH, FRESH_SETTINGS, Api, Bottom

SIZES = (2_000,)
BAR = 1.0
# Its save is an INSERT of rows that nothing else depends on.
SAVE_BARS = {History.name: 1.2}


def play(run: Run, *, sizes: Sequence[int] = SIZES) -> Results:
    """Play the same turns in all stores that are installed; on PostgreSQL only."""
    results = Results("peers")
    if connection.vendor != "postgresql":
        results.notes.append("Peers are measured on PostgreSQL only.")
        return results
    populated()
    tables = Api(FRESH, {**FRESH_SETTINGS, "PREPARE_STATEMENTS": run.prepare})
    ours = [Ours(tables), Ours(Bottom(FLOOR, floor_here()))]
    with peers(results.notes) as others:
        measure(results, run, [*ours, *others], sizes=sizes)
        judge(results, [peer.name for peer in others], sizes=sizes)
    return results


@dataclass(frozen=True, slots=True)
class _Stage:
    """Stores that take turns, and where what they lose is noted."""

    results: Results
    run: Run
    known: Sequence[Peer]
    order: Iterator[Sequence[Peer]]


def measure(results: Results, run: Run, known: Sequence[Peer], *, sizes: Sequence[int]) -> None:
    """Measure stores in turns: short conversations turn by turn, then long ones."""
    series: Timed = defaultdict(Series)
    stage = _Stage(results, run, known, balanced(known))
    # One conversation that does not count: what is prepared or compiled, is so for all.
    for turns in run.material.played(1):
        _play(stage, turns, defaultdict(Series), name="bench-peers-warm")
    for peer in known:
        for size in sizes:
            run.say(f"  {size:,} messages: {peer.name}")
            with peer.taken():
                messages = peer.native(run.material.messages(size))
                peer.create(_long(peer, size), run.owner, messages)
    analyze()
    with settled_heap():
        for number, turns in enumerate(run.material.played(run.rounds)):
            _play(stage, turns, series, name=f"bench-peers-{number}")
        for size in sizes:
            _lengthen(stage, size, series)
    costs = {peer.name: _costs(run, peer) for peer in known}
    for operation in dict.fromkeys(operation for operation, _ in series):
        for peer in known:
            cost = costs[peer.name].get(operation)
            results.add(operation, peer.name, series[operation, peer.name], cost)


def judge(results: Results, names: Sequence[str], *, sizes: Sequence[int]) -> None:
    """Compare the public API with peers, and tell what it is to the floor in the same run."""
    for place in ("", *(f" at {size}" for size in sizes)):
        for name in names:
            bar = SAVE_BARS.get(name, BAR)
            results.compare(f"save{place}", FRESH, name, bar=bar)
        results.compare(f"save{place}", FRESH, FLOOR)
        for name in names:
            results.compare(f"load{place}", FRESH, name, bar=BAR)
        results.compare(f"load{place}", FRESH, FLOOR)


def _play(stage: _Stage, turns: Sequence[Any], series: Timed, *, name: str) -> None:
    """Play a conversation turn by turn in all stores; the first turn creates it."""
    owner = stage.run.owner
    for peer in stage.known:
        with peer.taken():
            peer.create(f"{name}-{peer.name}", owner, peer.native(turns[0]))
    for turn in turns[1:]:
        for peer in next(stage.order):
            _step(series, peer, f"{name}-{peer.name}", turn, owner=owner)
    messages = [message for turn in turns for message in turn]
    for peer in stage.known:
        _check(stage, peer, f"{name}-{peer.name}", messages)


def _lengthen(stage: _Stage, size: int, series: Timed) -> None:
    """Add a turn a round to the long conversations, which grow by it in all stores alike."""
    run = stage.run
    # As above, the first one does not count.
    turns = [run.material.turn(number) for number in range(run.rounds + 1)]
    for number, turn in enumerate(turns):
        heard = series if number else defaultdict(Series)
        for peer in next(stage.order):
            _step(heard, peer, _long(peer, size), turn, owner=run.owner, place=f" at {size}")
    messages = [*run.material.messages(size), *(message for turn in turns for message in turn)]
    for peer in stage.known:
        _check(stage, peer, _long(peer, size), messages)


def _step(
    series: Timed, peer: Peer, key: str, turn: Sequence[Any], *, owner: Any, place: str = ""
) -> None:
    """Load a conversation and save it with a turn more."""
    with peer.taken():
        new = peer.native(turn)
        loaded = series[f"load{place}", peer.name].timed(peer.load, key, owner)
        change = peer.added(loaded, new)
        series[f"save{place}", peer.name].timed(peer.save, key, owner, change)


def _long(peer: Peer, size: int) -> str:
    return f"bench-peers-{size}-{peer.name}"


def _check(stage: _Stage, peer: Peer, key: str, messages: Sequence[Any]) -> None:
    """Note it as a problem when a conversation does not load as put in, or not with its texts."""
    with peer.taken():
        found = peer.found(peer.load(key, stage.run.owner))
    expected = messages if peer.exact else [said(message) for message in messages]
    if json.dumps(found) != json.dumps(expected):
        stage.results.problems.append(f"{key} does not load as put in by {peer.name}")


def _costs(run: Run, peer: Peer) -> dict[str, dict[str, int]]:
    """Return what a load and a save of a turn cost a short conversation's store, if countable."""
    costs: dict[str, dict[str, int]] = {}
    key, turns = f"bench-peers-costs-{peer.name}", run.material.conversations[0]
    with peer.taken():
        if peer.plain() is None:
            return {}
        peer.create(key, run.owner, peer.native(turns[0]))
        # Twice: the first time is when statements are prepared.
        for _ in range(2):
            with counted(peer.plain()) as costs["load"]:
                loaded = peer.load(key, run.owner)
            change = peer.added(loaded, peer.native(turns[1]))
            with counted(peer.plain()) as costs["save"]:
                peer.save(key, run.owner, change)
    return costs
