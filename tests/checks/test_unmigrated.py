"""A table or a column that is missing: everything that meets it says to run `migrate`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client

from conversations.exceptions import StorageUnavailable
from conversations.rollout.sync import sync
from conversations.storage import append_messages, conversation_exists, load_state, save_state
from flags.exceptions import SwitchesUnreadable
from flags.health import report
from flags.phases import Phase
from flags.schema import MIGRATE
from flags.switches import current_plan, forced_phase, snapshot
from flags.transitions import emergency, status
from tests.api import unasked
from tests.faults.injection import failing, mentions_tables
from tests.support.factories import UserFactory, messages, state

pytestmark = pytest.mark.django_db
SETTINGS = {"LEGACY": "memory_chunks"}


@pytest.fixture(autouse=True)
def _chunks(settings: Any) -> None:
    settings.CONVERSATIONS = SETTINGS


def without(table: str, column: str = "") -> None:
    """Take a table, or a column of it, away until the test's transaction is rolled back."""
    what = f"RENAME COLUMN {column} TO gone" if column else f"RENAME TO {table}_gone"
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} {what}")


@pytest.fixture(params=["", "conversation_id"], ids=["table", "column"])
def no_states(request: pytest.FixtureRequest) -> None:
    """Let the table of conversations be missing, or a column of it, as after an upgrade."""
    without("conversation_states", request.param)


# The public API


@pytest.mark.parametrize("call", unasked().values(), ids=unasked())
def test_every_call_says_migrate(new_only: None, no_states: None, call: Callable[[], Any]) -> None:
    UserFactory(pk=1)
    with pytest.raises(StorageUnavailable, match=MIGRATE):
        call()


def test_a_load_says_migrate_in_every_phase(phase: Phase, no_states: None) -> None:
    for call in (load_state, conversation_exists):
        with pytest.raises(StorageUnavailable, match=MIGRATE):
            call("c")


def test_a_missing_legacy_table_is_told_in_every_phase(phase: Phase) -> None:
    with forced_phase(Phase.LEGACY):
        save_state("c", state("a"))
    without("memory_chunks")
    for call in (
        lambda: load_state("missing"),
        lambda: conversation_exists("missing"),
        lambda: append_messages("c", messages("b")),
        lambda: save_state("missing", state("b")),
    ):
        with pytest.raises(StorageUnavailable, match=MIGRATE):
            call()


def test_a_write_in_an_unmigrated_store_is_in_legacy_and_the_log_says_migrate(
    no_states: None, caplog: pytest.LogCaptureFixture
) -> None:
    with forced_phase(Phase.DUAL_WRITE), caplog.at_level(logging.WARNING, "conversations"):
        assert save_state("c", state("a"))["stores"] == ["legacy"]
    assert MIGRATE in caplog.text


def test_other_trouble_does_not_say_migrate(new_only: None) -> None:
    save_state("c", state("a"))
    with failing(mentions_tables), pytest.raises(StorageUnavailable) as refused:
        load_state("c")
    assert MIGRATE not in str(refused.value)


def test_a_sync_says_migrate_of_each_conversation(new_only: None, no_states: None) -> None:
    (done,) = sync("tables", ["c"])
    assert MIGRATE in done.reason


# The switches


def test_the_log_of_the_switches_says_migrate(caplog: pytest.LogCaptureFixture) -> None:
    without("waffle_switch")
    snapshot.forget()
    with caplog.at_level(logging.WARNING, "flags"):
        assert current_plan().phase == Phase.LEGACY
    assert MIGRATE in caplog.text


def test_the_log_of_the_retirement_says_migrate(caplog: pytest.LogCaptureFixture) -> None:
    without("rollout_transitions")
    snapshot.forget()
    with caplog.at_level(logging.WARNING, "flags"):
        current_plan()
    assert MIGRATE in caplog.text


def test_the_rollout_says_migrate_where_the_switches_are_missing() -> None:
    without("waffle_switch")
    with pytest.raises(SwitchesUnreadable, match=MIGRATE):
        status()


@pytest.mark.django_db(transaction=True)
def test_an_emergency_says_migrate_where_the_switches_are_missing() -> None:
    without("waffle_switch")
    try:
        with pytest.raises(SwitchesUnreadable, match=MIGRATE):
            emergency()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE waffle_switch_gone RENAME TO waffle_switch")


# Commands, health and the admin


@pytest.mark.parametrize(
    ("table", "command"),
    [
        ("sync_runs", ["conversations", "runs"]),
        ("conversation_states", ["conversations", "verify"]),
        ("conversation_messages", ["conversations", "prune"]),
        ("conversation_conflicts", ["conversations", "findings"]),
        ("rollout_transitions", ["rollout", "status"]),
        ("waffle_switch", ["rollout", "status"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[1],
)
def test_a_command_says_migrate(table: str, command: list[str]) -> None:
    without(table)
    with pytest.raises(CommandError, match=MIGRATE):
        call_command(*command)


def test_health_says_migrate(no_states: None) -> None:
    (found,) = [reason for reason in report().reasons if reason.slug == "not_migrated"]
    assert MIGRATE in found.message
    assert found.level == "warning"


def test_health_of_migrated_tables_does_not_say_migrate() -> None:
    assert not [reason for reason in report().reasons if reason.slug == "not_migrated"]


@pytest.fixture
def staff() -> Iterator[Client]:
    client = Client()
    client.force_login(UserFactory(is_staff=True, is_superuser=True))
    return client


@pytest.mark.parametrize(
    ("table", "column", "path"),
    [
        ("conversation_states", "", "conversations/conversationstate/"),
        ("conversation_states", "step_count", "conversations/conversationstate/"),
        ("conversation_states", "", "conversations/conversationstate/1/change/"),
        ("conversation_states", "", "conversations/conversationstate/legacy/"),
        ("memory_context_items", "source", "memory/memorycontextitem/"),
        ("conversation_conflicts", "", "conversations/conversationconflict/"),
        ("rollout_transitions", "canary", "flags/transition/"),
        ("rollout_transitions", "", "flags/transition/1/change/"),
    ],
)
def test_a_page_of_the_admin_says_migrate(
    staff: Client, table: str, column: str, path: str
) -> None:
    for phase in (Phase.LEGACY, Phase.NEW_ONLY):
        with forced_phase(phase):
            save_state(phase.label, state("a", memory_context=[{"content": "x"}]))
    status()
    without(table, column)
    found = staff.get(f"/admin/{path}")
    assert found.status_code == 503
    assert "manage.py migrate" in found.content.decode()
