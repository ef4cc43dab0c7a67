"""Many writers at once: what they get done together, what each waits, and that nothing is lost."""

from __future__ import annotations

import multiprocessing
import threading
import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from django.db import connection, connections

from config.bench.floors import floor_here, prepared
from config.bench.population import populated
from config.bench.results import Results
from config.bench.runs import Run
from config.bench.timing import Series, percentile, rotations
from config.bench.ways import FLOOR, FRESH, FRESH_SETTINGS, MIGRATED, MIGRATED_SETTINGS, Api
from conversations.models import ConversationMessage, ConversationState
from conversations.state import AgentState
from conversations.storage import append_messages, save_state

WRITERS, APPENDS = 64, 100
# A single process would measure Python's lock; a host has several.
PROCESSES = 4
SEVERAL, ONE = "conversations", "one conversation"
BARS = {SEVERAL: 0.6, ONE: 0.5}
PATIENCE_BAR = 10.0
# Writers of SQLite wait for one lock in any case; more of them wait longer.
SQLITE_WRITERS = 8
# A writer that takes longer than this has hung.
_HUNG_SECONDS = 300


@dataclass(slots=True)
class _Done:
    """What the writers of one way did: seconds on the clock of each round, and of each append."""

    rounds: list[float] = field(default_factory=list)
    series: Series = field(default_factory=Series)


def play(run: Run, *, appends: int = APPENDS) -> Results:
    """Let writers append in rounds, each way in its turn: to one each, then all to the same."""
    results = Results("concurrent")
    postgresql = connection.vendor == "postgresql"
    count = run.writers or (WRITERS if postgresql else SQLITE_WRITERS)
    populated()
    ways = (FRESH, MIGRATED, FLOOR)
    rounds = max(run.rounds // 10, 1)
    for kind in (SEVERAL, ONE):
        done = {way: _Done() for way in ways}
        order = rotations(ways)
        for number in range(rounds):
            for way in next(order):
                run.say(f"  {count} writers, {kind}: {way}, round {number + 1} of {rounds}")
                name = f"bench-{kind}-{number}-{way}"
                names = [name if kind == ONE else f"{name}-{writer}" for writer in range(count)]
                _round(run, way, names, done[way], appends=appends, results=results)
        _tell(results, kind, done, count=count, appends=appends, judged=postgresql)
    return results


def _round(
    run: Run, way: str, names: list[str], done: _Done, *, appends: int, results: Results
) -> None:
    with Api(FRESH, FRESH_SETTINGS).taken():
        for name in set(names):
            save_state(name, AgentState(), run.owner)
    # A connection must not be used on both sides of a fork.
    connections.close_all()
    found = _written(run, way, names, appends=appends)
    # The same clock in all processes: it counts from the start of the machine.
    done.rounds.append(max(end for _, end, _ in found) - min(start for start, _, _ in found))
    done.series.seconds += [second for _, _, seconds in found for second in seconds]
    expected = {name: names.count(name) * (appends + 1) for name in names}
    results.problems += [
        f"{name}: {problem}" for name, count in expected.items() for problem in lost(name, count)
    ]


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


def _written(run: Run, way: str, names: list[str], *, appends: int) -> list[Any]:
    """Let every writer append, in a few processes. Returns: start, end and seconds of each."""
    context: Any = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(names))
    processes = min(PROCESSES, len(names))
    pipes = []
    for number in range(processes):
        receiver, sender = context.Pipe(duplex=False)
        share = names[number::processes]
        process = context.Process(
            target=_process, args=(run, way, share, appends, barrier, sender), daemon=True
        )
        process.start()
        sender.close()
        pipes.append((process, receiver))
    found: list[Any] = []
    for process, receiver in pipes:
        try:
            found += receiver.recv()
        except EOFError as error:
            raise RuntimeError("a writer ended without a word") from error
        process.join()
    failures = [one for one in found if isinstance(one, str)]
    if failures:
        raise RuntimeError(f"{len(failures)} writers failed, the first with {failures[0]}")
    return found


def _process(run: Run, way: str, names: list[str], appends: int, barrier: Any, sender: Any) -> None:
    """Run the writers of one process, and send what each found."""
    found: list[Any] = []

    def write(name: str) -> None:
        try:
            found.append(_append(run, way, name, appends=appends, barrier=barrier))
        except Exception as error:  # noqa: BLE001  the other side raises it
            barrier.abort()
            found.append(f"{type(error).__name__}: {error}")
        finally:
            connections.close_all()

    threads = [threading.Thread(target=write, args=(name,)) for name in names]
    # The settings are the process's own: they hold for all of its threads.
    settings = MIGRATED_SETTINGS if way == MIGRATED else FRESH_SETTINGS
    with Api(way, {**settings, "PREPARE_STATEMENTS": run.prepare}).taken():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    sender.send(found)
    sender.close()


def _append(run: Run, way: str, name: str, *, appends: int, barrier: Any) -> Any:
    """Append one message after the other. Returns: start, end, and the seconds of each."""
    message = [{"role": "user", "content": f"what the writer of {name} says"}]
    connection.ensure_connection()
    seconds = []
    with prepared(wanted=way == FLOOR):
        append = _floor_append if way == FLOOR else _api_append
        # What only a connection's first statement takes is not what is measured.
        append(name, run.owner, message)
        barrier.wait(_HUNG_SECONDS)
        started = before = time.perf_counter()
        for _ in range(appends):
            append(name, run.owner, message)
            now = time.perf_counter()
            seconds.append(now - before)
            before = now
    return started, before, seconds


def _api_append(name: str, owner: Any, messages: list[Any]) -> None:
    append_messages(name, messages, user_id=owner)


def _floor_append(name: str, owner: Any, messages: list[Any]) -> None:
    floor_here().append_unseen(name, owner, messages)


def _tell(
    results: Results,
    kind: str,
    done: dict[str, _Done],
    *,
    count: int,
    appends: int,
    judged: bool,
) -> None:
    label = f"{count} writers, {kind if kind == ONE else f'{count} {kind}'}"
    rates = {}
    for way, one in done.items():
        results.add(f"{label}: append", way, one.series, None)
        rates[way] = count * appends / median(one.rounds)
        results.say(f"{label}: {way}", rates[way], unit="a second")
    for way in (FRESH, MIGRATED):
        bar = BARS[kind] if judged else None
        results.say(
            f"{label}: rate of {way} / of floor", rates[way] / rates[FLOOR], bar=bar, at_least=True
        )
        seconds = done[way].series.seconds
        results.say(
            f"{label}: p99 / median, {way}",
            percentile(seconds, 0.99) / median(seconds),
            bar=PATIENCE_BAR if judged else None,
        )
    # Many writers on few processors wait for those; the floor tells how long.
    seconds = done[FLOOR].series.seconds
    results.say(f"{label}: p99 / median, {FLOOR}", percentile(seconds, 0.99) / median(seconds))
    lost = float(len(results.problems))
    results.say(f"{label}: conversations that lost something", lost, bar=0.0, unit="")
