"""The machine must fail without each of the safeguards: otherwise it would prove nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from django.db import connection
from django.db.backends.sqlite3.base import DatabaseWrapper as SQLite
from hypothesis import Phase as Stage, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import RULE_MARKER, run_state_machine_as_test

from conversations.content.changes import AppendMessages, SaveState
from conversations.exceptions import StorageUnavailable
from conversations.models import ConversationState
from conversations.reading import load_stepwise
from conversations.rollout.runs import working
from conversations.routing import standing
from conversations.routing.owners import check_owner
from conversations.routing.truth import read_order
from conversations.storage import states
from conversations.stores.chunks import overtaken as chunk_blobs
from conversations.stores.chunks.store import ChunkStore
from conversations.stores.jsonfield.store import JSONFieldStore
from conversations.stores.normalized import find_row
from conversations.writing import delete, ingest, write
from flags import fence
from flags.phases import Phase, StoreName
from tests.machine.machine import Everything, Rollout, TwoUsers
from tests.machine.oldcode import OldChunks, OldSession
from tests.support.scale import profile

Patch = pytest.MonkeyPatch
# Enough for the lack of every safeguard to show; most show within 50 runs.
RUNS = 2000
STEPS = 30


def without_lock(patch: Patch) -> None:
    """Neither a row lock nor an advisory lock; SQLite's transactions begin as readers."""

    patch.setattr(standing, "lock", find_row)
    patch.setattr(
        SQLite,
        "_start_transaction_under_autocommit",
        lambda self: self.cursor().execute("BEGIN"),
    )


def without_savepoint(patch: Patch) -> None:
    """The legs of a write share the outer transaction."""
    for module in (write, standing):
        patch.setattr(module, "attempt", nullcontext)


def without_token(patch: Patch) -> None:
    """Foreign writes are not noticed."""
    patch.setattr(ChunkStore, "token_of", lambda self, value, known: known)
    patch.setattr(JSONFieldStore, "token_of", lambda self, value, known: "same")


def without_mark(patch: Patch) -> None:
    """Our own blobs look like old code's."""
    patch.setattr("conversations.stores.chunks.store.REVISION_MARK", "forgotten")
    patch.setattr(JSONFieldStore, "save", _saving_without_token(JSONFieldStore.save))


def _saving_without_token(save: Callable[..., str]) -> Callable[..., str]:
    def saved(self: Any, *args: Any, **kwargs: Any) -> str:
        save(self, *args, **kwargs)
        return "forgotten"

    return saved


def without_merge(patch: Patch) -> None:
    """The last blob wins."""

    def last_blob_wins(tables: Any, legacy: Any, row: Any, *, now: Any) -> None:
        seen = legacy.foreign_ids(row.conversation_id, row.legacy_token)
        for blob in legacy.list_foreign(row.conversation_id, row.legacy_token, seen):
            revision = max(row.revision, row.legacy_revision) + 1
            tables.take(row, blob.stored.document, revision=revision, now=now)
        token = legacy.mark_ingested(
            row.conversation_id, revision=row.revision, known=row.legacy_token, foreign_ids=seen
        )
        columns = {"legacy_token": token}
        ConversationState.rows.filter(pk=row.pk).update(**columns)
        row.legacy_token = token

    for module in (ingest, write, load_stepwise):
        patch.setattr(module, "merge", last_blob_wins)


def without_baseline(patch: Patch) -> None:
    """A save believes that the state is everything."""
    patch.setattr(states, "SaveState", lambda checked, baseline: SaveState(checked, None))


def without_tombstone(patch: Patch) -> None:
    """Deleted conversations leave no tombstone."""
    patch.setattr(delete, "bury", lambda conversation_id, *, reason: None)


def without_fence(patch: Patch) -> None:
    """A flip does not wait for the writes in flight (SQLite's own lock is its fence)."""
    patch.setattr(fence, "close", lambda: None)


def without_generation(patch: Patch) -> None:
    """Who takes over a batch does not tell its first worker."""
    abandoned = working._find_abandoned

    def as_it_was(row: Any) -> Any:
        batch = abandoned(row)
        if batch is not None:
            batch.generation -= 1
        return batch

    patch.setattr(working, "_find_abandoned", as_it_was)


def without_truth_in_an_emergency(patch: Patch) -> None:
    """Legacy is believed against the conversation's row."""

    def legacy_first(plan: Any, truth: Any) -> Any:
        return (StoreName.LEGACY,) if plan.emergency else read_order(plan, truth)

    patch.setattr(load_stepwise, "read_order", legacy_first)


def without_transaction(patch: Patch) -> None:
    """The statements of a write are committed one by one."""

    class Transaction:
        atomic = staticmethod(lambda using: nullcontext())

    patch.setattr(write, "transaction", Transaction)


def without_keys(patch: Patch) -> None:
    """What is appended again is appended twice."""
    patch.setattr(
        states,
        "AppendMessages",
        lambda values, keys=None, **options: AppendMessages(values, **options),
    )


def without_doubt(patch: Patch) -> None:
    """A stranger's blob says that there is no conversation, while the tables do not answer."""

    def answers(owner: Any, *, actual: Any) -> bool:
        check_owner(owner, actual=actual)
        return True

    patch.setattr(load_stepwise, "may_read", answers)


def without_owner_of_blobs(patch: Patch) -> None:
    """A merge takes in a blob that was written for another owner."""
    patch.setattr(ingest, "same_owner", lambda one, other: True)


SAFEGUARDS = [
    without_lock,
    without_savepoint,
    without_token,
    without_mark,
    without_merge,
    without_baseline,
    without_tombstone,
]
# Those of the rollout and of processes that die, and the rules that show the lack of each: the
# whole machine shows it as well, but takes up to a minute.
OPERATORS: dict[Callable[[Patch], None], set[str]] = {
    without_fence: {"enter", "append", "sync_all", "step_beside_a_writer"},
    without_generation: {"enter", "append", "wake_up_beside_another"},
    without_truth_in_an_emergency: {"enter", "append", "step_beside_a_writer", "emergency"},
    without_transaction: {"enter", "append", "save_and_die", "append_and_die"},
    without_keys: {"enter", "append", "append_and_die"},
}


def machine_without(remove: Callable[[Patch], None], old: OldChunks | OldSession) -> Any:
    """Return the machine that is to fail; a rule that is None is none."""
    if remove not in OPERATORS:
        return type("Machine", (Rollout,), {"old": old})
    # Other rules look and load as well.
    needed = OPERATORS[remove] | {"look", "load"}
    needless = {name for name in dir(Everything) if is_rule(name)} - needed
    return type("Machine", (Everything,), {"old": old, **dict.fromkeys(needless)})


def is_rule(name: str) -> bool:
    return hasattr(getattr(Everything, name), RULE_MARKER)


# A full run removes every safeguard on both databases and before both legacy stores, but tries
# each store on one database: the other two take minutes more, and are left to long runs.
TRIED: list[OldChunks | OldSession] = [OldChunks(), OldSession()]
if profile() != "long":
    TRIED = TRIED[1:] if os.environ.get("TEST_DATABASE") == "postgresql" else TRIED[:1]


@pytest.mark.long
@pytest.mark.skipif(
    profile() not in ("full", "long"), reason="takes minutes: full and long runs try it"
)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("old", TRIED, ids=lambda old: type(old).__name__)
@pytest.mark.parametrize("remove", [*SAFEGUARDS, *OPERATORS], ids=lambda remove: remove.__name__)
def test_the_machine_fails(
    remove: Callable[[Patch], None],
    old: OldChunks | OldSession,
    monkeypatch: Patch,
) -> None:
    if remove is without_fence and connection.vendor == "sqlite":
        pytest.skip("SQLite lets nobody write beside a step")
    remove(monkeypatch)
    with pytest.raises(Exception) as failure:
        run_state_machine_as_test(
            machine_without(remove, old),
            settings=settings(
                max_examples=RUNS,
                stateful_step_count=STEPS,
                phases=[Stage.generate],
                report_multiple_bugs=False,
            ),
        )
    # Flaky: it failed, and then did not, as a race may.
    assert isinstance(failure.value, AssertionError | StorageUnavailable | Flaky)


def play_an_emergency(old: OldChunks | OldSession) -> None:
    """Play the steps in which a stranger's save could hide, or take over, what a user owns."""
    machine = type("Machine", (TwoUsers,), {"old": old})()
    with machine.stack:
        machine.begin(phase=Phase.NEW_ONLY, keep_blobs=None)
        machine.append(added=1, keyed=False, repeat=False)
        machine.take_down(store="tables")
        machine.emergency()
        machine.a_stranger_saves()
        machine.load(window=None)
        machine.take_down(store=None)
        machine.look()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("old", [OldChunks(), OldSession()], ids=lambda old: type(old).__name__)
@pytest.mark.parametrize("remove", [None, without_doubt, without_owner_of_blobs])
def test_an_emergency_with_two_users_fails_without_each_safeguard(
    remove: Callable[[Patch], None] | None, old: OldChunks | OldSession, monkeypatch: Patch
) -> None:
    if remove is None:
        play_an_emergency(old)
        return
    remove(monkeypatch)
    with pytest.raises(AssertionError):
        play_an_emergency(old)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("safe", [True, False])
def test_the_machine_sees_a_blob_go_that_a_merge_begins_with(
    safe: bool, monkeypatch: Patch
) -> None:
    """Chance seldom plays these steps one behind the other."""
    if not safe:
        overtaken = chunk_blobs.overtaken
        monkeypatch.setattr(
            chunk_blobs,
            "overtaken",
            lambda looked, beside, *, keep, needed: overtaken(
                looked, beside, keep=keep, needed=2**62
            ),
        )
    machine = type("Machine", (Everything,), {"old": OldChunks()})()
    with machine.stack:
        machine.begin(phase=Phase.DUAL_WRITE, keep_blobs=None)
        machine.append(added=1, keyed=False, repeat=False)
        machine.old_read()
        machine.enter(phase=Phase.LEGACY)
        machine.append(added=1, keyed=False, repeat=False)
        machine.old_write(chosen=0, added=1, keep=30)
        machine.prune_blobs(keep=1, dry_run=False)
        with nullcontext() if safe else pytest.raises(AssertionError, match="lost"):
            machine.look()
