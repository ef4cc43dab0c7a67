"""How many functions of ours a save and a load call: a bound on their work that no clock moves."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conversations.storage import load_state, save_state
from conversations.stores.sql.prepared import ASKED_AFTER
from flags.phases import Phase
from flags.switches import forced_phase
from tests.support.factories import message, state

pytestmark = pytest.mark.django_db(transaction=True)
ROOT = Path(__file__).resolve().parents[2]
APPS = tuple(str(ROOT / app) for app in ("conversations", "memory", "flags"))


def calls(act: Callable[[], Any]) -> Counter[tuple[str, str]]:
    """Return how often each function of ours was called, by path and name.

    Comprehensions and lambdas are parts of the function that holds them.
    """
    found: Counter[tuple[str, str]] = Counter()

    def note(frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(APPS) and code.co_name[0] != "<":
            found[code.co_filename.removeprefix(f"{ROOT}/"), code.co_qualname] += 1

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return found


def warm() -> None:
    """Let each statement be made once: a process keeps its text."""
    save_state("warm", state("a"))
    loaded = load_state("warm")
    # A connection is asked what it carries after a few statements.
    for _ in range(ASKED_AFTER):
        loaded.conversation_history.append(message("b"))
        save_state("warm", loaded)
        loaded = load_state("warm")


def rooms(found: Counter[tuple[str, str]]) -> set[str]:
    """Return the parts of `conversations`, by the names on its top level."""
    return {
        path.split("/")[1].removesuffix(".py")
        for path, _ in found
        if path.startswith("conversations/")
    }


@pytest.mark.parametrize("length", [2, 300])
@pytest.mark.parametrize(
    ("phase", "most", "most_rooms"), [(Phase.NEW_ONLY, 80, 7), (Phase.DUAL_WRITE, 150, 9)]
)
def test_a_save_that_appends_one_message(
    phase: Phase, most: int, most_rooms: int, length: int
) -> None:
    with forced_phase(phase):
        warm()
        save_state("c", state(*map(str, range(length))))
        loaded = load_state("c")
        for number in range(2):
            loaded.conversation_history.append(message(f"new {number}"))
            found = calls(lambda: save_state("c", loaded))
            assert found.total() <= most, found.most_common()
            assert len(rooms(found)) <= most_rooms
        assert len(load_state("c").conversation_history) == length + 2


# A hundred messages are decoded at once; each hundred more takes three calls.
@pytest.mark.parametrize("length", [2, 90])
def test_a_load(new_only: None, length: int) -> None:
    warm()
    save_state("c", state(*map(str, range(length))))
    found = calls(lambda: load_state("c"))
    assert found.total() <= 50, found.most_common()
    assert len(rooms(found)) <= 7
