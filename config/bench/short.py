"""Conversations of up to 20 turns: load, append a turn, save, one turn after the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from django.db import connection

from config.bench.playing import add, begun, check, costs_of
from config.bench.population import populated
from config.bench.results import Results
from config.bench.runs import Run
from config.bench.timing import Series, rotations, settled_heap
from config.bench.ways import BARE, FLOOR, FRESH, MIGRATED, OLD, PLAIN_FLOOR, Way, ways

BARS: dict[str, dict[str, float]] = {
    "postgresql": {"save": 1.8, "load": 1.4, "append": 1.5},
    "sqlite": {"save": 3.0, "load": 2.0},
}
OPERATIONS = ("save", "load", "append")
Timed = dict[tuple[str, str], Series]


def play(run: Run) -> Results:
    """Play a conversation a round in all ways, turn by turn; the first turn creates it."""
    results = Results("short")
    series: Timed = defaultdict(Series)
    populated(beside=True)
    with ways(prepare=run.prepare) as known:
        order = rotations(known)
        with settled_heap():
            for number, turns in enumerate(run.material.played(run.rounds)):
                _play(results, turns, order, series, owner=run.owner, name=f"bench-short-{number}")
        costs = {}
        for way in known:
            key, turns = f"bench-short-costs-{way.name}", run.material.conversations[0]
            with way.taken():
                way.create(key, run.owner, begun(turns[0]))
            costs[way.name] = costs_of(way, key, turns[1], owner=run.owner)
        for operation in OPERATIONS:
            for way in known:
                cost = costs[way.name][operation]
                results.add(operation, way.name, series[operation, way.name], cost)
    for operation in OPERATIONS:
        for name in (FRESH, MIGRATED):
            bar = BARS[connection.vendor].get(operation)
            results.compare(operation, name, FLOOR, bar=bar)
            if any(way.name == PLAIN_FLOOR for way in known):
                results.compare(operation, name, PLAIN_FLOOR, bar=bar)
            results.compare(operation, name, BARE)
        results.compare(operation, FLOOR, BARE)
        results.compare(operation, OLD, FRESH)
    return results


def _play(
    results: Results,
    turns: Sequence[Any],
    order: Iterator[Sequence[Way]],
    series: Timed,
    *,
    owner: Any,
    name: str,
) -> None:
    held = {}
    known = next(order)
    for way in known:
        with way.taken():
            for kind in ("saved", "added"):
                way.create(f"{name}-{kind}-{way.name}", owner, begun(turns[0]))
            held[way.name] = way.load(f"{name}-added-{way.name}", owner)[1]
    for step, turn in enumerate(turns[1:], start=2):
        for way in next(order):
            saved, added = f"{name}-saved-{way.name}", f"{name}-added-{way.name}"
            with way.taken():
                # What another way left in the processor's caches, and settings that are read once
                # a process, are no costs of this way.
                way.load(added, owner)
                state, version = series["load", way.name].timed(way.load, saved, owner)
                add(state, turn, step)
                series["save", way.name].timed(way.save, saved, owner, state, turn, version)
                series["append", way.name].timed(way.append, added, owner, turn, held[way.name])
    # What the floor wrote has to be what the public API would have written.
    tables = next(way for way in known if way.name == FRESH)
    messages = [message for turn in turns for message in turn]
    for way in known:
        for kind in ("saved", "added"):
            key = f"{name}-{kind}-{way.name}"
            check(results, way, key, messages, owner=owner)
            if way.name != OLD:
                check(results, tables, key, messages, owner=owner)
