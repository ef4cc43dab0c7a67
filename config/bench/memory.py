"""What Python allocates: a load against the size of its JSON, and streams of either length."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

from config.bench.floors import floor_here, prepared
from config.bench.playing import begun
from config.bench.results import Results
from config.bench.runs import Run
from config.bench.ways import FLOOR, FRESH, FRESH_SETTINGS, OLD, Api, OldCode
from conversations.formats import Result, export_lines, import_lines

MESSAGES, BAR = 2_000, 2.5
# Conversations of a stream, beside one that is ten times as long. What holds them all takes ten
# times as much; what the collector has not got round to yet makes a third.
STREAM, STREAM_BAR = 20, 2.0


def play(run: Run, *, messages: int = MESSAGES, stream: int = STREAM) -> Results:
    """Load a conversation of 2,000 messages; export and import a few, and ten times as many."""
    results = Results("memory")
    content = run.material.messages(messages)
    text = json.dumps(content)
    size = len(text)
    tables, old = Api(FRESH, FRESH_SETTINGS), OldCode()
    with tables.taken():
        tables.create("bench-memory", run.owner, begun(content))
        old.create("bench-memory-old", run.owner, begun(content))
        floor = floor_here()
        loads: dict[str, Callable[[], Any]] = {
            FRESH: lambda: tables.load("bench-memory", run.owner),
            FLOOR: lambda: floor.load("bench-memory", run.owner),
            OLD: lambda: old.load("bench-memory-old", run.owner),
            # The least that these messages take in Python, before anything else is known of them.
            "json.loads": lambda: json.loads(text),
        }
        with prepared(wanted=False):
            for name, load in loads.items():
                load()
                bar = BAR if name == FRESH else None
                results.say(
                    f"peak of a load of {messages} / its JSON: {name}", peak(load) / size, bar=bar
                )
        _tell_streams(results, run, tables, stream, content[:100])
    results.notes.append(f"A message has {size // messages} bytes of JSON on average.")
    results.notes.append(
        "Peaks are Python's own (tracemalloc): what libpq or SQLite holds is not in them."
    )
    return results


def peak(call: Callable[[], Any]) -> int:
    """Return the most bytes that Python held because of a call, beyond what it held before."""
    gc.collect()
    tracemalloc.start()
    try:
        result = call()
        del result
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _tell_streams(
    results: Results, run: Run, tables: Api, stream: int, content: Sequence[Any]
) -> None:
    names = [f"bench-memory-{number}" for number in range(stream * 10)]
    for name in names:
        tables.create(name, run.owner, begun(content))
    few, many = stream, stream * 10

    def exported(count: int) -> None:
        for _ in islice(export_lines(), count):
            pass

    exported(few)
    exports = {count: peak(partial(exported, count)) for count in (few, many)}
    lines = [line.replace("bench-memory-", "bench-memory-again-") for line in export_lines(names)]
    first, rest = lines[:stream], lines[stream:]

    def imported(chosen: list[str]) -> None:
        for outcome in import_lines(chosen):
            if outcome.result != Result.CREATED:
                results.problems.append(f"{outcome.conversation_id}: {outcome.result}")

    imported(rest[:1])
    imports = {len(first): peak(lambda: imported(first))}
    imports[len(rest) - 1] = peak(lambda: imported(rest[1:]))
    for kind, peaks in (("export", exports), ("import", imports)):
        small, large = peaks
        results.say(
            f"peak of an {kind} of {large} / of {small} conversations",
            peaks[large] / peaks[small],
            bar=STREAM_BAR,
        )
