"""Steps of several workloads: turns that contenders play in rounds, and what a call costs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.db import connection

from benchmarks.contenders import Contender, OldCode
from benchmarks.corpus import Corpus, said
from benchmarks.counting import counted
from benchmarks.results import Results


def _silent(line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, slots=True)
class Run:
    """What workloads are given. `owner` is the user whose conversations are measured.

    `prepare` lets the public API prepare statements; `messages` and `conversations` are how many
    the workload scale makes, `writers` are those of concurrent; `say` tells of progress.
    """

    corpus: Corpus
    owner: Any
    rounds: int
    seed: int
    prepare: bool = False
    messages: int = 1_000_000
    conversations: int = 50_000
    writers: int | None = None
    say: Any = _silent


def play(
    run: Run,
    results: Results,
    known: Sequence[Contender],
    order: Iterator[Sequence[Contender]],
    *,
    warm: bool = True,
    appends: bool = False,
) -> None:
    """Play a conversation a round, turn by turn: load, add the turn, save; or append it to another.

    The first turn creates it. `warm`: before its turn a contender loads something off the clock.
    What another one left in the processor's caches, and settings that a process reads once, are
    no costs of this one.
    """
    results.contenders = [one.name for one in known]
    kinds = ("saved", "added") if appends else ("saved",)
    for number, turns in enumerate(run.corpus.played(run.rounds)):
        keys = {
            one.name: [f"bench-{results.workload}-{number}-{kind}-{one.name}" for kind in kinds]
            for one in known
        }
        held = {}
        for one in known:
            with one.configured():
                for key in keys[one.name]:
                    one.create(key, run.owner, one.native(turns[0]))
                held[one.name] = one.load(keys[one.name][-1], run.owner)
        for turn in turns[1:]:
            for one in next(order):
                saved, added = keys[one.name][0], keys[one.name][-1]
                new, loaded = one.native(turn), held[one.name]
                with one.configured():
                    if warm:
                        one.load(added, run.owner)
                    add_turn(run, results, one, saved, new)
                    if appends:
                        results.timed("append", one.name, one.append, added, run.owner, new, loaded)
        messages = [message for turn in turns for message in turn]
        for one in known:
            for key in keys[one.name]:
                check(run, results, one, key, messages)
                # What the floor wrote has to be what the public API would have written.
                if appends and not isinstance(one, OldCode):
                    check(run, results, known[0], key, messages)


def add_turn(
    run: Run, results: Results, one: Contender, key: str, new: Sequence[Any], place: str = ""
) -> None:
    """Load a conversation and save it with a turn more."""
    loaded = results.timed(f"load{place}", one.name, one.load, key, run.owner)
    change = one.added(loaded, new)
    results.timed(f"save{place}", one.name, one.save, key, run.owner, change)


def check(run: Run, results: Results, one: Contender, key: str, messages: Sequence[Any]) -> None:
    """Note it as a problem when a conversation does not load as put in, or not with its texts."""
    with one.configured():
        found = one.found(one.load(key, run.owner))
    expected = messages if one.exact else [said(message) for message in messages]
    sort = not one.ordered
    if json.dumps(found, sort_keys=sort) != json.dumps(expected, sort_keys=sort):
        results.problems.append(f"{key} does not load as put in by {one.name}")


def count_all_costs(run: Run, results: Results, known: Sequence[Contender]) -> None:
    """Count what calls cost on a conversation of one turn."""
    first, second, *_ = run.corpus.conversations[0]
    for one in known:
        key = f"bench-{results.workload}-costs-{one.name}"
        with one.configured():
            one.create(key, run.owner, one.native(first))
        count_costs(run, results, one, key, second)


def count_costs(
    run: Run, results: Results, one: Contender, key: str, turn: Sequence[Any], place: str = ""
) -> None:
    """Count what a load, a save and an append of a turn cost the database, if countable."""
    operations = {operation for operation, name in results.series if name == one.name}
    with one.configured():
        if one.plain() is None:
            return
        new = one.native(turn)
        # The first time statements are prepared, and now and then a process reads its switches.
        for _ in range(3):
            with _least(results, one, f"load{place}"):
                loaded = one.load(key, run.owner)
            change = one.added(loaded, new)
            with undone(key), _least(results, one, f"save{place}"):
                one.save(key, run.owner, change)
            if f"append{place}" in operations:
                loaded = one.load(key, run.owner)
                with undone(key), _least(results, one, f"append{place}"):
                    one.append(key, run.owner, new, loaded)


@contextmanager
def _least(results: Results, one: Contender, operation: str) -> Iterator[None]:
    """Count the block; of several, the one counts that cost least."""
    with counted(one.plain()) as cost:
        yield
    known = results.costs.get((operation, one.name), cost)
    results.costs[operation, one.name] = min(known, cost, key=lambda found: sum(found.values()))


_ROW = (
    *("user_input", "focus_areas", "step_count", "last_tool_result", "extra", "revision"),
    *("message_count", "messages_digest", "message_blocks", "state_digest", "next_sequence", "id"),
)


@contextmanager
def undone(key: str) -> Iterator[None]:
    """Take back what is added meanwhile, so that the conversation stays as long as it was."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {', '.join(_ROW)} FROM conversation_states WHERE conversation_id = %s", [key]
        )
        row = cursor.fetchone()
        cursor.execute("SELECT coalesce(max(id), 0) FROM memory_chunks")
        (chunk,) = cursor.fetchone()
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            if row is not None:
                cursor.execute(
                    "DELETE FROM conversation_messages"
                    " WHERE sequence >= %s AND conversation_id = %s",
                    row[-2:],
                )
                sets = ", ".join(f"{name} = %s" for name in _ROW[:-1])
                cursor.execute(f"UPDATE conversation_states SET {sets} WHERE id = %s", row)
            cursor.execute("DELETE FROM memory_metadata WHERE chunk_id > %s", [chunk])
            cursor.execute("DELETE FROM memory_chunks WHERE id > %s", [chunk])


def analyze() -> None:
    """Let the planner know what autovacuum would have told it by now."""
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
