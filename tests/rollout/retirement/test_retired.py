"""After retirement, no operation uses legacy, and nothing leads back by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.test.utils import CaptureQueriesContext

from conversations import storage
from conversations.exceptions import SyncRefused
from conversations.models import ConversationState
from conversations.rollout import retirement
from conversations.rollout.sync import sync
from conversations.routing.standing import decide
from conversations.stores.registry import configured_store
from flags import transitions
from flags.exceptions import TransitionRefused
from flags.phases import PLANS, Phase
from flags.switches import current_plan, forced_phase, snapshot
from memory.models import MemoryChunk
from tests.faults.injection import failing
from tests.flags.test_emergency import set_emergency
from tests.flags.test_switches import set_rows
from tests.support.factories import UserFactory, messages, state, texts
from tests.support.legacy_schema import old_save
from tests.support.retirement import enter, expected, loaded, retired, written
from tests.support.rollout import before_the_fence

pytestmark = pytest.mark.django_db(transaction=True)


def legacy_statements(call: Callable[[], Any]) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        call()
    assert captured.captured_queries
    sent = [query["sql"] for query in captured.captured_queries]
    # Metadata of context items is the tables' own.
    return [sql for sql in sent if "memory_" in sql or "blobs_" in sql]


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


def test_a_write_of_a_process_that_has_not_heard_of_it_is_not_overlooked(either_store: str) -> None:
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


def test_an_unreadable_record_leaves_the_known_retirement_in_force() -> None:
    written("c")
    retired()
    assert decide().legacy is None
    snapshot.clear()
    with failing(lambda sql: "rollout_transitions" in sql) as failed:
        assert decide().legacy is None
    assert failed


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


def test_a_redaction_reaches_late_blobs_of_legacy(either_store: str) -> None:
    written("c")
    retired()
    if either_store == "chunks":
        old_save(connection, "c", None, state("one", "two").to_dict())
    storage.redact_message("c", 1)
    stored = configured_store().load("c")
    assert stored is not None
    assert stored.document.messages[0]["content"] == "[redacted]"
