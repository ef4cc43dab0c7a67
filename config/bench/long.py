"""Long conversations: what grows with their length, and what does not."""

from __future__ import annotations

import json
import marshal
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection

from config.bench.counting import counted
from config.bench.material import Material
from config.bench.results import Results
from config.bench.timing import Series, rotations, settled_heap
from config.bench.ways import BARE, FLOOR, FRESH, MIGRATED, Api, Bottom, ways
from conversations.state import AgentState
from conversations.storage import append_messages, load_state

SHORT, LONG, LONGEST, WINDOW = 100, 2_000, 100_000, 50
LOAD_BAR = {"postgresql": 1.4, "sqlite": 2.0}
GROWTH_BAR, WINDOW_BAR, MARSHAL_BAR = 1.15, 1.2, 2.5
# Messages that are written at once where a conversation is made.
_BATCH = 5_000
_ALL = ("save", "load", "append", "window")


def play(
    material: Material,
    *,
    owner: Any,
    rounds: int,
    sizes: tuple[int, int] = (SHORT, LONG),
    longest: int = LONGEST,
) -> Results:
    """Load, save and append in turns, every conversation as long again after each round."""
    short, long = sizes
    results = Results("long")
    series: dict[tuple[str, str], Series] = defaultdict(Series)
    with ways() as known:
        order = rotations(known)
        for way in known:
            for size in sizes:
                _make(way, material, size, owner=owner)
            if isinstance(way, Api):
                _make(way, material, longest, owner=owner, only_windows=True)
        _analyze()
        with settled_heap():
            for number in range(rounds):
                turn = material.turn(number)
                for way in next(order):
                    with way.taken():
                        for size in sizes if number % 2 else reversed(sizes):
                            _round(way, series, turn, size, owner=owner)
                        if isinstance(way, Api):
                            for size in (short, longest) if number % 2 else (longest, short):
                                key = _key(way, size)
                                series[f"window at {size}", way.name].timed(
                                    lambda: load_state(  # noqa: B023
                                        key,
                                        user_id=owner,
                                        max_messages=WINDOW,  # noqa: B023
                                    )
                                )
        costs = _costs(known, material.turn(0), sizes, owner=owner)
        _check(known, material, sizes, owner=owner, results=results)
    for operation, way in sorted(series):
        results.add(operation, way, series[operation, way], costs.get((operation, way)))
    _compare(results, short, long, longest)
    return results


def _key(way: Api | Bottom, size: int) -> str:
    return f"bench-long-{size}-{way.name}"


def _make(
    way: Api | Bottom, material: Material, size: int, *, owner: Any, only_windows: bool = False
) -> None:
    messages = material.messages(size)
    with way.taken():
        way.create(_key(way, size), owner, AgentState(conversation_history=messages[:_BATCH]))
        for start in range(_BATCH, size, _BATCH):
            append_messages(_key(way, size), messages[start : start + _BATCH], user_id=owner)


def _analyze() -> None:
    """Let the planner know what autovacuum would have told it by now."""
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def _round(
    way: Api | Bottom,
    series: dict[tuple[str, str], Series],
    turn: Any,
    size: int,
    *,
    owner: Any,
) -> None:
    key, name = _key(way, size), way.name
    state, held = series[f"load at {size}", name].timed(lambda: way.load(key, owner))
    if way.name == FRESH:
        messages = state.conversation_history
        series[f"marshal at {size}", "python"].timed(lambda: marshal.dumps(messages, 2))
    state.conversation_history = [*state.conversation_history, *turn]
    state.step_count += 1
    with undone(key):
        series[f"save at {size}", name].timed(lambda: way.save(key, owner, state, turn, held))
    held = way.load(key, owner)[1] if isinstance(way, Bottom) else None
    with undone(key):
        series[f"append at {size}", name].timed(lambda: way.append(key, owner, turn, held))


@contextmanager
def undone(conversation_id: str) -> Iterator[None]:
    """Take back what is appended meanwhile, so that the conversation stays as long as it was."""
    names = "revision, next_sequence, message_count, messages_digest, state_digest, step_count"
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT id, {names} FROM conversation_states WHERE conversation_id = %s",
            [conversation_id],
        )
        pk, *values = cursor.fetchone()
    try:
        yield
    finally:
        sets = ", ".join(f"{name} = %s" for name in names.split(", "))
        with connection.cursor() as cursor:
            cursor.execute(
                "DELETE FROM conversation_messages WHERE conversation_id = %s AND sequence >= %s",
                [pk, values[1]],
            )
            cursor.execute(f"UPDATE conversation_states SET {sets} WHERE id = %s", [*values, pk])


def _costs(
    known: list[Api | Bottom], turn: Any, sizes: tuple[int, int], *, owner: Any
) -> dict[tuple[str, str], dict[str, int]]:
    """Count what each operation costs the database; nothing of that is timed."""
    costs = {}
    for way in known:
        for size in sizes:
            key = _key(way, size)
            with way.taken():
                with counted(way.plain()) as load:
                    state, held = way.load(key, owner)
                state.conversation_history = [*state.conversation_history, *turn]
                with undone(key), counted(way.plain()) as save:
                    way.save(key, owner, state, turn, held)
                held = way.load(key, owner)[1]
                with undone(key), counted(way.plain()) as append:
                    way.append(key, owner, turn, held)
            for operation, cost in (("load", load), ("save", save), ("append", append)):
                costs[f"{operation} at {size}", way.name] = cost
    return costs


def _check(
    known: list[Api | Bottom],
    material: Material,
    sizes: tuple[int, int],
    *,
    owner: Any,
    results: Results,
) -> None:
    for way in known:
        for size in sizes:
            with way.taken():
                state, _ = way.load(_key(way, size), owner)
            if json.dumps(state.conversation_history) != json.dumps(material.messages(size)):
                results.problems.append(f"{_key(way, size)} does not load as put in")


def _compare(results: Results, short: int, long: int, longest: int) -> None:
    load_bar = LOAD_BAR[connection.vendor]
    for name in (FRESH, MIGRATED):
        results.compare(f"load at {long}", name, FLOOR, bar=load_bar)
        results.compare(f"load at {long}", name, BARE)
        results.compare(f"append at {long}", name, FLOOR)
        results.compare(f"save at {long}", name, FLOOR)
        results.say(
            f"append at {long} / at {short}: {name}",
            results.median(f"append at {long}", name) / results.median(f"append at {short}", name),
            bar=GROWTH_BAR,
        )
        beyond = results.median(f"save at {long}", name) - results.median(f"append at {long}", name)
        results.say(
            f"(save - append) at {long} / marshal.dumps: {name}",
            beyond / results.median(f"marshal at {long}", "python"),
            bar=MARSHAL_BAR,
        )
        results.say(
            f"last {WINDOW} of {longest} / of {short}: {name}",
            results.median(f"window at {longest}", name)
            / results.median(f"window at {short}", name),
            bar=WINDOW_BAR,
        )
