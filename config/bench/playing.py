"""Steps that several workloads take: a turn added to a state, a write taken back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django.db import connection

from config.bench.counting import counted
from config.bench.results import Results
from config.bench.ways import Way
from conversations.state import AgentState

Cost = dict[str, int]


def add(state: AgentState, turn: Sequence[Any], step: int) -> None:
    """Change a loaded state as an assistant does in a turn."""
    state.conversation_history = [*state.conversation_history, *turn]
    state.step_count = step
    state.user_input = f"what was said in turn {step}"
    state.last_tool_result = {"turn": step, "ok": True}


def begun(messages: Sequence[Any]) -> AgentState:
    """Return the state of a conversation after its first turn."""
    state = AgentState(focus=["bench"])
    add(state, messages, 1)
    return state


_ROW = (
    *("user_input", "focus_areas", "step_count", "last_tool_result", "extra"),
    *("revision", "next_sequence", "message_count", "messages_digest", "state_digest"),
)


@contextmanager
def undone(conversation_id: str) -> Iterator[None]:
    """Take back what is added meanwhile, so that the conversation stays as long as it was."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT id, {', '.join(_ROW)} FROM conversation_states WHERE conversation_id = %s",
            [conversation_id],
        )
        row = cursor.fetchone()
        cursor.execute("SELECT coalesce(max(id), 0) FROM memory_chunks")
        (chunk,) = cursor.fetchone()
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            if row is not None:
                _restore(cursor, *row)
            cursor.execute("DELETE FROM memory_metadata WHERE chunk_id > %s", [chunk])
            cursor.execute("DELETE FROM memory_chunks WHERE id > %s", [chunk])


def _restore(cursor: Any, pk: int, *values: Any) -> None:
    cursor.execute(
        "DELETE FROM conversation_messages WHERE conversation_id = %s AND sequence >= %s",
        [pk, values[_ROW.index("next_sequence")]],
    )
    sets = ", ".join(f"{name} = %s" for name in _ROW)
    cursor.execute(f"UPDATE conversation_states SET {sets} WHERE id = %s", [*values, pk])


def costs_of(way: Way, conversation_id: str, turn: Sequence[Any], *, owner: Any) -> dict[str, Cost]:
    """Return what a load, a save and an append of one turn cost the database."""
    costs = {}
    with way.taken():
        # Twice: the first time is when statements are prepared.
        for _ in range(2):
            with counted(way.plain()) as costs["load"]:
                state, held = way.load(conversation_id, owner)
            add(state, turn, state.step_count + 1)
            with undone(conversation_id), counted(way.plain()) as costs["save"]:
                way.save(conversation_id, owner, state, turn, held)
            _, held = way.load(conversation_id, owner)
            with undone(conversation_id), counted(way.plain()) as costs["append"]:
                way.append(conversation_id, owner, turn, held)
    return costs


def check(
    results: Results,
    way: Way,
    conversation_id: str,
    messages: Sequence[Any],
    *,
    owner: Any,
    ordered: bool = True,
) -> None:
    """Note it as a problem when a conversation does not load as it was put in.

    Not `ordered`: the order of keys is left aside, which a JSON column does not keep.
    """
    with way.taken():
        state, _ = way.load(conversation_id, owner)
    found = json.dumps(state.conversation_history, sort_keys=not ordered)
    if found != json.dumps(messages, sort_keys=not ordered):
        results.problems.append(f"{conversation_id} does not load as put in by {way.name}")
