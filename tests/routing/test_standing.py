"""An operation decides once, and one module finds where a conversation stands."""

from __future__ import annotations

import ast
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from waffle import get_waffle_switch_model

from conversations import aio
from conversations.exceptions import ConversationStoreError
from conversations.models import ConversationTombstone
from conversations.storage import (
    delete_conversation,
    fork_conversation,
    redact_message,
    replace_message,
    save_state,
)
from flags import reporter
from flags.phases import Phase, switches_for
from flags.switches import Snapshot, snapshot
from tests.api import unasked
from tests.support.factories import UserFactory, message, state

ROOT = Path(__file__).resolve().parents[2]
STANDING = "conversations/routing/standing.py"


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note each look at the switches."""
    found: list[int] = []
    settings = Snapshot.settings

    def noted(self: Snapshot) -> Any:
        found.append(1)
        return settings(self)

    monkeypatch.setattr(Snapshot, "settings", noted)
    # Its thread looks, too.
    monkeypatch.setattr(reporter, "ensure", lambda: None)
    return found


def spell(phase: Phase, **others: bool) -> None:
    """Set the switches of a phase in the database, as an operator does."""
    for name, on in {**switches_for(phase), **others}.items():
        get_waffle_switch_model().objects.update_or_create(name=name, defaults={"active": on})
    snapshot.clear()


@pytest.mark.django_db
@pytest.mark.parametrize("call", unasked().values(), ids=unasked())
@pytest.mark.parametrize("legacy", ["memory_chunks", None])
def test_a_public_function_looks_at_the_switches_once(
    looks: list[int], settings: Any, legacy: str | None, call: Callable[[], Any]
) -> None:
    UserFactory.create(pk=1)
    settings.CONVERSATIONS = {"SHADOW_SHARE": 1.0, "REQUIRE_OWNER": False}
    if legacy:
        settings.CONVERSATIONS |= {"LEGACY": legacy}
    for emergency in (False, True):
        for phase in Phase:
            spell(phase, performance_monitoring=True, emergency_rollback=emergency)
            save_state("c", state("a", "b"))
            replace_message("c", 1, message("c"))
            looks.clear()
            with suppress(ConversationStoreError):
                call()
            assert len(looks) == 1, (phase, emergency)
            delete_conversation("c")
            ConversationTombstone.rows.all().delete()


@pytest.mark.django_db(transaction=True)
def test_a_coroutine_looks_at_the_switches_once(looks: list[int]) -> None:
    spell(Phase.DUAL_WRITE)
    async_to_sync(aio.save_state)("c", state("a"))
    assert len(looks) == 1
    async_to_sync(aio.load_state)("c")
    assert len(looks) == 2


@pytest.mark.django_db
@pytest.mark.parametrize("phase", Phase)
def test_forks_follow_the_decision_of_their_redaction(looks: list[int], phase: Phase) -> None:
    spell(phase)
    save_state("c", state("a"))
    for _ in range(2):
        fork_conversation("c")
    looks.clear()
    assert redact_message("c", 1) == 3
    assert len(looks) == 1


@cache
def imports() -> list[tuple[str, ast.ImportFrom]]:
    """Return what the modules of `conversations` import from others, each with its path."""
    return [
        (path.relative_to(ROOT).as_posix(), node)
        for path in sorted((ROOT / "conversations").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom)
    ]


def importers(module: str, name: str) -> list[str]:
    """Return the modules of `conversations` that import a name, by path."""
    return [
        path
        for path, node in imports()
        if node.module == module and name in [each.name for each in node.names]
    ]


def test_one_module_finds_where_the_truth_is() -> None:
    assert importers("conversations.routing.truth", "verdict") == [STANDING]


def test_one_module_looks_at_the_switches() -> None:
    assert importers("flags.switches", "look") == [STANDING]
    for name in ("current_plan", "snapshot", "try_read_settings", "Snapshot"):
        assert importers("flags.switches", name) == []
    assert importers("flags", "switches") == []
