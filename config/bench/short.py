"""Conversations of up to 20 turns: load, append a turn, save, one turn after the other."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from django.db import connection

from config.bench.counting import counted
from config.bench.material import Material
from config.bench.results import Results
from config.bench.timing import Series, rotations, settled_heap
from config.bench.ways import BARE, FLOOR, FRESH, MIGRATED, Api, Bottom, ways
from conversations.state import AgentState

BARS = {
    "postgresql": {"save": 1.8, "load": 1.4, "append": 1.5},
    "sqlite": {"save": 3.0, "load": 2.0, "append": None},
}
OPERATIONS = ("save", "load", "append")
Played = tuple[Any, ...]


def play(material: Material, *, owner: Any, rounds: int) -> Results:
    """Play a conversation a round in all ways, turn by turn; the first turn creates it."""
    results = Results("short")
    series: dict[tuple[str, str], Series] = defaultdict(Series)
    with ways() as known:
        order = rotations(known)
        with settled_heap():
            for number, turns in enumerate(material.played(rounds)):
                _play(turns, known, order, series, owner=owner, number=number, results=results)
        costs = _costs(material, known, owner=owner)
    for operation in OPERATIONS:
        for way in known:
            results.add(
                operation, way.name, series[operation, way.name], costs[operation, way.name]
            )
    for operation in OPERATIONS:
        for name in (FRESH, MIGRATED):
            results.compare(operation, name, FLOOR, bar=BARS[connection.vendor][operation])
            results.compare(operation, name, BARE)
        results.compare(operation, FLOOR, BARE)
    return results


def _play(
    turns: Played,
    known: list[Api | Bottom],
    order: Any,
    series: dict[tuple[str, str], Series],
    *,
    owner: Any,
    number: int,
    results: Results,
) -> None:
    saved = {way.name: f"bench-short-{number}-save-{way.name}" for way in known}
    added = {way.name: f"bench-short-{number}-append-{way.name}" for way in known}
    held = {}
    for way in known:
        with way.taken():
            way.create(saved[way.name], owner, _begun(turns))
            held[way.name] = way.create(added[way.name], owner, _begun(turns))
    for step, turn in enumerate(turns[1:], start=2):
        for way in next(order):
            name = way.name
            with way.taken():
                state, version = series["load", name].timed(
                    lambda: way.load(saved[way.name], owner)  # noqa: B023
                )
                _add(state, turn, step)
                series["save", name].timed(
                    lambda: way.save(saved[way.name], owner, state, turn, version)  # noqa: B023
                )
                series["append", name].timed(
                    lambda: way.append(added[way.name], owner, turn, held[way.name])  # noqa: B023
                )
    _check(turns, known, saved, added, owner=owner, results=results)


def _begun(turns: Played) -> AgentState:
    state = AgentState(focus=["bench"])
    _add(state, turns[0], 1)
    return state


def _add(state: AgentState, turn: Any, step: int) -> None:
    """Change a loaded state as an assistant does in a turn."""
    state.conversation_history = [*state.conversation_history, *turn]
    state.step_count = step
    state.user_input = f"what was said in turn {step}"
    state.last_tool_result = {"turn": step, "ok": True}


def _check(
    turns: Played,
    known: list[Api | Bottom],
    saved: dict[str, str],
    added: dict[str, str],
    *,
    owner: Any,
    results: Results,
) -> None:
    """Note what does not load as it was put in, through the public API and the floor alike."""
    messages = json.dumps([message for turn in turns for message in turn])
    for way in known:
        for names in (saved, added):
            for reader in (known[0], way):
                with reader.taken():
                    state, _ = reader.load(names[way.name], owner)
                if json.dumps(state.conversation_history) != messages:
                    results.problems.append(
                        f"{names[way.name]} does not load as put in by {reader.name}"
                    )


def _costs(
    material: Material, known: list[Api | Bottom], *, owner: Any
) -> dict[tuple[str, str], dict[str, int]]:
    """Count what one more turn of a conversation costs; nothing of that is timed."""
    turns, costs = material.conversations[0], {}
    for way in known:
        key = f"bench-short-costs-{way.name}"
        with way.taken():
            held = way.create(key, owner, _begun(turns))
            # Twice: the first time is when statements are prepared.
            for step, turn in enumerate((turns[1], turns[1]), start=2):
                with counted(way.plain()) as load:
                    state, version = way.load(key, owner)
                _add(state, turn, step)
                with counted(way.plain()) as save:
                    way.save(key, owner, state, turn, version)
                if held is not None:
                    held = way.load(key, owner)[1]
                with counted(way.plain()) as append:
                    way.append(key, owner, turn, held)
        costs |= {("load", way.name): load, ("save", way.name): save}
        costs["append", way.name] = append
    return costs
