"""Long conversations: what grows with their length, and what does not."""

from __future__ import annotations

import marshal
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from django.db import connection

from config.bench.playing import Cost, add, begun, check, costs_of, undone
from config.bench.population import populated
from config.bench.results import Results
from config.bench.runs import Run
from config.bench.short import Timed
from config.bench.timing import Series, rotations, settled_heap
from config.bench.ways import BARE, FLOOR, FRESH, MIGRATED, OLD, PLAIN_FLOOR, Api, Way, ways
from conversations.storage import append_messages, load_state

SIZES, LONGEST, WINDOW = (100, 2_000), 100_000, 50
LOAD_BARS = {"postgresql": 1.4, "sqlite": 2.0}
GROWTH_BAR, WINDOW_BAR, MARSHAL_BAR = 1.15, 1.2, 2.5
# Messages that are written at once where a conversation is made.
_BATCH = 5_000


def play(run: Run, *, sizes: tuple[int, int] = SIZES, longest: int = LONGEST) -> Results:
    """Load, save and append in turns; after each, every conversation is as long as before."""
    results = Results("long")
    series: Timed = defaultdict(Series)
    populated()
    with ways(prepare=run.prepare) as known:
        order = rotations(known)
        for way in known:
            for size in (*sizes, longest) if isinstance(way, Api) else sizes:
                _make(way, run.material.messages(size), owner=run.owner)
        analyze()
        with settled_heap():
            for number in range(run.rounds):
                turn = run.material.turn(number)
                # Either size first as often as the other.
                direction = 1 if number % 2 else -1
                for way in next(order):
                    with way.taken():
                        for size in sizes[::direction]:
                            _round(way, series, turn, size, sizes, owner=run.owner)
                        if isinstance(way, Api):
                            for size in (sizes[0], longest)[::direction]:
                                key = _key(way, size)
                                window = series[f"last {WINDOW} of {size}", way.name]
                                window.timed(
                                    load_state, key, user_id=run.owner, max_messages=WINDOW
                                )
        costs: dict[tuple[str, str], Cost] = {}
        for way in known:
            for size in sizes:
                check(results, way, _key(way, size), run.material.messages(size), owner=run.owner)
                found = costs_of(way, _key(way, size), run.material.turn(0), owner=run.owner)
                costs |= {(f"{name} at {size}", way.name): cost for name, cost in found.items()}
        names = {way.name: place for place, way in enumerate(known)}
        for operation, name in sorted(series, key=lambda key: (key[0], names.get(key[1], 0))):
            cost = costs.get((operation, name))
            results.add(operation, name, series[operation, name], cost)
    _compare(results, *sizes, longest)
    return results


def _key(way: Way, size: int) -> str:
    return f"bench-long-{size}-{way.name}"


def _make(way: Way, messages: Sequence[Any], *, owner: Any) -> None:
    key = _key(way, len(messages))
    with way.taken():
        way.create(key, owner, begun(messages[:_BATCH]))
        for start in range(_BATCH, len(messages), _BATCH):
            append_messages(key, messages[start : start + _BATCH], user_id=owner)


def analyze() -> None:
    """Let the planner know what autovacuum would have told it by now."""
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def _round(
    way: Way, series: Timed, turn: Sequence[Any], size: int, sizes: Sequence[int], *, owner: Any
) -> None:
    key, name = _key(way, size), way.name
    state, held = series[f"load at {size}", name].timed(way.load, key, owner)
    if name == FRESH:
        series[f"marshal at {size}", "python"].timed(marshal.dumps, state.conversation_history, 2)
    add(state, turn, state.step_count + 1)
    with undone(key):
        series[f"save at {size}", name].timed(way.save, key, owner, state, turn, held)
    # The same before an append of either size: it reads nothing, but what a load of many left in
    # the processor's caches would show.
    loaded = {other: way.load(_key(way, other), owner)[1] for other in sorted(sizes, reverse=True)}
    held = loaded[size]
    with undone(key):
        series[f"append at {size}", name].timed(way.append, key, owner, turn, held)


def _compare(results: Results, short: int, long: int, longest: int) -> None:
    median = results.median
    for name in (FRESH, MIGRATED, FLOOR):
        results.say(
            f"append at {long} / append at {short}: {name}",
            median(f"append at {long}", name) / median(f"append at {short}", name),
            bar=None if name == FLOOR else GROWTH_BAR,
        )
    for name in (FRESH, MIGRATED):
        for floor in (FLOOR, PLAIN_FLOOR):
            if any(measure.way == floor for measure in results.measures):
                results.compare(f"load at {long}", name, floor, bar=LOAD_BARS[connection.vendor])
        for operation in (f"append at {long}", f"save at {long}"):
            results.compare(operation, name, FLOOR)
        beyond = median(f"save at {long}", name) - median(f"append at {long}", name)
        results.say(
            f"(save - append) at {long} / marshal.dumps: {name}",
            beyond / median(f"marshal at {long}", "python"),
            bar=MARSHAL_BAR,
        )
        results.say(
            f"last {WINDOW} of {longest} / of {short}: {name}",
            median(f"last {WINDOW} of {longest}", name) / median(f"last {WINDOW} of {short}", name),
            bar=WINDOW_BAR,
        )
    for operation in (f"load at {long}", f"save at {long}"):
        results.compare(operation, FRESH, BARE)
        results.compare(operation, FLOOR, BARE)
        results.compare(operation, OLD, FRESH)
