"""Many writers at once: what they get done together, what each waits, and that nothing is lost."""

from __future__ import annotations

import multiprocessing
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import pairwise
from statistics import median
from typing import Any

from django.db import connection, connections

from benchmarks.baseline import baseline_here, prepared
from benchmarks.contenders import FLOOR, FRESH, MIGRATED, SETTINGS, api
from benchmarks.results import Results
from benchmarks.rounds import Run
from benchmarks.timing import percentile, rotations
from conversations.models import ConversationMessage, ConversationState
from conversations.state import AgentState
from conversations.storage import append_messages, save_state

# Writers of SQLite wait for one lock in any case; more of them wait longer.
WRITERS = {"postgresql": 64, "sqlite": 8}
# A single process would measure Python's lock; a host has several.
PROCESSES = 4
SEVERAL, ONE = "conversations", "one conversation"
# A writer that takes longer than this has hung.
_HUNG_SECONDS = 300
# What the writers of a round are given; their processes are forked with it.
_job: dict[str, Any] = {}


def play(run: Run, results: Results, *, appends: int) -> None:
    """Let writers append in rounds, each way in its turn: to one each, then all to the same."""
    count = run.writers or WRITERS[connection.vendor]
    rounds = max(run.rounds // 10, 1)
    for kind in (SEVERAL, ONE):
        label = f"{count} writers, {kind if kind == ONE else f'{count} {kind}'}"
        seconds: dict[str, list[float]] = defaultdict(list)
        order = rotations((FRESH, MIGRATED, FLOOR))
        for number in range(rounds):
            for way in next(order):
                run.say(f"  {count} writers, {kind}: {way}, round {number + 1} of {rounds}")
                name = f"bench-{kind}-{number}-{way}"
                names = [name if kind == ONE else f"{name}-{writer}" for writer in range(count)]
                found = _round(run, results, way, names, appends)
                # The same clock in all processes: it counts from the start of the machine.
                ends = [moment for moments in found for moment in (moments[0], moments[-1])]
                seconds[way].append(max(ends) - min(ends))
                series = results.series[f"{label}: append", way]
                for moments in found:
                    series.seconds += [after - before for before, after in pairwise(moments)]
        rates = {way: count * appends / median(each) for way, each in seconds.items()}
        _tell(results, label, kind, rates)


def _round(
    run: Run, results: Results, way: str, names: list[str], appends: int
) -> list[list[float]]:
    """Let every writer append. Returns: of each the moments before and behind its calls."""
    with api(FRESH).configured():
        for name in set(names):
            save_state(name, AgentState(), run.owner)
    # A connection must not be used on both sides of a fork.
    connections.close_all()
    context = multiprocessing.get_context("fork")
    _job.update(run=run, way=way, appends=appends, barrier=context.Barrier(len(names)))
    shares = [names[place::PROCESSES] for place in range(min(PROCESSES, len(names)))]
    with ProcessPoolExecutor(len(shares), context) as processes:
        # All wait for each other at the barrier, so that each process gets one share.
        found = [each for share in processes.map(_write, shares) for each in share]
    for name in set(names):
        problems = lost(name, names.count(name) * (appends + 1))
        results.problems += [f"{name}: {problem}" for problem in problems]
    return found


def _write(names: list[str]) -> list[list[float]]:
    """Run the writers of one process, whose settings hold for all of its threads."""
    way = _job["way"] if _job["way"] in SETTINGS else FRESH
    with api(way, prepare=_job["run"].prepare).configured(), ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(_append, names))


def _append(name: str) -> list[float]:
    """Append one message after the other. Returns: the moments before, between and behind them."""
    is_floor, owner = _job["way"] == FLOOR, _job["run"].owner
    message = [{"role": "user", "content": f"what the writer of {name} says"}]

    def append() -> None:
        if is_floor:
            baseline_here().write(name, owner, message)
        else:
            append_messages(name, message, user_id=owner)

    try:
        with prepared(wanted=is_floor):
            # What only a connection's first statement takes is not what is measured.
            append()
            _job["barrier"].wait(_HUNG_SECONDS)
            moments = [time.perf_counter()]
            for _ in range(_job["appends"]):
                append()
                moments.append(time.perf_counter())
            return moments
    except BaseException:
        _job["barrier"].abort()
        raise
    finally:
        connections.close_all()


def lost(name: str, expected: int) -> list[str]:
    """Return what is wrong with a conversation that `expected` messages were appended to."""
    row = ConversationState.rows.get(conversation_id=name)
    messages = ConversationMessage.rows.filter(conversation_id=row.pk).order_by("sequence")
    sequences = list(messages.values_list("sequence", flat=True))
    problems = []
    if sequences != list(range(1, expected + 1)):
        problems.append(f"{expected - len(sequences)} of {expected} messages were lost")
    if row.message_count != expected:
        problems.append(f"the row counts {row.message_count} messages of {expected}")
    return problems


def _tell(results: Results, label: str, kind: str, rates: dict[str, float]) -> None:
    for way, rate in rates.items():
        results.tell(f"{label}: {way}", rate, unit="a second")
    # Many writers on few processors wait for those; the floor tells how long.
    for way in (FRESH, MIGRATED, FLOOR):
        if way != FLOOR:
            name, rate = f"{label}: rate of {way} / of floor", rates[way] / rates[FLOOR]
            results.tell(name, rate, bar=f"rate, {kind}", at_least=True)
        seconds = results.series[f"{label}: append", way].seconds
        waited = percentile(seconds, 0.99) / median(seconds)
        results.tell(f"{label}: p99 / median, {way}", waited, bar="wait" if way != FLOOR else "")
    name = f"{label}: conversations that lost something"
    results.tell(name, float(len(results.problems)), bar="lost", unit="")
