"""Long conversations: what grows with their length, and what does not."""

from __future__ import annotations

import marshal
from collections.abc import Sequence
from typing import Any

from benchmarks.contenders import (
    BARE,
    FLOOR,
    FRESH,
    MIGRATED,
    OLD,
    PLAIN_FLOOR,
    Api,
    Contender,
    hosts,
)
from benchmarks.results import Results
from benchmarks.rounds import Run, analyze, check, count_costs, undone
from benchmarks.timing import rotations, settled_heap
from conversations.storage import append_messages, load_state

WINDOW = 50
# Messages that are written at once where a conversation is made.
_BATCH = 5_000


def play(run: Run, results: Results, *, sizes: tuple[int, int], longest: int) -> None:
    """Load, save and append in turns; after each, every conversation is as long as before."""
    with hosts(run.prepare) as known:
        order = rotations(known)
        for one in known:
            for size in (*sizes, longest) if isinstance(one, Api) else sizes:
                _make(run, one, run.corpus.messages(size))
        analyze()
        with settled_heap():
            for number in range(run.rounds):
                # Either size first as often as the other.
                direction = 1 if number % 2 else -1
                for one in next(order):
                    with one.configured():
                        for size in sizes[::direction]:
                            _round(run, results, one, run.corpus.turn(number), size, sizes)
                        for size in (
                            (sizes[0], longest)[::direction] if isinstance(one, Api) else ()
                        ):
                            last, key = f"last {WINDOW} of {size}", _key(one, size)
                            results.timed(
                                *(last, one.name, load_state, key),
                                user_id=run.owner,
                                max_messages=WINDOW,
                            )
        for one in known:
            for size in sizes:
                key, place = _key(one, size), f" at {size}"
                check(run, results, one, key, run.corpus.messages(size))
                count_costs(run, results, one, key, run.corpus.turn(0), place)
    _tell(results, *sizes, longest)


def _key(one: Contender, size: int) -> str:
    return f"bench-long-{size}-{one.name}"


def _make(run: Run, one: Contender, messages: Sequence[Any]) -> None:
    key = _key(one, len(messages))
    with one.configured():
        one.create(key, run.owner, messages[:_BATCH])
        for start in range(_BATCH, len(messages), _BATCH):
            append_messages(key, messages[start : start + _BATCH], user_id=run.owner)


def _round(
    run: Run,
    results: Results,
    one: Contender,
    turn: Sequence[Any],
    size: int,
    sizes: Sequence[int],
) -> None:
    key, name, owner = _key(one, size), one.name, run.owner
    loaded = results.timed(f"load at {size}", name, one.load, key, owner)
    if name == FRESH:
        results.timed(f"marshal at {size}", "python", marshal.dumps, one.found(loaded), 2)
    change = one.added(loaded, turn)
    with undone(key):
        results.timed(f"save at {size}", name, one.save, key, owner, change)
    # The same before an append of either size: it reads nothing, but what a load of many left in
    # the processor's caches would show.
    held = {other: one.load(_key(one, other), owner) for other in sorted(sizes, reverse=True)}
    with undone(key):
        results.timed(f"append at {size}", name, one.append, key, owner, turn, held[size])


def _tell(results: Results, short: int, long: int, longest: int) -> None:
    median = results.median
    for name in (FRESH, MIGRATED, FLOOR):
        results.tell(
            f"append at {long} / append at {short}: {name}",
            median(f"append at {long}", name) / median(f"append at {short}", name),
            bar="" if name == FLOOR else "growth of an append",
        )
    for name in (FRESH, MIGRATED):
        for floor in (FLOOR, PLAIN_FLOOR):
            results.compare(f"load at {long}", name, floor, bar="load")
        for operation in (f"append at {long}", f"save at {long}"):
            results.compare(operation, name, FLOOR)
        beyond = median(f"save at {long}", name) - median(f"append at {long}", name)
        results.tell(
            f"(save - append) at {long} / marshal.dumps: {name}",
            beyond / median(f"marshal at {long}", "python"),
            bar="save beyond an append",
        )
        results.tell(
            f"last {WINDOW} of {longest} / of {short}: {name}",
            median(f"last {WINDOW} of {longest}", name) / median(f"last {WINDOW} of {short}", name),
            bar="window",
        )
    for operation in (f"load at {long}", f"save at {long}"):
        results.compare(operation, FRESH, BARE)
        results.compare(operation, FLOOR, BARE)
        results.compare(operation, OLD, FRESH)
