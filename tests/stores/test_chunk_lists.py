"""Lists of the legacy chunk tables: by newest blob, each conversation once, over all pages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection

from conversations import storage
from conversations.reading import lists
from conversations.stores.chunks.store import ChunkStore
from conversations.stores.normalized import new_row
from conversations.stores.sql.expressions import NEVER
from conversations.stores.types import Summary
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryMetadata
from tests.support.factories import UserFactory

pytestmark = pytest.mark.django_db

START = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = ("a", "B", "c", "ä", "d e", "f" * 40, "{n}", "100%")
# What old code reads, then what is no state, or names nothing.
KINDS = ("state", "state", "state", "summary", None)


def blob(
    name: str | None, moment: datetime | None, *, owner: Any = None, kind: str | None = "state"
) -> MemoryChunk:
    """Store a chunk as old code does, under any conversation id."""
    chunk = MemoryChunk.objects.create(user=owner, content="{}", created_at=moment)
    rows = {"conversation_id": name, "type": kind}
    MemoryMetadata.objects.bulk_create(
        MemoryMetadata(chunk=chunk, key=key, value=value)
        for key, value in rows.items()
        if value is not None
    )
    return chunk


def stored_at_random(random: Random, owners: list[User]) -> list[tuple[Any, ...]]:
    """Store blobs with few different times. Returns: name, time, id and owner of the states."""
    stored = []
    untimed = random.sample(NAMES, 4)
    for _ in range(40):
        moment = random.choice([None, *(START + timedelta(hours=hour) for hour in range(6))])
        name, kind = random.choice([None, "", *NAMES]), random.choice(KINDS)
        if name in untimed:
            moment = None
        owner = random.choice([None, *owners])
        chunk = blob(name, moment, owner=owner, kind=kind)
        if kind == "state" and name:
            stored.append((name, moment, chunk.pk, owner))
            if random.random() < 0.2:
                # Old code repeats keys as it likes.
                MemoryMetadata.objects.create(chunk=chunk, key="conversation_id", value=name)
    return stored


def in_order(names: set[str]) -> list[str]:
    """Return the names in the order of the database."""
    made = [MemoryMetadata(chunk=blob(None, None, kind=None), key="n", value=n) for n in names]
    MemoryMetadata.objects.bulk_create(made)
    rows = MemoryMetadata.objects.filter(key="n").order_by("value")
    found = list(rows.values_list("value", flat=True))
    rows.delete()
    return found


def expected(stored: list[tuple[Any, ...]], owner: User | None) -> list[tuple[str, Any]]:
    """Return the list as a reader of the contract would make it: by hand, of everything."""
    newest: dict[str, tuple[Any, ...]] = {}
    for one in stored:
        before = newest.get(one[0])
        if before is None or (one[1] or NEVER, one[2]) > (before[1] or NEVER, before[2]):
            newest[one[0]] = one
    order = {name: place for place, name in enumerate(in_order(set(newest)))}
    shown = [one for one in newest.values() if owner is None or one[3] == owner]
    shown.sort(key=lambda one: (one[1] or NEVER, order[one[0]]), reverse=True)
    return [(name, moment) for name, moment, *_ in shown]


def paged(size: int, owner: User | None) -> list[tuple[str, Any]]:
    """Return the whole list, page by page."""
    found: list[Summary] = []
    before = None
    key = None if owner is None else str(owner.pk)
    while page := ChunkStore().list(owner=key, before=before, limit=size):
        found += page
        before = (page[-1].updated_at or NEVER, page[-1].conversation_id)
    return [(summary.conversation_id, summary.updated_at) for summary in found]


@pytest.mark.parametrize("seed", range(12))
def test_every_conversation_is_listed_once_by_its_newest_blob(seed: int) -> None:
    owners = [UserFactory(), UserFactory()]
    stored = stored_at_random(Random(seed), owners)
    for owner in (None, *owners):
        wanted = expected(stored, owner)
        for size in (1, 2, 5, 50):
            assert paged(size, owner) == wanted
        whole = ChunkStore().list(owner=None if owner is None else str(owner.pk))
        assert [summary.conversation_id for summary in whole] == [name for name, _ in wanted]


@pytest.mark.parametrize("seed", range(6))
def test_the_ids_of_states_come_once_each_and_in_order(seed: int) -> None:
    stored = stored_at_random(Random(seed), [])
    wanted = in_order({one[0] for one in stored})
    for size in (1, 2, 5, 50):
        found: list[str] = []
        while page := ChunkStore().ids(after=found[-1] if found else "", limit=size):
            assert len(page) == size or [*found, *page] == wanted
            found += page
        assert found == wanted


def test_a_page_is_full_although_much_names_no_state() -> None:
    """A caller that gets less than it asked for takes the list to have ended."""
    for number in range(30):
        blob(f"n{number:02}", START, kind="state" if number % 10 == 9 else "summary")
    assert ChunkStore().ids(limit=2) == ["n09", "n19"]
    assert ChunkStore().ids(after="n19", limit=2) == ["n29"]


def test_a_blob_whose_row_is_gone_is_no_conversation() -> None:
    """A load finds nothing there either."""
    blob("here", START)
    gone = blob("gone", START + timedelta(hours=1))
    if connection.vendor == "postgresql":
        pytest.skip("the foreign key keeps it")
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA defer_foreign_keys = ON")
        cursor.execute("DELETE FROM memory_chunks WHERE id = %s", [gone.pk])
    assert [summary.conversation_id for summary in ChunkStore().list()] == ["here"]
    MemoryMetadata.objects.filter(chunk_id=gone.pk).delete()


@pytest.mark.parametrize("seed", range(8))
def test_lists_over_both_stores_show_everything_once(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of legacy's conversations have moved, and whichever side is active later."""
    monkeypatch.setattr(lists, "_FEWEST", 1)
    random = Random(seed)
    owner = UserFactory()
    latest: dict[str, datetime] = {}
    for number in range(60):
        name = f"c{number:02}"
        moments = [START + timedelta(minutes=random.randrange(300)) for _ in range(3)]
        if random.random() < 0.7:
            for moment in moments[:2]:
                blob(name, moment, owner=owner)
            latest[name] = max(moments[:2])
        if name not in latest or random.random() < 0.6:
            row = new_row(name, now=moments[2], user_id=owner.pk)
            row.revision = 1
            row.save()
            latest[name] = moments[2]
    wanted = sorted(latest.values(), reverse=True)
    for user in (owner, None):
        for size in (1, 3, 7, 100):
            found: list[Any] = []
            with forced_phase(Phase.NEW_READS):
                page = storage.list_conversations(user, limit=size)
                found += page
                while page.next:
                    page = storage.list_conversations(user, before=page.next, limit=size)
                    found += page
            assert [one.updated_at for one in found] == wanted
            assert {one.conversation_id: one.updated_at for one in found} == latest


def test_moved_conversations_are_not_walked_through(django_assert_max_num_queries: Any) -> None:
    """The tables' page tells how far legacy has to be looked at."""
    owner = UserFactory()
    for number in range(120):
        moment = START + timedelta(minutes=number)
        blob(f"c{number:03}", moment, owner=owner)
        row = new_row(f"c{number:03}", now=moment, user_id=owner.pk)
        row.revision = 1
        row.save()
    for user in (owner, None):
        with forced_phase(Phase.NEW_READS), django_assert_max_num_queries(6):
            page = storage.list_conversations(user, limit=2)
        assert [one.conversation_id for one in page] == ["c119", "c118"]
