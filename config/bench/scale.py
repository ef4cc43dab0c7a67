"""A million messages against ten thousand, in turns: what the size of the tables costs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from django.contrib.auth import get_user_model
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import Client

from config.bench.adminpages import Page, pages_of
from config.bench.databases import another, in_place
from config.bench.playing import add, undone
from config.bench.population import KINDS, Population, populate
from config.bench.results import Results
from config.bench.runs import Run
from config.bench.short import Timed
from config.bench.timing import Series, rotations, settled_heap
from config.bench.ways import MIGRATED, MIGRATED_SETTINGS, Api
from config.demo.rollout import flip
from conversations.storage import (
    get_conversation_id,
    list_conversations,
    list_messages,
    load_state,
    save_state,
)
from flags.phases import Phase

BAR = 1.5
SMALL = (10_000, 500)
# Measured are conversations of about the average length, which are as many in either, and of a
# kind: in both stores, with four context items.
AVERAGE = range(10, 31)
KIND = 4
# How often everything is called for each time that all pages are looked at.
CALLED = 3


_CALLS = (
    *("load", "save", "list_conversations", "list_conversations, next"),
    *("list_conversations, everybody's", "list_conversations, everybody's, next"),
    *("get_conversation_id", "list_messages", "list_messages, before"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """A database of one size."""

    name: str
    handle: BaseDatabaseWrapper
    population: Population
    chosen: Sequence[int]
    client: Client
    pages: list[Page] = field(default_factory=list)


def play(run: Run, *, small: tuple[int, int] = SMALL) -> Results:
    """Fill one database with few messages, another with many; then the same calls on both."""
    results = Results("scale")
    series: Timed = defaultdict(Series)
    with ExitStack() as stack:
        places = [
            stack.enter_context(_place(run, results, *size))
            for size in (small, (run.messages, run.conversations))
        ]
        order, random = rotations(places), Random(run.seed)
        # As at a host that migrated: whether old code wrote is asked at every load and save.
        way = Api(MIGRATED, {**MIGRATED_SETTINGS, "PREPARE_STATEMENTS": run.prepare})
        with way.taken(), settled_heap():
            for place in places:
                with in_place(place.handle):
                    place.pages.extend(pages_of(place.client))
            for number in range(run.rounds * CALLED):
                chance = random.random()
                for place in next(order):
                    with in_place(place.handle):
                        _call(series, place, run.material.turn(number), chance)
            # Behind the calls: two hundred pages leave the caches cold for what comes next.
            for _ in range(run.rounds):
                chance = random.random()
                for place in next(order):
                    with in_place(place.handle):
                        _look(series, place, place.pages, chance)
            doubted = _again(run, series, places, order, random)
    if doubted:
        results.notes.append(f"Asked again, as the machine does other things: {doubted} pages.")
    few, many = (place.name for place in places)
    for group, operations in _groups(places).items():
        # Of what is asked alike, the worst is told.
        worst = max(operations, key=lambda one: _worse(series, one, places))
        for size in (few, many):
            results.add(worst, size, series[worst, size], None)
        results.compare(worst, many, few, bar=BAR)
        if len(operations) > 1:
            results.notes.append(f"{group}: the worst of {len(operations)}.")
    for left_out in sorted({_named(page) for place in places for page in place.pages}):
        if left_out not in _shared(places):
            results.notes.append(f"{left_out}: on one of the databases alone, and not compared.")
    return results


def _again(
    run: Run,
    series: Timed,
    places: Sequence[Place],
    order: Iterator[Sequence[Place]],
    random: Random,
) -> int:
    """Ask again for the pages that seem too slow, twice at most; whatever was measured counts.

    Of two hundred medians of a few rounds on a busy machine some are high by chance. Returns: how
    many pages there were.
    """
    shared = _shared(places)
    asked: set[str] = set()
    for _ in range(2):
        slow = {name for name in shared if _worse(series, name, places) > BAR}
        asked |= slow
        for _ in range(run.rounds if slow else 0):
            chance = random.random()
            for place in next(order):
                pages = [page for page in place.pages if _named(page) in slow]
                with in_place(place.handle):
                    _look(series, place, pages, chance)
    return len(asked)


def _shared(places: Sequence[Place]) -> set[str]:
    """Return the names of the pages that both places have."""
    few, many = ({_named(page) for page in place.pages} for place in places)
    return few & many


def _worse(series: Timed, operation: str, places: Sequence[Place]) -> float:
    few, many = (series[operation, place.name].median for place in places)
    return many / few


def _groups(places: Sequence[Place]) -> dict[str, list[str]]:
    """Return the operations that both places were asked for, by what they are told as."""
    found: dict[str, list[str]] = {operation: [operation] for operation in _CALLS}
    shared = _shared(places)
    for page in places[0].pages:
        if _named(page) in shared:
            found.setdefault(f"admin: {page.group}", []).append(_named(page))
    return found


def _named(page: Page) -> str:
    return f"admin: {page.group}" + (f", {page.what}" if page.what else "")


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
            client = _administrator()
        lengths = population.lengths
        kind = range(min(KIND, len(lengths) - 1), len(lengths), KINDS)
        chosen = [number for number in kind if lengths[number] in AVERAGE]
        yield Place(name, handle, population, chosen or kind, client)


def _administrator() -> Client:
    model = get_user_model()
    user = model._base_manager.create(
        **{model.USERNAME_FIELD: "bench-administrator"}, is_staff=True, is_superuser=True
    )
    client = Client(headers={"host": "localhost"})
    client.force_login(user)
    return client


def _call(series: Timed, place: Place, turn: Sequence[Any], chance: float) -> None:
    """Call everything once, about a conversation that `chance` (0..1) picks."""
    number = place.chosen[int(chance * len(place.chosen))]
    key, owner = place.population.name(number), place.population.owner(number)

    def timed(operation: str, call: Any, *arguments: Any, **named: Any) -> Any:
        return series[operation, place.name].timed(call, *arguments, **named)

    state = timed("load", load_state, key, user_id=owner)
    add(state, turn, 2)
    with undone(key):
        timed("save", save_state, key, state, owner)
    page = timed("list_conversations", list_conversations, owner, limit=10)
    timed("list_conversations, next", list_conversations, owner, before=page.next, limit=10)
    page = timed("list_conversations, everybody's", list_conversations, None, limit=10)
    timed(
        "list_conversations, everybody's, next",
        list_conversations,
        None,
        before=page.next,
        limit=10,
    )
    timed("get_conversation_id", get_conversation_id, owner)
    page = timed("list_messages", list_messages, key, user_id=owner, limit=10)
    timed("list_messages, before", list_messages, key, user_id=owner, limit=10, before=page.first)


def _look(series: Timed, place: Place, pages: Sequence[Page], chance: float) -> None:
    """Ask the admin for these pages once, about a conversation that `chance` (0..1) picks."""
    number = place.chosen[int(chance * len(place.chosen))]
    names = {
        "name": place.population.name(number),
        "unmoved": f"unmoved-{place.population.name(number - number % 4 + 1)}",
        "user": f"{place.population.prefix}user-{number % len(place.population.owners)}",
        "pk": str(place.population.first + number),
    }
    for asked in pages:
        address = asked.at(**names)
        answer = series[_named(asked), place.name].timed(place.client.get, address)
        if answer.status_code != 200:
            raise RuntimeError(f"the admin answered {answer.status_code} for {address}")
