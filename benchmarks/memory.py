"""What Python allocates: a load against the size of its JSON, and streams of either length."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

from benchmarks.baseline import baseline_here, prepared
from benchmarks.contenders import FLOOR, FRESH, OLD, OldCode, api
from benchmarks.results import Results
from benchmarks.rounds import Run
from conversations.formats import Result, export_lines, import_lines


def play(run: Run, results: Results, *, messages: int, stream: int) -> None:
    """Load a conversation of 2,000 messages; export and import a few, and ten times as many."""
    content = run.corpus.messages(messages)
    text = json.dumps(content)
    tables, old, floor = api(FRESH), OldCode(), baseline_here()
    with tables.configured():
        for one in (tables, old):
            one.create(f"bench-memory-{one.name}", run.owner, content)
        loads: dict[str, Callable[[], Any]] = {
            FRESH: lambda: tables.load(f"bench-memory-{FRESH}", run.owner),
            FLOOR: lambda: floor.load(f"bench-memory-{FRESH}", run.owner),
            OLD: lambda: old.load(f"bench-memory-{OLD}", run.owner),
            # The least that these messages take in Python, before anything else is known of them.
            "json.loads": lambda: json.loads(text),
        }
        with prepared(wanted=False):
            for name, load in loads.items():
                load()
                results.tell(
                    f"peak of a load of {messages} / its JSON: {name}",
                    peak(load) / len(text),
                    bar="load" if name == FRESH else "",
                )
        for number in range(stream * 10):
            tables.create(f"bench-memory-{number}", run.owner, content[:100])
        _stream(results, stream)
    results.notes += [
        f"A message has {len(text) // messages} bytes of JSON on average.",
        "Peaks are Python's own (tracemalloc): what libpq or SQLite holds is not in them.",
    ]


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


def _stream(results: Results, few: int) -> None:
    """Compare streams: what holds all conversations takes ten times as much of ten times as many.

    What the collector has not got round to yet makes a third.
    """
    many = few * 10

    def export(count: int) -> None:
        for _ in islice(export_lines(), count):
            pass

    def load(chosen: Sequence[str]) -> None:
        for outcome in import_lines(chosen):
            if outcome.result != Result.CREATED:
                results.problems.append(f"{outcome.conversation_id}: {outcome.result}")

    export(few)
    names = [f"bench-memory-{number}" for number in range(many)]
    lines = [line.replace("bench-memory-", "bench-memory-again-") for line in export_lines(names)]
    load(lines[few : few + 1])
    streams: tuple[tuple[str, Callable[[Any], None], Any, Any, int], ...] = (
        ("export", export, few, many, many),
        ("import", load, lines[:few], lines[few + 1 :], many - few - 1),
    )
    for kind, work, short, long, count in streams:
        least, most = peak(partial(work, short)), peak(partial(work, long))
        name = f"peak of an {kind} of {count} / of {few} conversations"
        results.tell(name, most / least, bar="stream")
