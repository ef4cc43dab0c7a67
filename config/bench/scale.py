"""A million messages against ten thousand, in turns: what the size of the tables costs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from django.contrib.auth import get_user_model
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import Client

from config.bench.databases import another, in_place
from config.bench.playing import add, undone
from config.bench.population import Population, populate
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
# Measured are conversations of about the average length, which are as many in either.
AVERAGE = range(10, 31)
LISTS = ("conversations/conversationstate", "conversations/conversationmessage")


@dataclass(frozen=True, slots=True)
class Place:
    """A database of one size."""

    name: str
    handle: BaseDatabaseWrapper
    population: Population
    chosen: Sequence[int]
    client: Client


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
            for number in range(run.rounds):
                chance = random.random()
                for place in next(order):
                    with in_place(place.handle):
                        _round(series, place, run.material.turn(number), chance)
    for operation in dict.fromkeys(operation for operation, _ in series):
        for place in places:
            results.add(operation, place.name, series[operation, place.name], None)
        few, many = (place.name for place in places)
        results.compare(operation, many, few, bar=BAR)
    return results


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
                progress=lambda written: run.say(f"  {written:,} of {name}"),
            )
            seconds = time.perf_counter() - started
            results.notes.append(f"{name} in {conversations:,} conversations: {seconds:.1f} s.")
            client = _administrator()
        lengths = population.lengths
        chosen = [number for number, length in enumerate(lengths) if length in AVERAGE]
        yield Place(name, handle, population, chosen or range(len(lengths)), client)


def _administrator() -> Client:
    model = get_user_model()
    user = model._base_manager.create(
        **{model.USERNAME_FIELD: "bench-administrator"}, is_staff=True, is_superuser=True
    )
    client = Client(headers={"host": "localhost"})
    client.force_login(user)
    return client


def _round(series: Timed, place: Place, turn: Sequence[Any], chance: float) -> None:
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
    timed("get_conversation_id", get_conversation_id, owner)
    page = timed("list_messages", list_messages, key, user_id=owner, limit=10)
    timed("list_messages, before", list_messages, key, user_id=owner, limit=10, before=page.first)
    for path in LISTS:
        answer = timed(f"admin: {path}", place.client.get, f"/admin/{path}/")
        if answer.status_code != 200:
            raise RuntimeError(f"the admin answered {answer.status_code} for {path}")
