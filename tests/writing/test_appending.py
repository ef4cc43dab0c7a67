"""In the dual phases, a save that only adds reads no message, and both stores take all of it."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.test import override_settings
from hypothesis import given, settings, strategies as st

from conversations.models import ConversationMessage, ConversationState
from conversations.reading import shadow
from conversations.rollout.verification import IN_ORDER, verify
from conversations.routing.standing import decide
from conversations.storage import (
    append_messages,
    list_messages,
    load_state,
    remove_messages,
    save_state,
)
from flags.phases import Phase
from flags.switches import forced_phase
from tests.conformance.test_stores import JSON
from tests.storage.test_statements import statements
from tests.support.factories import message, state, texts
from tests.support.scale import examples

pytestmark = pytest.mark.django_db(transaction=True)
LEGACIES: dict[str, Any] = {"chunks": "memory_chunks", "json": JSON}
DUAL = (Phase.DUAL_WRITE, Phase.NEW_READS, Phase.NEW_PRIMARY)


@pytest.fixture(params=LEGACIES)
def legacy(request: pytest.FixtureRequest) -> Any:
    with override_settings(CONVERSATIONS={"LEGACY": LEGACIES[request.param]}):
        yield request.param


def assert_in_both(conversation_id: str, *expected: str) -> None:
    """Assert what a conversation holds, in either store, by its digests and by its data."""
    for phase in (Phase.DUAL_WRITE, Phase.NEW_ONLY):
        with forced_phase(phase):
            assert tuple(texts(load_state(conversation_id))) == expected
    found = decide(conversation_id)
    assert found.legacy is not None
    compared = shadow.compare(conversation_id, found.legacy)
    assert compared is not None
    assert not compared.places
    (verified,) = verify([conversation_id])
    assert set(verified.kinds) <= IN_ORDER


@pytest.mark.parametrize("phase", DUAL)
def test_it_reads_no_message(legacy: str, phase: Phase) -> None:
    with forced_phase(phase):
        save_state("c", state("a", "b", memory_context=[{"content": "i"}]))
        loaded = load_state("c")
        for text in ("c", "d"):
            loaded.conversation_history.append(message(text))
            sent = statements(lambda: save_state("c", loaded))
            assert not [sql for sql in sent if sql.startswith("SELECT") and "_messages" in sql]
        assert_in_both("c", "a", "b", "c", "d")


def test_an_edit_after_an_append_edits_the_given_message(legacy: str) -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("a", "b"))
        loaded = load_state("c")
        loaded.conversation_history.append(message("c"))
        save_state("c", loaded)
        loaded.conversation_history[1] = message("B")
        save_state("c", loaded)
        assert_in_both("c", "a", "B", "c")
    rows = ConversationMessage.rows.filter(superseded_in__isnull=True).order_by("sequence")
    assert list(rows.values_list("sequence", flat=True)) == [1, 2, 3]


def test_after_a_removal_rows_tell_the_place_of_a_message(legacy: str) -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("a", "b", "c"))
        remove_messages("c", 1)
        append_messages("c", [message("d")])
        loaded = load_state("c")
        loaded.conversation_history.append(message("e"))
        save_state("c", loaded)
        del loaded.conversation_history[0]
        save_state("c", loaded)
        assert_in_both("c", "c", "d", "e")
        assert [each.sequence for each in list_messages("c")] == [3, 4, 5]


def test_messages_that_a_load_left_out_stay_in_both_stores(legacy: str) -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("a", "b", "c"))
        loaded = load_state("c", max_messages=1)
        loaded.conversation_history.append(message("d"))
        save_state("c", loaded)
        assert_in_both("c", "a", "b", "c", "d")


def test_messages_that_others_add_meanwhile_stay_in_both_stores(legacy: str) -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("a"))
        loaded = load_state("c")
        append_messages("c", [message("b")])
        loaded.conversation_history.append(message("c"))
        save_state("c", loaded)
        assert_in_both("c", "a", "b", "c")


def test_items_that_were_removed_before_are_told_by_their_rows(legacy: str) -> None:
    items = [{"content": name} for name in "ij"]
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("a", memory_context=items))
        loaded = load_state("c")
        del loaded.memory_context[0]
        save_state("c", loaded)
        loaded = load_state("c")
        loaded.conversation_history.append(message("b"))
        save_state("c", loaded)
        loaded.memory_context[0] = {"content": "k"}
        save_state("c", loaded)
        assert_in_both("c", "a", "b")
        assert load_state("c").memory_context == [{"content": "k"}]
    assert ConversationState.rows.get().context_item_count == 1


STEPS = ("load", "load some", "append", "edit", "drop", "save", "others", "phase")


@pytest.mark.long
@given(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 3)), max_size=14))
@settings(max_examples=examples(150))
def test_any_steps_leave_both_stores_alike(steps: list[tuple[str, int]]) -> None:
    """After any operations between loads and saves, the stores hold the same."""
    name = str(uuid.uuid4())
    with override_settings(CONVERSATIONS={"LEGACY": "memory_chunks"}):
        with forced_phase(Phase.DUAL_WRITE):
            save_state(name, state("a", "b"))
            held = load_state(name)
        phase = Phase.DUAL_WRITE
        for number, (step, place) in enumerate(steps):
            history = held.conversation_history
            with forced_phase(phase):
                if step == "load":
                    held = load_state(name)
                elif step == "load some":
                    held = load_state(name, max_messages=place, whole_turns=False)
                elif step == "append":
                    history.append(message(f"m{number}"))
                elif step == "edit" and history:
                    history[place % len(history)] = message(f"e{number}")
                elif step == "drop" and history:
                    del history[place % len(history)]
                elif step == "save":
                    save_state(name, held)
                elif step == "others":
                    append_messages(name, [message(f"o{number}")])
                elif step == "phase":
                    phase = DUAL[place % len(DUAL)]
        with forced_phase(Phase.DUAL_WRITE):
            save_state(name, held)
            expected = texts(load_state(name))
        assert_in_both(name, *expected)
