"""What a load and a save look through in legacy does not grow with what was saved before."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.utils import timezone

from conversations.models import ConversationState
from conversations.storage import load_state, save_state
from conversations.stores.chunks.format import CONVERSATION_ID, REVISION_MARK
from conversations.stores.chunks.store import ChunkStore
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryMetadata
from tests.storage.test_statements import statements
from tests.support.factories import message, state
from tests.support.legacy_schema import old_save

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _dual(settings: Any) -> Any:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    with forced_phase(Phase.DUAL_WRITE):
        yield


def saved(*texts: str) -> None:
    for text in texts:
        held = load_state("c")
        held.conversation_history.append(message(text))
        save_state("c", held)


def floor() -> int:
    return int(ConversationState.rows.get(conversation_id="c").legacy_token)


def ids() -> list[int]:
    return list(MemoryChunk.objects.order_by("pk").values_list("pk", flat=True))


def written_at(pk: int, moment: datetime) -> None:
    MemoryChunk.objects.filter(pk=pk).update(created_at=moment)


def texts() -> list[str]:
    return [each["content"] for each in load_state("c").conversation_history]


def test_blobs_older_than_an_hour_are_not_searched() -> None:
    saved("a", "b", "c")
    assert floor() == 0
    for pk in ids():
        written_at(pk, timezone.now() - 2 * HOUR)
    saved("d")
    assert floor() == ids()[2]
    assert texts() == ["a", "b", "c", "d"]


def test_nothing_is_passed_that_may_still_be_in_flight() -> None:
    saved("a", "b", "c")
    first, second, third = ids()
    for pk in (first, third):
        written_at(pk, timezone.now() - 2 * HOUR)
    saved("d")
    assert floor() == second - 1


@pytest.mark.parametrize("seen", [True, False])
def test_the_floor_never_passes_an_unseen_blob_of_old_code(
    seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it was found when the save began, or became visible behind that look."""
    saved("a")
    old_save(connection, "c", None, state("a", "theirs").to_dict())
    for pk in ids():
        written_at(pk, timezone.now() - 2 * HOUR)
    if seen:
        saved("b")
        assert floor() >= ids()[1]
    else:
        with monkeypatch.context() as blind:
            blind.setattr(ChunkStore, "token", lambda self, cid, known="": known)
            blind.setattr(ChunkStore, "token_sql", lambda self: "NULL")
            blind.setattr(ChunkStore, "last_ours_sql", lambda self: None)
            saved("b")
        assert floor() == ids()[0]
    assert sorted(texts()) == ["a", "b", "theirs"]


def test_a_blob_without_a_time_is_in_flight_for_ever() -> None:
    saved("a", "b")
    first, second = ids()
    MemoryChunk.objects.filter(pk=first).update(created_at=None)
    written_at(second, timezone.now() - 2 * HOUR)
    saved("c")
    assert floor() == first - 1 or floor() == 0


@pytest.mark.parametrize("known", [True, False])
def test_the_floor_stays_below_the_blob_that_a_load_reads(known: bool) -> None:
    """Where ids and times disagree, that is not the greatest id."""
    if known:
        saved("a")
    old_save(connection, "c", None, state("a", "b", "c").to_dict())
    old_save(connection, "c", None, state("a", "b").to_dict())
    newest, last = ids()[-2:]
    for hours, pk in zip((3, 2), (last, newest), strict=True):
        written_at(pk, timezone.now() - hours * HOUR)
    if known:
        written_at(ids()[0], timezone.now() - 4 * HOUR)
        assert texts() == ["a", "b", "c"]
    else:
        call_command("conversations", "sync", "--to", "tables", verbosity=0)
    assert floor() == newest
    assert len(statements(texts)) == 1
    assert texts() == ["a", "b", "c"]
    saved("d")
    assert floor() == last
    assert texts() == ["a", "b", "c", "d"]


def test_the_floor_stays_below_our_latest_blob() -> None:
    saved("a")
    old_save(connection, "c", None, state("a", "b").to_dict())
    ours, theirs = ids()
    for hours, pk in zip((2, 3), (ours, theirs), strict=True):
        written_at(pk, timezone.now() - hours * HOUR)
    assert texts() == ["a", "b"]
    assert floor() == ours
    saved("c")
    assert floor() == theirs
    assert texts() == ["a", "b", "c"]


def test_a_key_that_is_given_again_is_not_below_the_floor() -> None:
    """Old code removes a conversation and begins it anew: an adopted SQLite table counts from 1."""
    for text in "abc":
        _forget_keys()
        saved(text)
        for pk in ids():
            written_at(pk, timezone.now() - 2 * HOUR)
    MemoryMetadata.objects.all().delete()
    MemoryChunk.objects.all().delete()
    _forget_keys()
    old_save(connection, "c", None, state("anew").to_dict())
    assert texts() == ["a", "b", "c", "anew"]


def _forget_keys() -> None:
    """Let SQLite give the next key of the table as if it had been made by old code."""
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM sqlite_sequence WHERE name = 'memory_chunks'")


def test_a_load_reads_no_blob_below_the_floor() -> None:
    saved("a")
    written_at(ids()[0], timezone.now() - 2 * HOUR)
    old_save(connection, "c", None, state("not this").to_dict(), timezone.now() - 2 * HOUR)
    first, second = ids()
    assert len(texts()) == 2
    saved("b")
    assert floor() == second
    # As if the first one were the latest.
    written_at(first, timezone.now() + HOUR)
    row = ConversationState.rows.get(conversation_id="c")
    marks = MemoryMetadata.objects.filter(chunk_id=first, key=REVISION_MARK)
    assert marks.update(value=str(row.legacy_revision)) == 1
    assert len(texts()) == 3


def test_another_conversations_blobs_raise_nothing() -> None:
    saved("a")
    written_at(ids()[0], timezone.now() - 2 * HOUR)
    save_state("d", state("x"))
    assert MemoryMetadata.objects.filter(key=CONVERSATION_ID, value="d").exists()
    assert floor() == 0


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_long_transaction_passes_nothing_that_it_cannot_see(
    isolation: str, settings: Any
) -> None:
    """What was half written when it began stays so for it, however long ago that was."""
    if connection.vendor == "sqlite":
        pytest.skip("a transaction with an old view cannot write on SQLite")
    saved("a")
    theirs = json.dumps(state("a", "theirs").to_dict())
    half = MemoryChunk.objects.create(content=theirs, created_at=timezone.now())
    saved("b")
    settling = timedelta(milliseconds=300)
    with ThreadPoolExecutor(1) as threads, transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
        held = load_state("c")
        threads.submit(completed, half.pk).result()
        time.sleep(settling.total_seconds())
        settings.CONVERSATIONS |= {"LEGACY_SETTLES_WITHIN": settling}
        held.conversation_history.append(message("c"))
        save_state("c", held)
    assert sorted(texts()) == ["a", "b", "c", "theirs"]


def completed(pk: int) -> None:
    """Write the rows that make a chunk a state, from this thread, and close its connection."""
    try:
        for key, value in ((CONVERSATION_ID, "c"), ("type", "state")):
            MemoryMetadata.objects.create(chunk_id=pk, key=key, value=value)
    finally:
        connection.close()
