"""A million messages against ten thousand, in turns: what the size of the tables costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from django.contrib.auth import get_user_model
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import Client

from benchmarks.adminpages import Page, pages_of
from benchmarks.contenders import MIGRATED, add, api
from benchmarks.databases import another, in_place
from benchmarks.population import KINDS, Population, populate
from benchmarks.results import Results
from benchmarks.rounds import Run, undone
from benchmarks.timing import rotations, settled_heap
from config.demo.rollout import flip
from conversations.storage import (
    get_conversation_id,
    list_conversations,
    list_messages,
    load_state,
    save_state,
)
from flags.phases import Phase

# Measured are conversations of about the average length, which are as many in either, and of a
# kind: in both stores, with four context items.
AVERAGE = range(10, 31)
KIND = 4
# How often everything is called for each time that all pages are looked at.
CALLED = 3


@dataclass(frozen=True, slots=True)
class Place:
    """A database of one size."""

    name: str
    handle: BaseDatabaseWrapper
    population: Population
    chosen: Sequence[int]
    client: Client
    pages: list[Page] = field(default_factory=list)

    def number(self, chance: float) -> int:
        """Return the conversation that `chance` (0..1) picks."""
        return self.chosen[int(chance * len(self.chosen))]


Work = Callable[[Results, Place, float], None]


def play(run: Run, results: Results, *, small: tuple[int, int]) -> None:
    """Fill one database with few messages, another with many; then the same calls on both."""
    with ExitStack() as stack:
        places = [
            stack.enter_context(_place(run, results, *size))
            for size in (small, (run.messages, run.conversations))
        ]
        order, random = rotations(places), Random(run.seed)

        def in_turns(rounds: int, work: Work) -> None:
            for _ in range(rounds):
                chance = random.random()
                for place in next(order):
                    with in_place(place.handle):
                        work(results, place, chance)

        # As at a host that migrated: whether old code wrote is asked at every load and save.
        with api(MIGRATED, prepare=run.prepare).configured(), settled_heap():
            for place in places:
                with in_place(place.handle):
                    place.pages.extend(pages_of(place.client))
            in_turns(run.rounds * CALLED, partial(_call, run))
            calls = list(dict.fromkeys(operation for operation, _ in results.series))
            # Behind the calls: two hundred pages leave the caches cold for what comes next.
            in_turns(run.rounds, _look)
            _ask_again(run, results, places, in_turns)
    _tell(results, calls, places)


def _ask_again(
    run: Run, results: Results, places: Sequence[Place], in_turns: Callable[[int, Work], None]
) -> None:
    """Ask again for the pages that seem too slow, twice at most; every measurement counts.

    Of two hundred medians of a few rounds on a busy machine some are high by chance.
    """
    bar, asked = max(filter(None, results.bars["growth"])), set()
    for _ in range(2):
        slow = {name for name in _shared(places) if _growth(results, name, places) > bar}
        asked |= slow
        in_turns(run.rounds if slow else 0, partial(_look, only=slow))
    if asked:
        results.notes.append(f"Asked again, as the machine does other things: {len(asked)} pages.")


def _tell(results: Results, calls: Sequence[str], places: Sequence[Place]) -> None:
    """Tell the worst of what is asked alike; of the others no series is kept."""
    few, many = (place.name for place in places)
    known = results.series.copy()
    results.series.clear()
    for group, operations in groups(calls, places).items():
        worst = max(operations, key=lambda one: known[one, many].median / known[one, few].median)
        results.series |= {(worst, size): known[worst, size] for size in (few, many)}
        results.compare(worst, many, few, bar="growth")
        if len(operations) > 1:
            results.notes.append(f"{group}: the worst of {len(operations)}.")
    for left_out in sorted({page.name for place in places for page in place.pages}):
        if left_out not in _shared(places):
            results.notes.append(f"{left_out}: on one of the databases alone, and not compared.")


def groups(calls: Sequence[str], places: Sequence[Place]) -> dict[str, list[str]]:
    """Return the operations that both places were asked for, by what they are told as."""
    found = {operation: [operation] for operation in calls}
    shared = _shared(places)
    for page in places[0].pages:
        if page.name in shared:
            found.setdefault(f"admin: {page.group}", []).append(page.name)
    return found


def _shared(places: Sequence[Place]) -> set[str]:
    """Return the names of the pages that both places have."""
    few, many = ({page.name for page in place.pages} for place in places)
    return few & many


def _growth(results: Results, operation: str, places: Sequence[Place]) -> float:
    few, many = (results.median(operation, place.name) for place in places)
    return many / few


@contextmanager
def _place(run: Run, results: Results, messages: int, conversations: int) -> Iterator[Place]:
    name = f"{messages:,} messages"
    with another() as handle:
        with in_place(handle):
            flip(Phase.NEW_ONLY)
            started = time.perf_counter()
            population = populate(
                messages=messages,
                conversations=conversations,
                seed=run.seed,
                beside=True,
                progress=lambda written: run.say(f"  {written:,} of {name}"),
            )
            seconds = time.perf_counter() - started
            results.notes.append(f"{name} in {conversations:,} conversations: {seconds:.1f} s.")
            client = Client(headers={"host": "localhost"})
            client.force_login(get_user_model().objects.create_superuser("bench-administrator"))
        lengths = population.lengths
        kind = range(min(KIND, len(lengths) - 1), len(lengths), KINDS)
        chosen = [number for number in kind if lengths[number] in AVERAGE]
        yield Place(name, handle, population, chosen or kind, client)


def _call(run: Run, results: Results, place: Place, chance: float) -> None:
    """Call everything once, about a conversation that `chance` picks."""
    number = place.number(chance)
    key, owner = place.population.name(number), place.population.owner(number)

    def timed(operation: str, call: Any, *arguments: Any, **named: Any) -> Any:
        return results.timed(operation, place.name, call, *arguments, **named)

    state = timed("load", load_state, key, user_id=owner)
    add(state, run.corpus.turn(number))
    with undone(key):
        timed("save", save_state, key, state, owner)
    for name, user in (("list_conversations", owner), ("list_conversations, everybody's", None)):
        page = timed(name, list_conversations, user, limit=10)
        timed(f"{name}, next", list_conversations, user, before=page.next, limit=10)
    timed("get_conversation_id", get_conversation_id, owner)
    page = timed("list_messages", list_messages, key, user_id=owner, limit=10)
    timed("list_messages, before", list_messages, key, user_id=owner, limit=10, before=page.first)


def _look(results: Results, place: Place, chance: float, only: set[str] | None = None) -> None:
    """Ask the admin for its pages once, about a conversation that `chance` picks."""
    number = place.number(chance)
    names = {
        "name": place.population.name(number),
        "unmoved": f"unmoved-{place.population.name(number - number % 4 + 1)}",
        "user": f"{place.population.prefix}user-{number % len(place.population.owners)}",
        "pk": str(place.population.first + number),
    }
    for page in place.pages:
        if only is None or page.name in only:
            address = page.at(**names)
            answer = results.timed(page.name, place.name, place.client.get, address)
            if answer.status_code != 200:
                raise RuntimeError(f"the admin answered {answer.status_code} for {address}")
