"""Retirement removes the blobs of legacy: all of them, and nothing else."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext

from conversations import storage
from conversations.exceptions import ArchiveRefused
from conversations.models import ConversationState
from conversations.rollout import retirement
from conversations.rollout.sync import Action, sync
from conversations.rollout.verification import Kind, verify
from flags import transitions
from flags.phases import Phase
from flags.switches import snapshot
from memory.models import MemoryChunk, MemoryMetadata
from tests.faults.injection import failing
from tests.flags.test_fence import until_true
from tests.machine.oldcode import OldSession
from tests.support.factories import messages, state, texts
from tests.support.legacy_schema import old_load, old_save
from tests.support.retirement import CHUNKS, enter, expected, loaded, retired, state_chunks, written

pytestmark = pytest.mark.django_db(transaction=True)


def test_it_removes_the_blobs_and_every_conversation_loads_as_before(settings: Any) -> None:
    written("c", "d", "e")
    before = loaded("c", "d", "e")
    assert before == expected("c", "d", "e")
    assert retired(reason="done", actor="ann") == {"c": "", "d": "", "e": ""}
    assert (MemoryChunk.objects.count(), MemoryMetadata.objects.count()) == (0, 0)
    assert loaded("c", "d", "e") == before
    made = transitions.history()[0]
    assert (made.kind, made.source, made.reason, made.actor) == ("retired", 4, "done", "ann")
    assert {kind for found in verify() for kind in found.kinds} == {Kind.TABLES_ONLY}
    # The setting may go now.
    settings.CONVERSATIONS = {"REQUIRE_OWNER": False}
    assert [m for m in run_checks(databases=["default"]) if m.id == "memory.E002"] == []
    assert loaded("c", "d", "e") == before


def test_of_a_hosts_table_nothing_is_removed(settings: Any) -> None:
    settings.CONVERSATIONS = CHUNKS | {"LEGACY": OldSession.settings}
    enter(Phase.LEGACY)
    written("c", "d")
    held = OldSession().read("c"), OldSession().read("d")
    assert retirement.holdings().removable is False
    assert retired() == {}
    assert transitions.status().retired
    assert (OldSession().read("c"), OldSession().read("d")) == held
    assert loaded("c", "d") == expected("c", "d")
    with pytest.raises(ArchiveRefused):
        list(retirement.retire(archive=Path("unused")))


def test_other_chunk_types_and_other_metadata_are_not_touched(settings: Any) -> None:
    written("c")
    others = []
    for kind in ("summary", "ltm"):
        chunk = MemoryChunk.objects.create(content=kind, embedding=[0.5])
        for key, value in (("conversation_id", "c"), ("type", kind)):
            MemoryMetadata.objects.create(chunk=chunk, key=key, value=value)
        others.append(chunk.pk)
    unnamed = MemoryChunk.objects.create(content="{}")
    for key, value in (("type", "state"), ("conversation_id", "")):
        MemoryMetadata.objects.create(chunk=unnamed, key=key, value=value)
    row = ConversationState.rows.get()
    mine = MemoryMetadata.objects.create(conversation=row, key="note", value="kept")
    message = MemoryMetadata.objects.create(message=row.messages.first(), key="note", value="kept")
    assert retirement.holdings().unnamed == 1
    retired()
    assert set(MemoryChunk.objects.values_list("pk", flat=True)) == {*others, unnamed.pk}
    left = MemoryMetadata.objects.filter(chunk=None).values_list("pk", flat=True)
    assert set(left) == {mine.pk, message.pk}
    assert MemoryMetadata.objects.count() == 8
    # No load would find them, so the setting may go although they are there.
    settings.CONVERSATIONS = {}
    assert [m for m in run_checks(databases=["default"]) if m.id == "memory.E002"] == []


def test_the_second_time_nothing_is_done(either_store: str, tmp_path: Path) -> None:
    written("c", "d")
    retired()
    records = transitions.history()
    with CaptureQueriesContext(connection) as captured:
        assert retired() == {}
    writes = ("INSERT", "UPDATE", "DELETE")
    assert [q["sql"] for q in captured if q["sql"].startswith(writes)] == []
    assert transitions.history() == records


# Late writes of old code


def test_a_later_blob_of_old_code_is_found_taken_in_and_removed() -> None:
    written("c")
    retired()
    old_save(connection, "c", None, state("one", "two", "three", "late").to_dict())
    old_save(connection, "late", None, state("late").to_dict())
    assert texts(storage.load_state("c")) == ["one", "two", "three"]
    found = {one.conversation_id: one.kinds for one in verify()}
    assert found == {"c": (Kind.PENDING,), "late": (Kind.MISSING_IN_TABLES,)}
    assert set(retired()) == {"c", "late"}
    assert all(retired().values())
    assert state_chunks() == 2
    done = {one.conversation_id: one.action for one in sync("tables")}
    assert done == {"c": Action.MERGED, "late": Action.TAKEN_IN}
    assert texts(storage.load_state("c")) == ["one", "two", "three", "late"]
    assert texts(storage.load_state("late")) == ["late"]
    assert retired() == {"c": "", "late": ""}
    assert state_chunks() == 0
    assert loaded("c", "late") == {"c": ["one", "two", "three", "late"], "late": ["late"]}


def test_a_late_blob_is_found_also_under_a_key_of_before(settings: Any) -> None:
    """As an adopted SQLite table gives it; a row that knew keys up to there would overlook it."""
    settings.CONVERSATIONS = CHUNKS | {"LEGACY_SETTLES_WITHIN": timedelta(0)}
    key = old_save(connection, "c", None, state("one").to_dict())
    list(sync("tables"))
    assert ConversationState.rows.get().legacy_token == str(key)
    enter(Phase.NEW_ONLY)
    assert retired() == {"c": ""}
    MemoryChunk.objects.create(pk=key, content=json.dumps(state("one", "late").to_dict()))
    for name, value in (("conversation_id", "c"), ("type", "state")):
        MemoryMetadata.objects.create(chunk_id=key, key=name, value=value)
    assert [one.action for one in sync("tables")] == [Action.MERGED]
    assert texts(storage.load_state("c")) == ["one", "late"]


def test_a_blob_that_comes_while_its_conversation_is_removed_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Old code takes no lock: what was not there when the truth was asked is not removed."""
    written("c")
    remove = retirement.remove.remove

    def with_a_late_one(keys: Any) -> None:
        old_save(connection, "c", None, state("one", "two", "three", "late").to_dict())
        remove(keys)

    monkeypatch.setattr(retirement.remove, "remove", with_a_late_one)
    assert retired() == {"c": ""}
    assert state_chunks() == 1
    list(sync("tables"))
    assert texts(storage.load_state("c")) == ["one", "two", "three", "late"]


# Crashes


def removes(sql: str) -> bool:
    return sql.startswith('DELETE FROM "memory_') or 'SET "legacy_revision"' in sql


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_crash_leaves_every_conversation_loadable_and_the_next_try_finishes(after: int) -> None:
    names = [f"c{number}" for number in range(4)]
    written(*names)
    with failing(removes, after=after) as failed:
        reasons = retired()
    assert failed
    assert any(reasons.values())
    assert loaded(*names) == expected(*names)
    for name in names:
        storage.append_messages(name, messages("between"))
    snapshot.forget()
    assert not any(retired().values())
    assert MemoryChunk.objects.count() == MemoryMetadata.objects.count() == 0
    assert loaded(*names) == {name: [*told, "between"] for name, told in expected(*names).items()}


def test_an_interrupted_removal_goes_on_with_the_rest() -> None:
    written("c", "d", "e")
    removing = retirement.retire()
    first = next(removing)
    removing.close()
    assert loaded("c", "d", "e") == expected("c", "d", "e")
    assert not transitions.status().mixed
    snapshot.forget()
    assert set(retired()) == {"c", "d", "e"} - {first.conversation_id}
    assert loaded("c", "d", "e") == expected("c", "d", "e")


def test_it_stops_when_its_time_is_over_and_goes_on_the_next_time() -> None:
    written("c", "d")
    assert retired(seconds=0) == {}
    assert transitions.status().retired
    assert not retirement.finished()
    assert loaded("c", "d") == expected("c", "d")
    assert retired() == {"c": "", "d": ""}
    assert retirement.finished()


def test_a_removal_stops_when_legacy_is_taken_back() -> None:
    names = [f"c{number}" for number in range(6)]
    written(*names)
    removing = retirement.retire()
    next(removing)
    retirement.restore()
    list(sync("legacy"))
    transitions.rollback(Phase.LEGACY)
    left = list(removing)
    assert "legacy is no longer retired" in {one.reason for one in left}
    assert {one.blobs for one in left} == {0}
    assert {name: old_load(connection, name) is not None for name in names} == dict.fromkeys(
        names, True
    )


def test_the_newest_blob_goes_last() -> None:
    """On SQLite its key is given again; so it stays while others are known by their keys."""
    if connection.vendor != "sqlite":
        pytest.skip("PostgreSQL gives no key again")
    written("c", "a", "b")
    assert list(retired()) == ["a", "c", "b"]


# Under load


def test_a_load_returns_all_acknowledged_writes_of_meanwhile() -> None:
    names = [f"c{number}" for number in range(6)]
    written(*names)
    told: dict[str, list[Any]] = expected(*names)
    go_on = threading.Event()
    go_on.set()

    def write(mine: list[str]) -> None:
        try:
            for number in range(200):
                if not go_on.is_set():
                    break
                for name in mine:
                    storage.append_messages(name, messages(f"{name} {number}"))
                    told[name].append(f"{name} {number}")
        finally:
            connections.close_all()

    writers = [threading.Thread(target=write, args=(names[start::2],)) for start in range(2)]
    for writer in writers:
        writer.start()
    try:
        until_true(lambda: all(len(told[name]) > 4 for name in names))
        done = retired()
        count = {name: len(told[name]) for name in names}
        until_true(
            lambda: (
                all(len(told[name]) > count[name] + 2 for name in names)
                or not any(writer.is_alive() for writer in writers)
            )
        )
    finally:
        go_on.clear()
        for writer in writers:
            writer.join()
    assert not any(done.values())
    assert state_chunks() == 0
    assert loaded(*names) == told
