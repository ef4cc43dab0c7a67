"""Legacy is given up: only when nothing would be lost, and what stays true afterwards."""

from __future__ import annotations

import gzip
import io
import json
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.checks import run_checks
from django.core.management import call_command
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext

from conversations import storage
from conversations.exceptions import ArchiveRefused, SyncRefused
from conversations.models import ConversationConflict, ConversationState
from conversations.rollout import retirement
from conversations.rollout.retirement import Restored, Result, requirements
from conversations.rollout.sync import Action, sync
from conversations.rollout.verification import Kind, verify
from conversations.routing.standing import decide
from conversations.stores.chunks import archive_rows as blobs_module
from conversations.stores.chunks.store import ChunkStore
from conversations.stores.registry import configured_store
from flags import transitions
from flags.exceptions import FenceBusy, TransitionRefused, UnknownGate
from flags.phases import PLANS, Phase
from flags.switches import current_plan, forced_phase, snapshot
from memory.models import MemoryChunk, MemoryMetadata
from tests.commands.test_conversations import run
from tests.faults.injection import failing
from tests.flags.test_emergency import set_emergency
from tests.flags.test_fence import until_true
from tests.flags.test_switches import set_rows
from tests.machine.oldcode import OldChunks, OldSession
from tests.support.factories import UserFactory, messages, state, texts
from tests.support.legacy_schema import old_load, old_save
from tests.support.rollout import before_the_fence

pytestmark = pytest.mark.django_db(transaction=True)

CHUNKS: dict[str, Any] = {
    "LEGACY": "memory_chunks",
    "SOAK_TIME": timedelta(0),
    "RETIRE_AFTER": timedelta(0),
}


def enter(phase: Phase) -> None:
    set_rows(phase)
    snapshot.forget()
    transitions.status()


@pytest.fixture(autouse=True)
def _in_new_only(settings: Any) -> Iterator[None]:
    settings.CONVERSATIONS = CHUNKS
    enter(Phase.LEGACY)
    yield
    set_emergency(on=False)


@pytest.fixture(params=["chunks", "jsonfield"])
def either_store(request: pytest.FixtureRequest, settings: Any) -> str:
    if request.param == "jsonfield":
        settings.CONVERSATIONS = CHUNKS | {"LEGACY": OldSession.settings}
        enter(Phase.LEGACY)
    return str(request.param)


def written(*names: str, user: Any = None) -> None:
    """Write conversations as a rollout does: legacy first, then both, then the tables."""
    for name in names:
        enter(Phase.LEGACY)
        storage.save_state(name, state("one"), user)
    list(sync("tables"))
    enter(Phase.NEW_PRIMARY)
    for name in names:
        storage.append_messages(name, messages("two"))
    enter(Phase.NEW_ONLY)
    for name in names[::2]:
        storage.append_messages(name, messages("three"))


def expected(*names: str) -> dict[str, list[str]]:
    behind = set(names[::2])
    return {name: ["one", "two"] + (["three"] if name in behind else []) for name in names}


def loaded(*names: str) -> dict[str, list[Any]]:
    return {name: texts(storage.load_state(name)) for name in names}


def retired(**options: Any) -> dict[str, str]:
    return {one.conversation_id: one.reason for one in retirement.retire(**options)}


def refused_by(**options: Any) -> list[str]:
    with pytest.raises(TransitionRefused) as refused:
        list(retirement.retire(**options))
    assert not transitions.status().retired
    assert all(result.fix for result in refused.value.results if not result.holds)
    return [result.gate for result in refused.value.results if not result.holds]


def state_chunks() -> int:
    typed = MemoryMetadata.objects.filter(key="type", value="state")
    return MemoryChunk.objects.filter(pk__in=typed.values("chunk_id")).count()


def legacy_statements(call: Callable[[], Any]) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        call()
    assert captured.captured_queries
    sent = [query["sql"] for query in captured.captured_queries]
    # Metadata of context items is the tables' own.
    return [sql for sql in sent if "memory_" in sql or "blobs_" in sql]


# Refusals


def test_another_phase_refuses(either_store: str) -> None:
    written("c")
    list(sync("legacy"))
    for phase in list(Phase)[:-1]:
        enter(phase)
        assert refused_by() == ["phase"]


def test_an_emergency_and_mixed_switches_refuse(either_store: str) -> None:
    written("c")
    set_emergency(on=True)
    assert "phase" in refused_by()
    set_emergency(on=False)
    transitions.status()
    from waffle import get_waffle_switch_model

    rows = get_waffle_switch_model()._base_manager
    rows.filter(name="use_new_save").update(active=False)
    snapshot.forget()
    assert "phase" in refused_by()


def test_a_share_of_the_conversations_refuses() -> None:
    written("c")
    transitions.canary(99)
    assert refused_by() == ["phase"]
    transitions.canary(100)
    assert retired() == {"c": ""}


def test_the_phase_has_to_have_been_in_force_for_its_time(settings: Any, either_store: str) -> None:
    settings.CONVERSATIONS = settings.CONVERSATIONS | {"RETIRE_AFTER": timedelta(days=7)}
    written("c")
    assert refused_by() == ["soak"]
    assert set(retired(waive={"soak": "rehearsed"}).values()) <= {""}
    assert transitions.history()[0].gates[1]["waived"] == "rehearsed"


def test_an_emergency_begins_the_time_anew() -> None:
    written("c")
    first = transitions.status().since
    transitions.rehearse()
    assert transitions.status().since == first < transitions.history()[0].at
    retired()
    retirement.restore()
    assert transitions.status().since == first < transitions.history()[0].at
    transitions.emergency()
    transitions.resume()
    assert transitions.status().since == transitions.history()[0].at


def only_in_legacy(name: str) -> None:
    """What a sync leaves out, and a save in phase legacy by a process that was late."""
    with forced_phase(Phase.LEGACY):
        storage.save_state(name, state("only here"))


def ahead_in_legacy(name: str) -> None:
    with forced_phase(Phase.LEGACY):
        storage.append_messages(name, messages("only here"))


def by_old_code(name: str) -> None:
    chunks = isinstance(configured_store(), ChunkStore)
    (OldChunks() if chunks else OldSession()).write(name, state("one", "two", "old").to_dict())


def test_what_the_tables_do_not_hold_refuses_and_nobody_may_answer_for_it(
    either_store: str,
) -> None:
    for spoil in (only_in_legacy, ahead_in_legacy, by_old_code):
        other, name = f"{spoil.__name__} other", spoil.__name__
        written(other, *([] if spoil is only_in_legacy else [name]))
        list(verify())
        spoil(name)
        assert refused_by() == ["verified"]
        with pytest.raises(UnknownGate):
            list(retirement.retire(waive={"verified": "never mind"}))
        list(sync("tables"))
    assert not any(retired().values())
    for spoil in (only_in_legacy, ahead_in_legacy, by_old_code):
        assert texts(storage.load_state(spoil.__name__))[-1] in ("only here", "old")


def test_rows_that_differ_from_their_digests_refuse(either_store: str) -> None:
    written("c")
    ConversationState.rows.update(message_count=7, verified_revision=-1)
    assert refused_by() == ["verified"]


def test_a_blob_that_was_set_aside_refuses_unless_somebody_answers_for_it() -> None:
    written("c", user=UserFactory())
    old_save(connection, "c", UserFactory().pk, state("theirs").to_dict())
    list(sync("tables"))
    assert ConversationConflict.rows.get().kind == ConversationConflict.Kind.QUARANTINED
    assert refused_by() == ["quarantined"]
    assert retired(waive={"quarantined": "looked at"}) == {"c": ""}
    assert state_chunks() == 0


def test_what_comes_into_legacy_while_it_is_verified_refuses(
    either_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written("c")
    close = transitions.fence.close

    def meanwhile(**options: Any) -> None:
        only_in_legacy("late")
        close(**options)

    monkeypatch.setattr(transitions.fence, "close", meanwhile)
    assert refused_by() == ["unchanged"]


def test_more_than_a_second_of_it_refuses(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    settings.CONVERSATIONS = CHUNKS | {"LEGACY": OldSession.settings}
    enter(Phase.LEGACY)
    written("c")
    monkeypatch.setattr(requirements, "INSIDE", timedelta(seconds=-1))
    assert refused_by() == ["unchanged"]
    assert retired(waive={"unchanged": "old code is gone"}) == {}


def test_without_a_legacy_store_there_is_nothing_to_retire(settings: Any) -> None:
    settings.CONVERSATIONS = {}
    assert refused_by() == []


# Retirement


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


def test_afterwards_loads_saves_and_lists_do_not_look_into_legacy(either_store: str) -> None:
    user = UserFactory()
    written("c", user=user)

    def everything() -> None:
        found = storage.load_state("c")
        found.conversation_history += messages("more")
        storage.save_state("c", found)
        storage.append_messages("c", messages("still more"))
        storage.create_new_conversation(user)
        storage.load_state("missing")
        storage.list_conversations(user)

    assert legacy_statements(everything) != []
    retired()
    snapshot.forget()
    assert legacy_statements(everything) == []
    assert texts(storage.load_state("c"))[-2:] == ["more", "still more"]


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


def test_after_it_nothing_leads_back(either_store: str) -> None:
    written("c")
    retired()
    for refused in (transitions.rollback, transitions.emergency):
        with pytest.raises(TransitionRefused, match="restore-legacy"):
            refused()
    with pytest.raises(TransitionRefused, match="restore-legacy"):
        transitions.check(Phase.NEW_PRIMARY)
    with pytest.raises(SyncRefused, match="restore-legacy"):
        list(sync("legacy"))
    assert current_plan() == PLANS[Phase.NEW_ONLY]


def test_a_step_back_that_was_looked_at_before_it_is_refused(
    either_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written("c")
    before_the_fence(lambda: list(retirement.retire()), monkeypatch)
    with pytest.raises(TransitionRefused, match="retired meanwhile"):
        transitions.rollback()
    assert transitions.status().phase == Phase.NEW_ONLY


def test_switches_flipped_behind_it_change_nothing(either_store: str) -> None:
    written("c")
    retired()
    for phase in Phase:
        set_rows(phase)
        set_emergency(on=phase == Phase.LEGACY)
        storage.append_messages("c", messages(phase.label))
        storage.save_state(phase.label, state("new"))
        assert texts(storage.load_state("c"))[-1] == phase.label
        assert texts(storage.load_state(phase.label)) == ["new"]
    assert MemoryChunk.objects.count() == 0
    enter(Phase.NEW_ONLY)
    assert texts(storage.load_state("c"))[3:] == [phase.label for phase in Phase]


def test_a_process_that_has_not_heard_of_it_goes_on_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For half a second at most; or for longer, while the record cannot be read."""
    written("c", "d")
    retired()
    monkeypatch.setattr("flags.switches.read_retirement", lambda: None)
    snapshot.forget()
    assert decide().legacy is not None
    assert loaded("c", "d") == expected("c", "d")
    storage.append_messages("c", messages("later"))
    monkeypatch.undo()
    snapshot.forget()
    assert decide().legacy is None
    assert texts(storage.load_state("c"))[-1] == "later"


def test_what_somebody_wrote_who_had_not_heard_of_it_is_not_overlooked(either_store: str) -> None:
    """The conversation's row says that legacy is ahead: it decides against the record."""
    written("c", "d")
    retired(seconds=0)
    for name in ("c", "d"):
        snapshot.forget()
        with forced_phase(Phase.LEGACY):
            storage.append_messages(name, messages("late"))
    snapshot.forget()
    assert decide().legacy is None
    assert texts(storage.load_state("c"))[-1] == "late"
    page = storage.list_messages("c")
    assert [found.message["content"] for found in page][-1] == "late"
    if either_store == "chunks":
        assert retired()["c"].startswith("legacy holds content that the tables lack")
    storage.append_messages("c", messages("later"))
    list(sync("tables"))
    assert texts(storage.load_state("c"))[-2:] == ["late", "later"]
    assert texts(storage.load_state("d"))[-1] == "late"
    assert not any(retired().values())
    assert texts(storage.load_state("d"))[-1] == "late"


def test_where_the_record_cannot_be_read_what_was_known_holds() -> None:
    written("c")
    retired()
    assert decide().legacy is None
    snapshot.clear()
    with failing(lambda sql: "rollout_transitions" in sql) as failed:
        assert decide().legacy is None
    assert failed


# Late writes of old code


def test_what_old_code_writes_afterwards_is_found_taken_in_and_removed() -> None:
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


def test_whoever_is_interrupted_between_two_batches_goes_on_with_the_rest() -> None:
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


def test_whoever_still_removes_when_legacy_is_taken_back_removes_no_more() -> None:
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


# Deletions


def test_deleting_a_conversation_and_a_user_works_afterwards(either_store: str) -> None:
    user = UserFactory()
    written("c", "d", user=user)
    retired()
    assert storage.delete_conversation("c", user)
    assert configured_store().owner("c") == (False, None)
    if either_store == "chunks":
        old_save(connection, "late", user.pk, state("late").to_dict())
    get_user_model().objects.get(pk=user.pk).delete()
    assert not ConversationState.rows.exists()
    assert list(configured_store().ids()) == []
    for name in ("c", "d"):
        assert texts(storage.load_state(name)) == []


def test_a_redaction_reaches_what_is_left_of_legacy(either_store: str) -> None:
    written("c")
    retired()
    if either_store == "chunks":
        old_save(connection, "c", None, state("one", "two").to_dict())
    storage.redact_message("c", 1)
    stored = configured_store().load("c")
    assert stored is not None
    assert stored.document.messages[0]["content"] == "[redacted]"


def test_a_late_write_of_a_deleted_conversation_is_removed_and_not_archived(
    tmp_path: Path,
) -> None:
    written("c", "d")
    storage.delete_conversation("c")
    old_save(connection, "c", None, state("late").to_dict())
    path = tmp_path / "archive.jsonl"
    assert retired(archive=path) == {"c": "", "d": ""}
    assert state_chunks() == 0
    assert "late" not in path.read_text("ascii")


# The archive


def everything_stored() -> list[Any]:
    columns = ("pk", "user_id", "content", "embedding", "created_at")
    chunks = list(MemoryChunk.objects.order_by("pk").values_list(*columns))
    said = MemoryMetadata.objects.exclude(key__startswith="store.").order_by("pk")
    return [*chunks, *said.values_list("chunk_id", "key", "value")]


def test_where_there_is_nothing_the_archive_is_empty(tmp_path: Path) -> None:
    enter(Phase.NEW_ONLY)
    path = tmp_path / "archive.jsonl"
    assert retired(archive=path) == {}
    assert path.read_bytes() == b""
    assert list(retirement.restore_archive(path)) == []


@pytest.mark.parametrize("name", ["archive.jsonl", "archive.jsonl.gz"])
def test_an_archive_is_put_back_as_it_was(tmp_path: Path, name: str) -> None:
    user = UserFactory()
    written("c", "d", user=user)
    awkward = "NUL \\u0000, \\ud800 and žluť"
    old_save(connection, "c", user.pk, state("one", "two", "three", awkward).to_dict())
    list(sync("tables"))
    chunk = MemoryChunk.objects.order_by("pk").first()
    MemoryChunk.objects.filter(pk=chunk.pk).update(embedding=[0.1, 1e22], created_at=None)
    before, held = everything_stored(), loaded("c", "d")
    path = tmp_path / name
    retired(archive=path)
    opened = gzip.open if name.endswith(".gz") else open
    with opened(path, "rt") as file:
        lines = [json.loads(line) for line in file]
    assert [line["chunk"]["id"] for line in lines] == [
        str(entry[0]) for entry in before if len(entry) == 5
    ]
    assert everything_stored() == []
    assert {one.result for one in retirement.restore_archive(path)} == {Result.RESTORED}
    assert everything_stored() == before
    assert {one.result for one in retirement.restore_archive(path)} == {Result.THERE}
    assert everything_stored() == before
    assert loaded("c", "d") == held
    retirement.restore()
    snapshot.forget()
    # Nothing of it is taken for a new write of old code.
    assert {one.action for one in sync("tables")} == {Action.UNCHANGED}
    assert loaded("c", "d") == held


def test_what_else_a_host_has_in_these_tables_is_archived_too(tmp_path: Path) -> None:
    path = tmp_path / "archive.jsonl"
    tables = ("memory_chunks", "memory_metadata")

    def execute(statement: str) -> list[Any]:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    for table in tables:
        execute(f'ALTER TABLE {table} ADD COLUMN "their own" double precision')
    try:
        written("c")
        for table in tables:
            execute(f'UPDATE {table} SET "their own" = 0.1 + id')
        columns = 'SELECT "their own" FROM {} WHERE "their own" IS NOT NULL ORDER BY 1'
        before = execute(columns.format(tables[0]))
        assert len(before) == 2
        retired(archive=path)
        list(retirement.restore_archive(path))
        assert execute(columns.format(tables[0])) == before
        assert len(execute(columns.format(tables[1]))) == 16
    finally:
        for table in tables:
            execute(f'ALTER TABLE {table} DROP COLUMN "their own"')


def test_from_an_archive_the_rollout_can_go_all_the_way_back(tmp_path: Path) -> None:
    written("c", "d")
    path = tmp_path / "archive.jsonl"
    retired(archive=path)
    storage.append_messages("c", messages("since"))
    storage.remove_messages("d", last=1)
    list(retirement.restore_archive(path))
    retirement.restore(reason="an auditor", actor="ann")
    now = loaded("c", "d")
    assert not transitions.status().retired
    list(sync("legacy"))
    transitions.rollback(Phase.LEGACY)
    assert loaded("c", "d") == now
    for name, told in now.items():
        assert texts(state().from_dict(old_load(connection, name) or {})) == told


def test_nothing_is_removed_that_is_not_in_the_archive(tmp_path: Path) -> None:
    """Neither by an archive of before, nor by one that is damaged."""
    written("c")
    path = tmp_path / "archive.jsonl"
    list(retirement.retire(archive=path, seconds=0))
    old_save(connection, "c", None, state("one", "two", "three", "late").to_dict())
    list(sync("tables"))
    before = everything_stored()
    with pytest.raises(ArchiveRefused, match="name another file"):
        retired(archive=path)
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArchiveRefused, match="no whole archive"):
        retired(archive=damaged)
    assert everything_stored() == before
    assert retired(archive=tmp_path / "another.jsonl") == {"c": ""}


def test_an_archive_that_cannot_be_written_stops_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written("c")
    before = everything_stored()
    monkeypatch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        retired(archive=tmp_path / "archive.jsonl")
    assert list(tmp_path.iterdir()) == []
    assert everything_stored() == before
    assert not transitions.status().retired


def test_what_is_written_behind_the_archive_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written("c", "d")
    remove_one = retirement.remove._remove_one

    def meanwhile(legacy: Any, name: str, last_key: Any) -> Any:
        if name == "c":
            old_save(connection, "d", None, state("one", "two", "late").to_dict())
            list(sync("tables", ["d"]))
        return remove_one(legacy, name, last_key)

    monkeypatch.setattr(retirement.remove, "_remove_one", meanwhile)
    found = retired(archive=tmp_path / "archive.jsonl")
    assert (found["c"], "behind the archive" in found["d"]) == ("", True)
    assert texts(storage.load_state("d")) == ["one", "two", "late"]


def test_nothing_deleted_or_redacted_comes_back_from_an_archive(tmp_path: Path) -> None:
    user, gone = UserFactory(), UserFactory()
    written("c", "d", user=user)
    enter(Phase.DUAL_WRITE)
    storage.save_state("nobodys", state("one"), gone)
    enter(Phase.NEW_ONLY)
    path = tmp_path / "archive.jsonl"
    retired(archive=path)
    storage.redact_message("c", 1)
    storage.delete_conversation("d")
    get_user_model().objects.get(pk=gone.pk).delete()
    found = list(retirement.restore_archive(path))
    results = {(one.conversation_id, one.result) for one in found}
    assert results == {
        ("c", Result.RESTORED),
        ("d", Result.DELETED),
        ("nobodys", Result.DELETED),
    }
    contents = " ".join(MemoryChunk.objects.values_list("content", flat=True))
    assert "one" not in contents
    assert "[redacted]" in contents
    assert texts(storage.load_state("c")) == ["[redacted]", "two", "three"]


def test_a_key_that_is_taken_by_now_is_no_obstacle(tmp_path: Path) -> None:
    written("c")
    path = tmp_path / "archive.jsonl"
    key = MemoryChunk.objects.order_by("pk").values_list("pk", flat=True).first()
    retired(archive=path)
    MemoryChunk.objects.create(pk=key, content="summary")
    for wanted in (Result.RESTORED, Result.THERE):
        assert {one.result for one in retirement.restore_archive(path)} == {wanted}
    assert MemoryChunk.objects.get(pk=key).content == "summary"
    assert state_chunks() == 2


def test_a_blob_whose_user_is_gone_is_reported(tmp_path: Path) -> None:
    written("c")
    path = tmp_path / "archive.jsonl"
    retired(archive=path)
    record = json.loads(path.read_text("ascii").splitlines()[0])
    record["chunk"]["user_id"] = "987654"
    path.write_text(json.dumps(record), "ascii")
    (found,) = retirement.restore_archive(path)
    key = record["chunk"]["id"]
    assert found == Restored(key, "c", Result.FAILED, "user_id: its user is gone")


def test_a_restored_conversation_without_a_row_is_read_as_old_code_would(tmp_path: Path) -> None:
    """Into a database that does not know it: the newest blob is the truth there."""
    written("c")
    path = tmp_path / "archive.jsonl"
    retired(archive=path)
    retirement.restore()
    lines = path.read_text("ascii").replace('"value":"c"', '"value":"elsewhere"')
    path.write_text(lines, "ascii")
    list(retirement.restore_archive(path))
    snapshot.forget()
    enter(Phase.LEGACY)
    assert texts(storage.load_state("elsewhere")) == ["one", "two"]
    enter(Phase.DUAL_WRITE)
    list(sync("tables", ["elsewhere"]))
    assert texts(storage.load_state("elsewhere")) == ["one", "two"]
    storage.append_messages("elsewhere", messages("more"))
    assert texts(storage.load_state("elsewhere")) == ["one", "two", "more"]
    assert old_load(connection, "elsewhere")["conversation_history"][-1]["content"] == "more"


def test_pages_and_groups_leave_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"c{number}" for number in range(7)]
    written(*names)
    for name in ("PAGE", "READ_BYTES"):
        monkeypatch.setattr(blobs_module, name, 2)
    monkeypatch.setattr(retirement.remove, "PAGE", 2)
    for module in (requirements, retirement.archives):
        monkeypatch.setattr(module, "PROGRESS_EVERY", 5)
    before = everything_stored()
    held = retirement.holdings()
    assert (held.conversations, held.blobs) == (7, 14)
    assert held.content_bytes == sum(len(entry[2]) for entry in before if len(entry) == 5)
    assert held.metadata_rows == MemoryMetadata.objects.count()
    path = tmp_path / "archive.jsonl"
    said: list[str] = []
    retired(archive=path, progress=said.append)
    assert said == [
        "verified 5 conversations",
        *["archived 5 blobs", "archived 10 blobs", "read back 5 blobs", "read back 10 blobs"],
    ]
    list(retirement.restore_archive(path))
    assert everything_stored() == before


# The command


def test_the_command_says_what_goes_and_wants_a_yes(tmp_path: Path) -> None:
    written("c")
    assert run("retire-legacy")[0] == 2
    code, out = run("retire-legacy", "--dry-run")
    assert code == 0
    assert "2 blobs of 1 conversations" in out
    assert "dry run: nothing is changed" in out
    assert "passed   verified" in out
    assert not transitions.status().retired
    assert state_chunks() == 2
    path = tmp_path / "archive.jsonl.gz"
    code, out = run("retire-legacy", "--yes", "--archive", str(path), "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1]) == {"counts": {"conversations removed": 1}}
    assert path.exists()
    assert "legacy is retired" in status_text()
    assert run("retire-legacy", "--yes")[0] == 0
    code, out = run("restore-legacy", str(path))
    assert (code, out) == (0, "       2  blobs restored\n       1  conversations in all\n")
    assert "legacy is retired" not in status_text()
    assert run("restore-legacy")[0] == 5


def status_text() -> str:
    out = io.StringIO()
    call_command("rollout", "status", stdout=out)
    return out.getvalue()


def test_the_command_refuses_with_five_and_pauses_with_four(settings: Any) -> None:
    settings.CONVERSATIONS = CHUNKS | {"RETIRE_AFTER": timedelta(days=7)}
    written("c", "d")
    code, out = run("retire-legacy", "--dry-run")
    assert code == 5
    assert "REFUSED  soak" in out
    assert run("retire-legacy", "--yes")[0] == 5
    assert run("retire-legacy", "--yes", "--waive", "soak")[0] == 2
    assert run("retire-legacy", "--yes", "--waive", "verified=x")[0] == 2
    code, out = run("retire-legacy", "--yes", "--json")
    assert code == 5
    said = json.loads(out.splitlines()[-1])
    assert said["refused"].startswith("refused by soak: ")
    assert [gate["gate"] for gate in said["gates"] if not gate["passed"]] == ["soak"]
    waived = ("--waive", "soak=a rehearsal")
    # One of them went: a loop over calls that are too short comes to its end.
    code, out = run("retire-legacy", "--yes", *waived, "--max-seconds", "0")
    assert (code, out.splitlines()[-1]) == (4, "       1  conversations removed")
    assert run("retire-legacy", "--yes", *waived)[0] == 0
    old_save(connection, "late", None, state("late").to_dict())
    code, out = run("retire-legacy", "--yes")
    assert code == 1
    assert "late: stays: only legacy holds it" in out


def test_with_json_a_busy_fence_is_a_line_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(**options: Any) -> None:
        raise FenceBusy

    written("c")
    monkeypatch.setattr(transitions.fence, "close", busy)
    code, out = run("retire-legacy", "--yes", "--json")
    assert (code, json.loads(out.splitlines()[-1])) == (
        5,
        {"refused": str(FenceBusy()), "gates": []},
    )


# Under load


def test_what_writers_are_told_meanwhile_is_what_a_load_returns() -> None:
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
