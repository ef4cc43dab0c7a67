"""What has to hold before conversations let the rollout make a step."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder

from conversations.models import ConversationState, ConversationTombstone
from conversations.rollout.gates import verified
from conversations.rollout.runs import records
from conversations.rollout.sync import runs, sync
from conversations.rollout.verification import runs as verification_runs, unverified, verify
from conversations.storage import append_messages, delete_conversation, load_state, save_state
from flags import transitions
from flags.exceptions import TransitionRefused, UnknownGate
from flags.gates import GateResult
from flags.phases import Phase
from flags.switches import forced_phase, snapshot
from flags.transitions import advance, check, rollback, status
from memory.models import MemoryChunk
from tests.faults.injection import failing, touches_legacy, touches_messages, touches_tables
from tests.flags.test_switches import set_rows
from tests.machine.oldcode import OldSession
from tests.support.factories import UserFactory, messages, state, texts
from tests.support.legacy_schema import old_save
from tests.support.rollout import EASED, prepare
from tests.writing.test_ingest import JSON_COLUMN

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _chunks(settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks", **EASED}


def enter(phase: Phase) -> None:
    set_rows(phase)
    snapshot.forget()
    prepare()


def refusing() -> dict[str, GateResult]:
    return {result.gate: result for result in check() if not result.holds}


def refused_by(call: Any) -> list[str]:
    with pytest.raises(TransitionRefused) as refused:
        call()
    assert all(result.fix for result in refused.value.results)
    return [result.gate for result in refused.value.results if not result.holds]


# legacy to dual_write


def test_a_migration_that_is_not_applied_refuses() -> None:
    enter(Phase.LEGACY)
    recorder = MigrationRecorder(connection)
    recorder.record_unapplied("memory", "0002_index_memory_tables")
    try:
        assert refusing()["migrations"].evidence == {"missing": ["memory.0002_index_memory_tables"]}
    finally:
        recorder.record_applied("memory", "0002_index_memory_tables")


def test_a_check_that_fails_refuses(settings: Any) -> None:
    enter(Phase.LEGACY)
    settings.USE_TZ = False
    assert refusing()["configuration"].evidence == {"errors": ["conversations.E017"]}


def test_a_store_that_does_not_give_back_what_it_was_given_refuses() -> None:
    enter(Phase.LEGACY)
    with failing(touches_messages):
        assert refusing()["round_trip"].evidence == {"stores": ["legacy"]}
    assert refusing() == {}
    for model in (ConversationState, ConversationTombstone, MemoryChunk):
        assert not model.objects.exists()


@pytest.mark.parametrize("mapping", [OldSession.settings, JSON_COLUMN])
def test_a_hosts_table_gives_back_what_it_was_given(settings: Any, mapping: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": mapping, **EASED}
    enter(Phase.LEGACY)
    assert refusing() == {}


# dual_write to new_reads


def written_in_both() -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("a"))


def only_in_legacy() -> None:
    with forced_phase(Phase.LEGACY):
        save_state("c", state("a"))


def ahead_in_legacy() -> None:
    written_in_both()
    with forced_phase(Phase.LEGACY):
        append_messages("c", messages("b"))


def by_old_code() -> None:
    written_in_both()
    old_save(connection, "c", None, state("a", "b").to_dict())


@pytest.mark.parametrize("begin", [only_in_legacy, ahead_in_legacy, by_old_code])
def test_an_unsynced_conversation_refuses_until_it_is_synced(begin: Any) -> None:
    enter(Phase.DUAL_WRITE)
    begin()
    assert refusing()["verified"].evidence["ids"] == ["c"]
    assert refused_by(advance) == ["verified"]
    assert status().phase == Phase.DUAL_WRITE
    list(sync("tables"))
    assert advance().target == Phase.NEW_READS


def test_rows_that_differ_from_their_digests_refuse() -> None:
    enter(Phase.DUAL_WRITE)
    written_in_both()
    assert refusing() == {}
    ConversationState.rows.update(message_count=7, verified_revision=-1)
    assert refused_by(advance) == ["verified"]


def test_a_quarantined_blob_refuses_a_step_unless_it_is_waived() -> None:
    enter(Phase.DUAL_WRITE)
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("a"), UserFactory())
    old_save(connection, "c", UserFactory().pk, state("theirs").to_dict())
    list(sync("tables"))
    assert refused_by(advance) == ["verified"]
    made = advance(waive={"verified": "the other user asked for it"})
    waived = {gate["gate"]: gate["waived"] for gate in made.gates if gate["waived"]}
    assert waived == {"verified": "the other user asked for it"}


def test_a_verified_conversation_is_verified_again_only_after_a_write() -> None:
    with forced_phase(Phase.DUAL_WRITE):
        for name in ("c", "d"):
            save_state(name, state("a"))
    assert unverified().count() == 2
    list(verify())
    assert unverified().count() == 0
    with forced_phase(Phase.NEW_READS):
        append_messages("c", messages("b"))
    assert [row.conversation_id for row in unverified()] == ["c"]
    with forced_phase(Phase.LEGACY):
        append_messages("d", messages("b"))
    assert [row.conversation_id for row in unverified().order_by("pk")] == ["c", "d"]


@pytest.mark.parametrize("store", ["chunks", "row", "row with a time"])
def test_a_write_after_the_gate_is_verified_inside_the_fence(
    settings: Any, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    if store != "chunks":
        settings.CONVERSATIONS = {"LEGACY": OldSession.settings, **EASED}
    if store == "row with a time":
        timed = JSON_COLUMN | {"updated_at": "changed_at", "model": "blobs.VersionedSession"}
        del timed["version"]
        settings.CONVERSATIONS = {"LEGACY": timed | {"state": "payload"}, **EASED}
    enter(Phase.DUAL_WRITE)
    written_in_both()
    close = transitions.fence.close

    def written_meanwhile(**options: Any) -> None:
        with forced_phase(Phase.LEGACY):
            save_state("late", state("x"))
        close(**options)

    monkeypatch.setattr(transitions.fence, "close", written_meanwhile)
    assert refused_by(advance) == ["verified"]
    assert status().phase == Phase.DUAL_WRITE


def test_more_than_a_second_of_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    enter(Phase.DUAL_WRITE)
    written_in_both()
    list(verify())
    monkeypatch.setattr(verified, "INSIDE", timedelta(seconds=-1))
    assert refusing() == {}
    close = transitions.fence.close

    def written_meanwhile(**options: Any) -> None:
        with forced_phase(Phase.DUAL_WRITE):
            append_messages("c", messages("b"))
        close(**options)

    monkeypatch.setattr(transitions.fence, "close", written_meanwhile)
    with pytest.raises(TransitionRefused, match="more has to be verified"):
        advance()


# Behind new_reads, and back


def test_a_phase_has_to_be_in_force_for_its_time(settings: Any) -> None:
    enter(Phase.NEW_READS)
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks", **EASED, "SOAK_TIME": timedelta(hours=1)}
    assert refused_by(advance) == ["soak"]
    assert advance(waive={"soak": "rehearsed"}).target == Phase.NEW_PRIMARY


@pytest.mark.parametrize(
    "phase", [Phase.DUAL_WRITE, Phase.NEW_READS, Phase.NEW_PRIMARY], ids=lambda phase: phase.label
)
def test_where_legacy_would_be_behind_it_does_not_take_over(phase: Phase) -> None:
    """Neither by a rollback to where it decides, nor by a step to a phase that does not read it."""
    with forced_phase(Phase.NEW_ONLY):
        save_state("c", state("a"))
    enter(phase)
    list(verify())
    step = advance if phase == Phase.NEW_PRIMARY else rollback
    assert refused_by(step) == ["legacy_current"]
    list(sync("legacy"))
    step()
    assert texts(load_state("c")) == ["a"]


def test_from_the_last_phase_one_may_always_go_back() -> None:
    with forced_phase(Phase.NEW_ONLY):
        save_state("c", state("a"))
    enter(Phase.NEW_ONLY)
    rollback(Phase.NEW_READS)
    assert status().phase == Phase.NEW_READS


def test_a_waiver_holds_for_every_step_that_has_the_gate() -> None:
    with forced_phase(Phase.NEW_ONLY):
        save_state("c", state("a"))
    enter(Phase.NEW_ONLY)
    with pytest.raises(UnknownGate):
        rollback(Phase.LEGACY, waive={"legacy": "typo"})
    assert status().phase == Phase.NEW_ONLY
    rollback(Phase.LEGACY, waive={"legacy_current": "nobody will run old code again"})
    assert texts(load_state("c")) == ["a"]


def test_a_late_write_to_a_deleted_conversation_refuses_nothing() -> None:
    enter(Phase.DUAL_WRITE)
    written_in_both()
    delete_conversation("c")
    old_save(connection, "c", None, state("a").to_dict())
    assert refusing() == {}


# Waivers of one conversation, or of a class of reasons


def unreadable_blobs(*names: str) -> None:
    enter(Phase.DUAL_WRITE)
    for name in names:
        old_save(connection, name, None, state(name).to_dict())
        MemoryChunk.objects.filter(metadata__value=name).update(content="{broken")
    run = runs.begin("tables")
    list(runs.work(run))


def test_a_failed_conversation_of_a_sync_refuses() -> None:
    unreadable_blobs("c", "d")
    found = refusing()
    assert set(found) == {"sync_finished", "verified"}
    assert found["sync_finished"].evidence == {
        "ids": ["c", "d"],
        "classes": {"unreadable": 2},
        "waived": {},
    }


def test_it_is_waived_by_id() -> None:
    unreadable_blobs("c", "d")
    waive = {f"{gate}:c": "broken since May" for gate in ("sync_finished", "verified")}
    refused = {one.gate: one.evidence["ids"] for one in check(waive=waive) if not one.holds}
    assert refused == {"sync_finished": ["d"], "verified": ["d"]}
    waive |= {f"{gate}:d": "the same" for gate in ("sync_finished", "verified")}
    made = advance(waive=waive)
    (verified_gate,) = [one for one in made.gates if one["gate"] == "verified"]
    assert verified_gate["evidence"]["waived"] == {"c": "broken since May", "d": "the same"}


def test_a_gate_waived_as_a_whole_is_not_recorded_as_in_order() -> None:
    unreadable_blobs("c", "d")
    made = advance(waive={"verified": "a bug of 2024", "sync_finished": "the same"})
    (gate,) = [one for one in made.gates if one["gate"] == "verified"]
    assert (gate["passed"], gate["waived"]) == (False, "a bug of 2024")
    assert gate["message"] == "2 conversations are not in order: c, d."
    assert gate["evidence"]["ids"] == ["c", "d"]


def test_it_is_waived_by_the_class_of_the_reason() -> None:
    unreadable_blobs("c", "d")
    waive = {f"{gate}:unreadable": "a bug of 2024" for gate in ("sync_finished", "verified")}
    assert advance(waive=waive).target == Phase.NEW_READS


def test_a_waived_class_covers_no_difference_and_no_untried_conversation() -> None:
    enter(Phase.DUAL_WRITE)
    written_in_both()
    ConversationState.rows.update(message_count=7)
    old_save(connection, "never synced", None, state("a").to_dict())
    waive = {f"verified:{name}": "all" for name in ("unreadable", "missing_in_tables", "error")}
    (refused,) = [one for one in check(waive=waive) if not one.holds]
    assert refused.evidence["ids"] == ["c", "never synced"]


def test_a_waived_class_covers_no_difference_beside_a_quarantined_blob() -> None:
    enter(Phase.DUAL_WRITE)
    written_in_both()
    old_save(connection, "c", None, state("c").to_dict())
    MemoryChunk.objects.filter(pk=MemoryChunk.objects.latest("pk").pk).update(content="{broken")
    list(sync("tables"))
    waive = {"verified:unreadable": "known"}
    assert [one.gate for one in check(waive=waive) if not one.holds] == []
    ConversationState.rows.update(message_count=7, verified_revision=-1)
    assert [one.gate for one in check(waive=waive) if not one.holds] == ["verified"]


def test_a_sync_that_is_under_way_refuses() -> None:
    enter(Phase.DUAL_WRITE)
    run = runs.begin("tables")
    for _ in range(20):
        records.cancel(verification_runs.begin())
    assert refusing()["sync_finished"].message == f"run {run} is not finished."
    list(runs.work(run))
    assert refusing() == {}


# Gates that cannot look


@pytest.mark.parametrize("after", [0, 1])
def test_a_store_that_is_down_refuses_a_step_unless_it_is_waived(after: int) -> None:
    """Before the fence, or inside it: an operator who rolls back at night gets no traceback."""
    enter(Phase.NEW_READS)
    with failing(touches_tables, after=after) as failed:
        assert refused_by(rollback) == ["legacy_current"]
        assert failed
    with failing(touches_tables, after=after):
        (made,) = rollback(waive={"legacy_current": "the tables are gone"})
    assert made.target == status().phase == Phase.DUAL_WRITE
    (found,) = made.gates
    assert (found["passed"], found["message"]) == (False, "could not look (OperationalError).")


def test_a_verification_that_a_store_does_not_answer_refuses() -> None:
    enter(Phase.DUAL_WRITE)
    for matches in (touches_tables, touches_legacy):
        with failing(matches):
            assert refused_by(advance) == ["verified"]
    assert advance().target == Phase.NEW_READS


@pytest.mark.parametrize("matches", [touches_tables, touches_legacy])
def test_an_emergency_does_not_end_while_a_store_is_down(matches: Any) -> None:
    enter(Phase.NEW_READS)
    transitions.emergency()
    with failing(matches):
        assert "round_trip" in refused_by(transitions.resume)
        assert transitions.status().emergency
    assert not transitions.resume().emergency


def test_a_waived_gate_is_not_recorded_as_passed() -> None:
    """The second look is at what changed since the first, and that was in order."""
    old_save(connection, "c", None, state("a").to_dict())
    enter(Phase.DUAL_WRITE)
    prepare()
    made = advance(waive={"verified": "it is a test conversation"})
    (found,) = (gate for gate in made.gates if gate["gate"] == "verified")
    assert (found["passed"], found["waived"]) == (False, "it is a test conversation")
    assert found["evidence"]["ids"] == ["c"]
