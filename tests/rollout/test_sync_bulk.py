"""Many conversations at once: the same rows as one by one, a few statements, no writer held up."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.db import connection, connections, transaction
from django.test import override_settings
from django.utils import timezone
from hypothesis import given, settings, strategies as st

from conversations.models import (
    ConversationConflict,
    ConversationMessage,
    ConversationState,
    SyncBatch,
)
from conversations.rollout.runs import records
from conversations.rollout.sync import Action, Target, bulk, runs
from conversations.rollout.sync.one import carry
from conversations.rollout.verification import verify
from conversations.routing import ids
from conversations.routing.locks import lock, try_lock
from conversations.routing.owners import columns_of_owners
from conversations.storage import append_messages, delete_conversation, load_state, save_state
from conversations.stores.chunks.store import ChunkStore
from conversations.stores.jsonfield.store import JSONFieldStore
from conversations.stores.registry import configured_store
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryContextItem, MemoryMetadata
from tests.faults.injection import inserts_messages
from tests.machine.oldcode import OldSession
from tests.support.blobs.models import AssistantSession, TextSession
from tests.support.bulk import (
    LONG_AGO,
    meanwhile,
    postgresql,
    statements,
    with_items,
    written_by_old_code,
)
from tests.support.factories import UserFactory, messages, state, texts
from tests.support.legacy_schema import old_save
from tests.support.scale import examples
from tests.support.strategies import states

pytestmark = pytest.mark.django_db(transaction=True)

JSON_COLUMN = {
    "model": "blobs.AssistantSession",
    "conversation_id": "session_key",
    "owner": "owner",
    "state": "data",
    "version": "version",
}

MAPPINGS: list[Any] = ["memory_chunks", OldSession.settings, JSON_COLUMN]


@pytest.fixture(autouse=True)
def _chunks(settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}


def together_(ids: list[str]) -> dict[str, Action]:
    legacy = configured_store()
    assert legacy is not None
    with transaction.atomic():
        done = bulk.carry_all(legacy, ids)
    assert [one.conversation_id for one in done] == ids
    return {one.conversation_id: one.action for one in done}


def one_by_one(ids: list[str]) -> dict[str, Action]:
    legacy = configured_store()
    assert legacy is not None
    done = [carry(legacy, Target.TABLES, name) for name in ids]
    return {one.conversation_id: one.action for one in done}


def everything(since: datetime) -> list[Any]:
    """Return every row that a sync may write, named by conversation rather than by key.

    Times behind `since` are as good as each other.
    """
    names = dict(ConversationState.rows.values_list("pk", "conversation_id"))
    found: list[Any] = []
    for model in (
        ConversationState,
        ConversationMessage,
        MemoryContextItem,
        ConversationConflict,
        MemoryMetadata,
        TextSession,
        AssistantSession,
    ):
        rows = list(model._base_manager.values())
        for row in rows:
            del row["id"]
            if model not in (ConversationState, MemoryMetadata, TextSession, AssistantSession):
                row["conversation_id"] = names[row["conversation_id"]]
            for name, value in row.items():
                if isinstance(value, datetime) and value > since:
                    row[name] = "meanwhile"
                if isinstance(value, memoryview):
                    row[name] = bytes(value)
        found.append(sorted(map(repr, rows)))
    return found


# The same as one by one


@st.composite
def legacies(draw: st.DrawFn) -> list[tuple[str, list[Any]]]:
    """Conversations with up to three blobs: a state, its age, whose, and whether it is broken."""
    blob = st.tuples(
        states(),
        st.sampled_from([timedelta(0), timedelta(hours=2), timedelta(days=30)]),
        st.sampled_from([None, "first", "second"]),
        st.sampled_from([False] * 9 + [True]),
    )
    blobs = st.lists(blob, min_size=1, max_size=3)
    return [(f"c{place}", draw(blobs)) for place in range(draw(st.integers(2, 4)))]


def write_legacy(mapping: Any, held: list[tuple[str, list[Any]]]) -> list[str]:
    users = {None: None, "first": UserFactory(), "second": UserFactory()}
    for name, blobs in held:
        for content, age, owner, broken in blobs:
            user = users[owner]
            if mapping == "memory_chunks":
                key = old_save(
                    connection,
                    name,
                    None if user is None else user.pk,
                    content.to_dict(),
                    timezone.now() - age,
                    keep=None,
                )
                if broken:
                    MemoryChunk.objects.filter(pk=key).update(content="[]")
            elif mapping == JSON_COLUMN:
                # jsonb holds neither NUL nor NaN: the other mappings try those.
                data = state(name, age.days, owner).to_dict()
                AssistantSession.objects.update_or_create(
                    session_key=name, defaults={"data": [] if broken else data, "owner": user}
                )
            else:
                OldSession().write(name, content.to_dict())
                rows = TextSession.objects.filter(session_key=name)
                rows.update(owner=user, **({"payload": "{"} if broken else {}))
    return [name for name, _ in held]


class _Undo(Exception):
    """What was tried is rolled back."""


def tried(way: Callable[[list[str]], dict[str, Action]], ids: list[str]) -> tuple[Any, Any]:
    """Return what a way of carrying over does, and leave everything as it was."""
    found: tuple[Any, Any] = None, None
    since = timezone.now()
    try:
        with transaction.atomic():
            found = way(ids), everything(since)
            raise _Undo
    except _Undo:
        return found


@pytest.mark.long
@pytest.mark.parametrize("mapping", MAPPINGS, ids=["chunks", "text", "json"])
@given(held=legacies())
@settings(max_examples=examples(150))
def test_the_rows_are_those_of_one_by_one(mapping: Any, held: Any) -> None:
    with override_settings(CONVERSATIONS={"LEGACY": mapping}), transaction.atomic():
        ids = write_legacy(mapping, held)
        expected = tried(one_by_one, ids)
        assert tried(together_, ids) == expected
        transaction.set_rollback(True)


@pytest.mark.parametrize("score", [-0.0, 0.0, 0, 1, 1.0, 0.5, True, 2.0, float("nan")])
def test_a_score_comes_to_the_same_column_value(score: Any) -> None:
    items = [{"content": "x", "relevance_score": score}]
    for name in "ab":
        old_save(connection, name, None, state("x", memory_context=items).to_dict(), LONG_AGO)
    assert tried(together_, ["a", "b"]) == tried(one_by_one, ["a", "b"])


def test_a_missing_user_stays_the_owner_that_legacy_names() -> None:
    user = UserFactory()
    names = written_by_old_code("a", "b", owner=user.pk)
    # As where the host's table has no foreign key.
    with mock.patch.object(
        ChunkStore, "_stored", autospec=True, side_effect=_of_nobody_here(ChunkStore._stored)
    ):
        expected = tried(one_by_one, names)
        assert tried(together_, names) == expected
        together_(names)
    rows = ConversationState.rows.values_list("user_id", "legacy_user_id")
    assert list(rows) == [(None, "4711")] * 2


def _of_nobody_here(whole: Any) -> Any:
    return lambda self, chunk: replace(whole(self, chunk), owner="4711")


def test_merged_deleted_and_unreadable_conversations_go_their_own_way_beside_the_rest() -> None:
    with forced_phase(Phase.DUAL_WRITE):
        for name in ("merged", "current", "deleted"):
            save_state(name, state("x"))
        delete_conversation("deleted")
    with forced_phase(Phase.NEW_ONLY):
        save_state("ahead", state("x"))
    with forced_phase(Phase.LEGACY):
        append_messages("current", messages("y"))
    written_by_old_code("merged", "deleted", "new", "broken", "another")
    broken = MemoryMetadata.objects.get(key="conversation_id", value="broken").chunk_id
    MemoryChunk.objects.filter(pk=broken).update(content="{")
    expected = {
        "merged": Action.MERGED,
        "deleted": Action.ERASED,
        "current": Action.CAUGHT_UP,
        "ahead": Action.UNCHANGED,
        "new": Action.TAKEN_IN,
        "broken": Action.FAILED,
        "nowhere": Action.FAILED,
        "another": Action.TAKEN_IN,
    }
    whole = tried(one_by_one, list(expected))
    assert tried(together_, list(expected)) == whole
    assert whole[0] == expected


# Statements


def inserted_everywhere(mapping: Any, names: list[str], owner: Any) -> None:
    for name in names:
        if mapping == "memory_chunks":
            old_save(connection, name, owner.pk, with_items(name).to_dict(), LONG_AGO)
        elif mapping == OldSession.settings:
            payload = json.dumps(with_items(name).to_dict())
            TextSession.objects.create(session_key=name, owner=owner, payload=payload)
        else:
            data = with_items(name).to_dict()
            AssistantSession.objects.create(session_key=name, owner=owner, data=data)


@pytest.mark.parametrize("mapping", MAPPINGS, ids=["chunks", "text", "json"])
def test_a_sync_takes_as_many_statements_for_four_as_for_forty(settings: Any, mapping: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": mapping}
    user, counts = UserFactory(), []
    for count in (4, 40):
        names = [f"{count}-{number}" for number in range(count)]
        inserted_everywhere(mapping, names, user)
        counts.append(len(statements(partial(together_, names))))
    assert counts[0] == counts[1] <= 14
    assert ConversationMessage.rows.count() == 2 * 44
    second = statements(lambda: together_(names))
    assert len(second) <= 8
    assert not [sql for sql in second if sql.startswith(("INSERT", "UPDATE", "DELETE", "COPY"))]


# What fails


def test_one_that_the_tables_refuse_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    names = written_by_old_code(*[f"c{number:02}" for number in range(20)])
    tries = refusing(monkeypatch, "c07")
    done = together_(names)
    assert done == dict.fromkeys(names, Action.TAKEN_IN)
    # Halved until it was alone, and then by the long way, which takes it.
    assert [len(each) for each in tries if "c07" in each] == [20, 10, 5, 3, 1]
    assert ConversationState.rows.count() == 20


def refusing(monkeypatch: pytest.MonkeyPatch, name: str) -> list[list[str]]:
    """Let the database refuse to create one conversation together with others, or by itself."""
    whole = bulk.create_all
    tries: list[list[str]] = []

    def create_all(creations: Any) -> None:
        tries.append([one.row.conversation_id for one in creations])
        whole(creations)
        if name in tries[-1]:
            with connection.cursor() as cursor:
                cursor.execute(
                    "INSERT INTO conversation_tombstones (conversation_id) VALUES (NULL)"
                )

    monkeypatch.setattr(bulk, "create_all", create_all)
    return tries


# Bounds


@pytest.mark.parametrize("bound", ["MOST_CONVERSATIONS", "MOST_BYTES"])
def test_a_batch_holds_no_more_locked_than_its_bounds(
    monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    names = written_by_old_code(*[f"c{number:02}" for number in range(12)])
    legacy = configured_store()
    assert legacy is not None
    size = max(legacy.sizes(names).values())
    monkeypatch.setattr(records, "FIRST_BATCH", 12)
    monkeypatch.setattr(bulk, bound, 3 if bound == "MOST_CONVERSATIONS" else 3 * size)
    run = runs.begin("tables")
    done = [len(batch) for batch in runs.work(run)]
    assert sum(done) == 12
    assert max(done) <= 3
    assert set(SyncBatch.rows.values_list("conversations", flat=True)) <= {1, 2, 3}
    assert ConversationState.rows.count() == 12


def test_one_conversation_larger_than_the_bound_is_carried_over_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written_by_old_code("a", "large", "z")
    monkeypatch.setattr(records, "FIRST_BATCH", 12)
    monkeypatch.setattr(bulk, "MOST_BYTES", 1)
    run = runs.begin("tables")
    assert sorted(len(batch) for batch in runs.work(run) if batch) == [1, 1, 1]
    assert runs.progress(run).state == "finished"


def test_a_read_of_many_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    names = written_by_old_code(*"abcdef")
    legacy = configured_store()
    assert legacy is not None
    sizes = legacy.sizes(names)
    monkeypatch.setattr(ids, "TOGETHER_BYTES", 2 * max(sizes.values()))
    assert [list(chunk) for chunk in ids.in_portions(names, sizes)] == [
        ["a", "b"],
        ["c", "d"],
        ["e", "f"],
    ]
    monkeypatch.setattr(ids, "TOGETHER", 1)
    assert [len(chunk) for chunk in ids.in_portions(names, sizes)] == [1] * 6
    assert list(ids.in_portions([], {})) == []


# Others


@postgresql
def test_try_lock_takes_the_locks_of_a_write_without_waiting() -> None:
    with meanwhile(lambda: lock("b")), transaction.atomic():
        assert try_lock(["a", "b", "c"]) == ["a", "c"]
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert try_lock(["a"]) == ()


@postgresql
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_write_of_old_code_that_comes_meanwhile_is_never_missed(name: str) -> None:
    """After the look, and before the commit; old code takes no lock."""
    written_by_old_code("a", "b", at=LONG_AGO)
    late: list[threading.Thread] = []

    def old_code() -> None:
        old_save(connection, name, None, state(name, "b", "late").to_dict())
        connections.close_all()

    def wrapper(execute: Any, sql: str, *args: Any) -> Any:
        if inserts_messages(sql) and not late:
            late.append(threading.Thread(target=old_code))
            late[0].start()
            late[0].join()
        return execute(sql, *args)

    with connection.execute_wrapper(wrapper):
        assert together_(["a", "b"]) == dict.fromkeys("ab", Action.TAKEN_IN)
    assert late
    assert together_(["a", "b"])[name] == Action.MERGED
    with forced_phase(Phase.NEW_ONLY):
        assert texts(load_state(name)) == [name, "b", "late"]
    assert all(found.in_order for found in verify())


@postgresql
def test_old_code_writes_its_one_row_meanwhile_without_waiting(settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": OldSession.settings}
    old = OldSession()
    for name in "ab":
        old.write(name, state(name).to_dict())
    late: list[threading.Thread] = []

    def old_code() -> None:
        old.write("b", state("b", "late").to_dict())
        connections.close_all()

    def wrapper(execute: Any, sql: str, *args: Any) -> Any:
        if inserts_messages(sql) and not late:
            late.append(threading.Thread(target=old_code))
            late[0].start()
            late[0].join()
        return execute(sql, *args)

    with connection.execute_wrapper(wrapper):
        together_(["a", "b"])
    assert late
    assert together_(["a", "b"])["b"] == Action.MERGED
    with forced_phase(Phase.NEW_ONLY):
        assert texts(load_state("b")) == ["b", "late"]


@postgresql
def test_owners_are_kept_and_users_being_deleted_are_skipped() -> None:
    kept, going = UserFactory(), UserFactory()
    owners = [str(kept.pk), str(going.pk), "4711", None]
    users = get_user_model().objects

    def delete() -> None:
        users.filter(pk=going.pk).delete()

    with meanwhile(delete), transaction.atomic():
        assert columns_of_owners(owners) == {
            None: {"user_id": None, "legacy_user_id": None},
            str(kept.pk): {"user_id": str(kept.pk), "legacy_user_id": None},
            "4711": {"user_id": None, "legacy_user_id": "4711"},
        }

    def keep() -> None:
        columns_of_owners([str(kept.pk)])

    with meanwhile(keep), pytest.raises(Exception, match="lock"), transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '20ms'")
        users.filter(pk=kept.pk).delete()
    # A login does not wait.
    with meanwhile(keep), transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '1s'")
        users.filter(pk=kept.pk).update(last_login=LONG_AGO)


def test_an_owner_in_another_spelling_is_looked_at_by_itself() -> None:
    user = UserFactory()
    assert columns_of_owners([f"0{user.pk}", "4711"]) == {
        None: {"user_id": None, "legacy_user_id": None}
    }


def test_an_id_in_another_spelling_is_looked_at_by_itself() -> None:
    store = JSONFieldStore(OldSession.settings)
    OldSession().write("A", state("x").to_dict())
    spelled = _Spelled(JSONFieldStore._tokened(store))
    with mock.patch.object(store, "_tokened", return_value=spelled):
        looks = store.read_many(["a", "b"])
    assert [(look.held, look.stored) for look in looks] == [(True, None)] * 2


class _Spelled:
    """Rows as a column gives them that takes "a" for "A"."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def filter(self, **_: Any) -> Any:
        return self.rows.filter(session_key="A")


def test_a_read_of_many_agrees_with_the_reads_of_each() -> None:
    store = ChunkStore()
    recent = timezone.now() - timedelta(minutes=1)
    written_by_old_code("settled", "mixed", at=LONG_AGO)
    written_by_old_code("recent", "mixed", at=recent)
    written_by_old_code("aside", at=LONG_AGO)
    aside = MemoryMetadata.objects.get(key="conversation_id", value="aside").chunk_id
    MemoryMetadata.objects.create(chunk_id=aside, key="store.quarantined", value="1")
    MemoryMetadata.objects.create(chunk_id=aside, key="unrelated", value="1")
    names = ["settled", "mixed", "recent", "aside", "nowhere"]
    looks = {look.conversation_id: look for look in store.read_many(names)}
    for name in names:
        stored = store.load(name)
        assert looks[name].stored == stored
        assert looks[name].held == (name != "nowhere")
        seen = store.foreign_ids(name, "")
        assert sorted(looks[name].foreign_ids.split(",")) == sorted(seen.split(","))
        with transaction.atomic():
            token = store.mark_ingested(name, revision=1, known="", foreign_ids=seen)
            marks = set(MemoryMetadata.objects.values_list("chunk_id", "key", "value"))
            transaction.set_rollback(True)
        assert looks[name].token == token
        with transaction.atomic():
            store.mark_many_ingested([looks[name]], revision=1)
            assert set(MemoryMetadata.objects.values_list("chunk_id", "key", "value")) == marks
            transaction.set_rollback(True)
    assert store.sizes(names).keys() == {"settled", "mixed", "recent"}
    assert store.sizes([]) == {}
    assert store.read_many([]) == ()


def test_an_empty_content_and_a_lost_chunk_are_no_reason_to_fail() -> None:
    written_by_old_code("a", "b", at=LONG_AGO)
    MemoryChunk.objects.update(content=None)
    store = ChunkStore()
    assert store.sizes(["a"]) == {"a": 0}
    assert [(look.held, look.stored) for look in store.read_many(["a"])] == [(True, None)]
    assert set(together_(["a", "b"]).values()) == {Action.FAILED}


def test_in_a_database_of_one_writer_the_write_lock_comes_first(settings: Any) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("PostgreSQL locks rows and ids")
    connection.ensure_connection()
    with mock.patch.object(connection, "transaction_mode", "DEFERRED"):
        sent = statements(lambda: try_lock(["a"]))
    assert sent == ["UPDATE conversation_states SET revision = revision WHERE 0"]
