"""Any JSON-representable state comes back from the tables exactly as from the legacy store."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from conversations.state import AgentState
from conversations.storage import load_state, save_state
from flags.phases import Phase
from flags.switches import forced_phase
from tests.support.scale import examples
from tests.support.strategies import states

# A tenth of the states goes through every phase; all go through the two that decide.
BOTH_ENDS = (Phase.LEGACY, Phase.NEW_ONLY)


def canonical(state: AgentState) -> str:
    """Return what the legacy blob makes of a state: the yardstick."""
    return json.dumps(json.loads(json.dumps(state.to_dict())))


def loaded(phase: Phase, state: AgentState) -> str:
    conversation_id = str(uuid.uuid4())
    with forced_phase(phase):
        save_state(conversation_id, state)
        return json.dumps(load_state(conversation_id).to_dict())


@pytest.mark.long
@pytest.mark.django_db
@pytest.mark.parametrize("end", BOTH_ENDS, ids=lambda phase: phase.label)
@given(state=states())
@settings(max_examples=examples(2000))
def test_a_state_comes_back_as_the_same_json_text(end: Phase, state: AgentState) -> None:
    assert loaded(end, state) == canonical(state)


@pytest.mark.long
@pytest.mark.django_db
@given(state=states())
@settings(max_examples=examples(100))
def test_a_conversation_carried_to_the_tables_is_the_same_json_text(state: AgentState) -> None:
    conversation_id = str(uuid.uuid4())
    with forced_phase(Phase.LEGACY):
        save_state(conversation_id, state)
    for phase in (*Phase, *reversed(Phase)):
        with forced_phase(phase):
            held = load_state(conversation_id)
            assert json.dumps(held.to_dict()) == canonical(state)
            save_state(conversation_id, held)


def everywhere(text: str) -> AgentState:
    """Return a state with a text in every place that takes one."""
    called = {"id": text, "type": "function", "function": {"name": text, "arguments": text}}
    spoken = {
        "role": text,
        "content": text,
        "message_type": text,
        "tool_name": text,
        "tool_call_id": text,
        "tool_calls": [called],
        text: text,
    }
    item = {
        "content": text,
        "source": text,
        "context_type": text,
        "role": text,
        "focus_area": text,
        "preference_type": text,
    }
    parts = {"role": "user", "content": [{"type": "text", "text": text}, text]}
    return AgentState(
        user_input=text,
        memory_context=[item, text],
        history=[text, {text: text}],
        focus=[text],
        conversation_history=[spoken, parts, text],
        last_tool_result={text: text},
        extra={f"x{text}": text},
    )


@pytest.mark.long
@pytest.mark.django_db
def test_naughty_strings_survive_in_every_place(shared_data: Path) -> None:
    strings: list[str] = json.loads((shared_data / "naughty_strings.json").read_text("utf-8"))
    assert len(strings) > 100
    for text in strings:
        state = everywhere(text)
        assert loaded(Phase.NEW_ONLY, state) == canonical(state), repr(text)


@pytest.mark.django_db
@pytest.mark.parametrize("phase", Phase)
def test_ten_megabytes_in_one_message_survive(phase: Phase) -> None:
    content = "0123456789abcdef" * (10 * 2**20 // 16)
    state = AgentState(conversation_history=[{"role": "user", "content": content}])
    assert loaded(phase, state) == canonical(state)


@pytest.mark.django_db
def test_tool_arguments_are_kept_as_the_string_they_are() -> None:
    arguments = '{"b":1.0,  "a": [1e22, -0.0]}'
    call: dict[str, Any] = {
        "id": "1",
        "type": "function",
        "function": {"name": "f", "arguments": arguments},
    }
    state = AgentState(conversation_history=[{"role": "assistant", "tool_calls": [call]}])
    with forced_phase(Phase.NEW_ONLY):
        save_state("c", state)
        (found,) = load_state("c").conversation_history
    assert found["tool_calls"][0]["function"]["arguments"] == arguments
