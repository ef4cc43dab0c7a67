"""An emergency is one call, and needs nothing of the tables: not even that they are there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import pytest
from django.db import connection, transaction

from conversations.exceptions import ConversationNotFound, StorageUnavailable
from conversations.rollout.sync import sync
from conversations.rollout.verification import verify
from conversations.storage import (
    append_messages,
    create_new_conversation,
    get_conversation_timestamp,
    list_conversations,
    load_state,
    remove_messages,
    save_state,
)
from flags.exceptions import SwitchesUnreadable, TransitionRefused
from flags.phases import EMERGENCY, PLANS, Phase
from flags.switches import current_plan, snapshot
from flags.transitions import advance, emergency, history, resume, rollback, status
from tests.faults.injection import failing, locked
from tests.flags.test_switches import set_rows, touches_switches
from tests.machine.oldcode import OldSession
from tests.support.factories import UserFactory, messages, state, texts
from tests.support.rollout import EASED

pytestmark = pytest.mark.django_db(transaction=True)

TABLES = (
    "conversation_states",
    "conversation_messages",
    "conversation_tombstones",
    "conversation_conflicts",
    "conversation_redactions",
    "memory_context_items",
    "rollout_transitions",
)


@pytest.fixture
def legacy() -> Any:
    return "memory_chunks"


@pytest.fixture(autouse=True)
def _in_new_only(settings: Any, legacy: Any) -> Iterator[None]:
    settings.CONVERSATIONS = {"LEGACY": legacy, **EASED}
    enter(Phase.NEW_PRIMARY)
    save_state("in both", state("a"))
    enter(Phase.NEW_ONLY)
    save_state("in both", load_state("in both"))
    save_state("in tables", state("b"))
    status()
    yield
    for row in set_emergency(on=False):
        row.flush()


def enter(phase: Phase) -> None:
    set_rows(phase)
    snapshot.forget()


def set_emergency(*, on: bool) -> Any:
    from waffle import get_waffle_switch_model

    rows = get_waffle_switch_model()._base_manager.filter(name="emergency_rollback")
    rows.update(active=on)
    snapshot.forget()
    return rows


def raising() -> AbstractContextManager[Any]:
    return failing(lambda sql: any(table in sql for table in TABLES))


@contextmanager
def renamed() -> Iterator[None]:
    """Rename the tables away, as an operator might who restores a backup."""
    rename("", "_away")
    try:
        yield
    finally:
        rename("_away", "")


def rename(old: str, new: str) -> None:
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA legacy_alter_table = ON")
        for table in TABLES:
            cursor.execute(f"ALTER TABLE {table}{old} RENAME TO {table}{new}")


def all_locked() -> AbstractContextManager[None]:
    """Lock the tables for ever, as a migration that hangs does."""
    if connection.vendor == "sqlite":
        pytest.skip("SQLite locks nothing but the whole database")
    return locked(*TABLES)


@pytest.mark.parametrize(
    ("trouble", "legacy"),
    [
        (raising, "memory_chunks"),
        (renamed, "memory_chunks"),
        (raising, OldSession.settings),
        (all_locked, OldSession.settings),
    ],
)
def test_legacy_serves_and_takes_over_for_any_state_of_the_tables(
    trouble: Callable[[], AbstractContextManager[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    with trouble():
        started = time.monotonic()
        assert emergency(reason="3 a.m.") is None
        assert time.monotonic() - started < 1
        assert current_plan() == EMERGENCY
        found = load_state("in both")
        assert (texts(found), found.load_info.stale) == (["a"], True)
        with pytest.raises(StorageUnavailable):
            load_state("in tables")
        with pytest.raises(StorageUnavailable):
            append_messages("in tables", messages("x"))
        for call in (
            lambda: list_conversations(None),
            lambda: remove_messages("in both", last=1),
            lambda: append_messages("in both", messages("x"), keys=["1"]),
        ):
            with pytest.raises(StorageUnavailable):
                call()
        found.conversation_history.append(messages("meanwhile")[0])
        assert save_state("in both", found)["stores"] == ["legacy"]
        assert append_messages("in both", messages("and more"))["stores"] == ["legacy"]
        made = create_new_conversation()
        append_messages(made, messages("new"))
        assert texts(load_state(made)) == ["new"]
    assert "could not be recorded" in caplog.text
    assert texts(load_state("in both")) == ["a", "meanwhile", "and more"]
    assert texts(load_state("in tables")) == ["b"]
    resume(reason="repaired")
    assert current_plan() == PLANS[Phase.NEW_ONLY]
    assert texts(load_state("in both")) == ["a", "meanwhile", "and more"]
    assert texts(load_state("in tables")) == ["b"]
    assert texts(load_state(made)) == ["new"]
    list(sync("tables"))
    assert not any(found.mismatched for found in verify())
    assert [one.kind for one in history()][:2] == ["resume", "noticed"]


@pytest.mark.parametrize("legacy", ["memory_chunks", OldSession.settings])
def test_a_strangers_save_never_turns_an_unanswered_load_into_an_empty_state() -> None:
    """Only the tables know whose the conversation is, and they cannot be read."""
    owner, stranger = UserFactory(), UserFactory()
    enter(Phase.NEW_ONLY)
    save_state("ours", state("private"), owner)
    emergency()
    with raising():
        with suppress(StorageUnavailable, ConversationNotFound):
            save_state("ours", state("a stranger's"), stranger)
        for call in (
            lambda: load_state("ours", user_id=owner),
            lambda: get_conversation_timestamp(owner, "ours"),
            lambda: append_messages("ours", messages("more"), user_id=owner),
            lambda: save_state("ours", state("more"), owner),
        ):
            with pytest.raises(StorageUnavailable):
                call()
    assert texts(load_state("ours", user_id=owner)) == ["private"]
    assert texts(load_state("ours", user_id=stranger)) == []
    resume()
    assert texts(load_state("ours", user_id=owner)) == ["private"]


@pytest.mark.parametrize("legacy", ["memory_chunks", OldSession.settings])
def test_a_strangers_save_never_takes_over_a_conversation_without_owner() -> None:
    stranger = UserFactory()
    emergency()
    with raising(), suppress(StorageUnavailable):
        save_state("in tables", state("a stranger's"), stranger)
    assert texts(load_state("in tables", user_id=stranger)) == []
    assert texts(load_state("in tables")) == ["b"]
    resume()
    assert texts(load_state("in tables", user_id=stranger)) == []
    assert texts(load_state("in tables")) == ["b"]


def test_old_codes_tables_refer_to_the_locked_ones_so_a_save_says_that_it_failed() -> None:
    with all_locked():
        emergency()
        started = time.monotonic()
        assert texts(load_state("in both")) == ["a"]
        with pytest.raises(StorageUnavailable):
            save_state("in both", state("b"))
        assert time.monotonic() - started < 10
    assert texts(load_state("in both")) == ["a"]


def test_while_the_tables_can_be_read_everything_is_there() -> None:
    found = emergency(reason="slow", actor="ann")
    assert found is not None
    assert (found.phase, found.emergency, found.last.kind) == (Phase.NEW_ONLY, True, "emergency")
    assert (found.last.reason, found.last.actor) == ("slow", "ann")
    for name, text in (("in both", "a"), ("in tables", "b")):
        loaded = load_state(name)
        assert (texts(loaded), loaded.load_info.stale) == ([text], False)
        assert append_messages(name, messages("more"))["stores"] == ["legacy"]
        assert texts(load_state(name)) == [text, "more"]
    assert [found.conversation_id for found in list_conversations(None)] == ["in tables", "in both"]


def test_the_callers_own_timeout_is_restored() -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one busy timeout for a connection")
    emergency()

    def timeout() -> str:
        with connection.cursor() as cursor:
            cursor.execute("SHOW lock_timeout")
            return str(cursor.fetchone()[0])

    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '7s'")
        append_messages("in both", messages("x"))
        load_state("in both")
        assert timeout() == "7s"


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has one writer at a time")
def test_an_emergency_soon_reports_that_its_switch_is_locked() -> None:
    began = time.monotonic()
    with locked("waffle_switch"), pytest.raises(SwitchesUnreadable):
        emergency()
    assert time.monotonic() - began < 2
    found = emergency()
    assert found is not None
    assert found.emergency


def test_an_emergency_is_resumed_when_the_tables_can_be_written() -> None:
    emergency()
    with failing(lambda sql: "conversation_messages" in sql), pytest.raises(TransitionRefused):
        resume()
    assert status().emergency
    assert resume().emergency is False
    with pytest.raises(TransitionRefused, match="nothing to resume"):
        resume()


def test_in_an_emergency_the_rollout_does_not_go_on_but_may_go_back() -> None:
    enter(Phase.NEW_PRIMARY)
    emergency()
    with pytest.raises(TransitionRefused, match="resume` first"):
        advance()
    rollback()
    assert (status().phase, status().emergency) == (Phase.NEW_READS, True)


def test_without_wafles_table_or_legacy_there_is_no_emergency(settings: Any) -> None:
    with failing(touches_switches), pytest.raises(SwitchesUnreadable):
        emergency()
    settings.CONVERSATIONS = {}
    with pytest.raises(TransitionRefused, match="nothing to go back to"):
        emergency()
