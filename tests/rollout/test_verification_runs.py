"""A verification at scale: whole or sampled, shared and resumed, again of what changed."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from conversations.exceptions import SyncRefused
from conversations.models import ConversationMessage, ConversationState, SyncBatch
from conversations.rollout.runs import records, working
from conversations.rollout.runs.progress import progress
from conversations.rollout.sync import sync
from conversations.rollout.verification import runs
from conversations.rollout.verification.runs import latest_verification
from conversations.storage import append_messages, delete_conversation, save_state
from flags.phases import Phase
from flags.sampling import share_of
from flags.switches import forced_phase
from tests.faults.injection import failing
from tests.machine.oldcode import OldSession
from tests.support.factories import messages, state
from tests.support.legacy_schema import old_save
from tests.support.processes import Job, result_of, start

pytestmark = pytest.mark.django_db(transaction=True)

NAMES = [f"c{number:02}" for number in range(10)]


@pytest.fixture(autouse=True)
def _chunks(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    monkeypatch.setattr(records, "FIRST_BATCH", 3)


def stored(*names: str, phase: Phase = Phase.DUAL_WRITE) -> None:
    with forced_phase(phase):
        for name in names:
            save_state(name, state(name))


def by_old_code(name: str, *lines: str) -> None:
    old_save(connection, name, None, state(name, *lines).to_dict())


def whole() -> runs.Verification:
    list(runs.work(runs.begin()))
    found = latest_verification()
    assert found is not None
    return found


def noted(found: runs.Verification) -> dict[str, str]:
    return {note.conversation_id: note.reason_class for note in found.notes}


@pytest.mark.parametrize("mapping", ["memory_chunks", OldSession.settings])
def test_everything_is_verified_and_recorded(settings: Any, mapping: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": mapping}
    assert latest_verification() is None
    stored(*NAMES)
    stored("tables", phase=Phase.NEW_ONLY)
    stored("legacy", phase=Phase.LEGACY)
    ConversationMessage.rows.filter(conversation__conversation_id="c03").update(content="x")
    found = whole()
    assert found.whole
    assert not found.in_order
    assert dict(found.counts) == {
        "equal": 9,
        "tables_only": 1,
        "missing_in_tables": 1,
        "different+digest_lies": 1,
    }
    assert noted(found) == {"c03": "different", "legacy": "missing_in_tables"}
    assert found.started_at < found.finished_at
    assert found.run == records.latest_finished("verification").pk  # type: ignore[union-attr]


def test_many_blobs_of_a_conversation_in_legacy_alone_count_once() -> None:
    """What may be in flight is met again with each of its blobs."""
    for turn in range(8):
        for name in "ab":
            by_old_code(name, *"xyz"[:turn])
    found = whole()
    assert dict(found.counts) == {"missing_in_tables": 2}
    standing = progress(found.run)
    assert (standing.conversations, standing.failed) == (2, 0)


@pytest.mark.parametrize("mapping", [None, "memory_chunks"])
def test_where_there_is_nothing_everything_is_in_order(settings: Any, mapping: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": mapping}
    found = whole()
    assert (found.in_order, dict(found.counts), found.looks) == (True, {}, 0)


def test_it_is_resumed_where_it_was_left() -> None:
    stored(*NAMES)
    run = runs.begin()
    next(runs.work(run))
    assert latest_verification() is None
    assert runs.begin() == run
    seen = [one.conversation_id for done in runs.work(run) for one in done]
    assert seen == NAMES[3:]
    found = latest_verification()
    assert found is not None
    assert (found.run, dict(found.counts)) == (run, {"equal": 10})


def test_a_sample_is_the_same_every_time_and_is_no_proof_of_everything() -> None:
    stored(*NAMES)
    stored("only in legacy", phase=Phase.LEGACY)
    expected = [name for name in [*NAMES, "only in legacy"] if share_of(name) < 0.5]
    for _ in range(2):
        walked = runs.work(runs.begin(sample=0.5))
        done = [one.conversation_id for batch in walked for one in batch]
        assert done == expected
        assert 0 < len(done) < 11
    assert latest_verification() is None
    found = latest_verification(whole=False)
    assert found is not None
    assert (found.sample, found.looks) == (0.5, len(expected))


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        runs.begin(sample=share)


def test_a_run_of_another_sample_is_not_joined() -> None:
    stored("c")
    run = runs.begin(sample=0.5)
    assert runs.begin(sample=0.5) == run
    with pytest.raises(SyncRefused, match=f"run {run} is of a sample of 0.5"):
        runs.begin()
    records.cancel(run)
    run = runs.begin()
    with pytest.raises(SyncRefused, match=f"run {run} is of everything"):
        runs.begin(sample=0.5)


# What changes meanwhile


def test_a_blob_of_old_code_behind_the_walk_is_verified() -> None:
    stored(*NAMES)
    worker = runs.work(runs.begin())
    next(worker)
    by_old_code("c00", "late")
    by_old_code("new")
    list(worker)
    found = latest_verification()
    assert found is not None
    assert noted(found) == {"c00": "pending", "new": "missing_in_tables"}


def test_a_conversation_mended_during_the_run_is_in_order_in_the_end() -> None:
    stored(*NAMES)
    by_old_code("c00", "more")
    by_old_code("new")
    looked: list[str] = []
    for done in runs.work(runs.begin()):
        looked += [one.conversation_id for one in done]
        if looked[-1:] == ["new"]:
            list(sync("tables"))
    assert looked == [*NAMES, "new", "c00", "new"]
    found = latest_verification()
    assert found is not None
    assert (found.in_order, noted(found)) == (True, {})
    assert dict(found.counts) == {"equal": 11}


def test_a_conversation_saved_during_the_run_is_verified_again() -> None:
    stored(*NAMES)
    worker = runs.work(runs.begin())
    next(worker)
    with forced_phase(Phase.DUAL_WRITE):
        append_messages("c00", messages("live"))
        delete_conversation("c01")
        delete_conversation("c09")
    looked = [one.conversation_id for done in worker for one in done]
    assert looked == ["c03", "c04", "c05", "c06", "c07", "c08", "c00"]
    found = latest_verification()
    assert found is not None
    assert found.in_order
    standing = progress(found.run)
    assert (standing.conversations, standing.looks) == (9, 10)


def test_a_conversation_deleted_during_its_verification_is_no_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored(*NAMES)
    verify = runs.verify

    def deleted_first(ids: Any) -> Any:
        delete_conversation("c01")
        return verify(ids)

    monkeypatch.setattr(runs, "verify", deleted_first)
    found = whole()
    assert (found.in_order, found.notes) == (True, ())


def test_a_conversation_that_never_rests_does_not_keep_it_going(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs, "LITTLE", 0)
    stored(*NAMES)
    rounds = 0
    for done in runs.work(runs.begin()):
        rounds += bool(done)
        with forced_phase(Phase.DUAL_WRITE):
            append_messages("c00", messages(f"turn {rounds}"))
        assert rounds < 60
    assert latest_verification() is not None


def test_a_second_verification_writes_no_conversation() -> None:
    stored(*NAMES)
    whole()
    with CaptureQueriesContext(
        connection,
    ) as queries:
        whole()
    writes = [
        query["sql"]
        for query in queries
        if query["sql"].startswith(("INSERT", "UPDATE", "DELETE")) and "sync_" not in query["sql"]
    ]
    assert [sql for sql in writes if "WHERE 0" not in sql] == []


# Faults


def test_a_store_that_does_not_answer_at_first_is_asked_again() -> None:
    stored(*NAMES)
    with failing(lambda sql: sql.startswith("SELECT") and "conversation_messages" in sql, times=4):
        found = whole()
    assert (found.in_order, dict(found.counts)) == (True, {"equal": 10})
    assert SyncBatch.rows.filter(finished_at=None).count() == 0


def test_an_unverifiable_conversation_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "TRIES", 2)
    stored("a", "b")
    with failing(lambda sql: sql.startswith("SELECT") and "conversation_messages" in sql):
        found = whole()
    assert noted(found) == {"a": "failed", "b": "failed"}


def labour(run: int) -> int:
    """Verify in another process. Returns: how many looks it took."""
    return sum(len(done) for done in runs.work(run))


def test_two_workers_share_it_while_others_write() -> None:
    names = [f"w{number:03}" for number in range(60)]
    stored(*names)
    run = runs.begin()
    workers = [
        start(Job("tests.rollout.test_verification_runs:labour", {"run": run})) for _ in range(2)
    ]
    with forced_phase(Phase.DUAL_WRITE):
        for name in names[::6]:
            append_messages(name, messages("live"))
    assert sum(result_of(worker) for worker in workers) >= 60
    found = latest_verification()
    assert found is not None
    assert found.in_order
    assert not ConversationState.rows.filter(verified_revision=-1).exists()
