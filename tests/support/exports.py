"""Conversations as lines and files: made, exported and imported."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from conversations import storage
from conversations.formats import ImportOutcome, import_lines, import_records, read_records
from conversations.models import ConversationState, ConversationTombstone
from conversations.state import AgentState
from memory.models import MemoryChunk

AWKWARD: list[Any] = [
    {"role": "user", "content": "NUL \x00 and \\u0000 and \\ and 😀 and a lone \ud800"},
    {"content": "keys in another order", "role": "assistant", "unknown": {"b": 1, "a": 1.0}},
    {"role": "user", "content": [{"type": "text", "text": "parts"}, {"type": "image", "n": -0.0}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "arguments": '{"a" : 1}'}]},
    {"role": "tool", "tool_call_id": "c", "name": "sum", "content": "", "tool_success": False},
    "not a mapping",
    17,
    None,
    [],
    {"": {}, "1e22": 1e22, "whole": 10**22, "inf": float("inf"), "minus": float("-inf")},
    {"nan": float("nan"), "one": 1, "1.0": 1.0, "true": True, "-0.0": -0.0},
    {"role": "user", "content": "dated", "timestamp": "2020-01-01T00:00:00"},
]


def awkward_state() -> AgentState:
    return AgentState(
        user_input="in\x00put \udc00",
        memory_context=[
            {"content": "an item", "relevance_score": 1.0, "z": 1, "a": 2},
            {"relevance_score": -0.0, "content": "b"},
            "text",
            None,
        ],
        history=[{"step": 1}, [float("nan")]],
        step_count=2**70,
        focus=["b", "a", 1.0],
        conversation_history=list(AWKWARD),
        last_tool_result={"b": 1e22, "a": [1, 1.0, True]},
        extra={"config": {"y": 1, "x": -0.0}, "timestamp": "\ud83d"},
    )


def save(conversation_id: str, *contents: str, user: Any = None) -> None:
    history = [{"role": "user", "content": content} for content in contents]
    storage.save_state(conversation_id, AgentState(conversation_history=history), user)


def emptied() -> None:
    """Make the database as empty as a new one; its users stay."""
    ConversationState.rows.all().delete()
    ConversationTombstone.rows.all().delete()
    MemoryChunk.objects.all().delete()


def imported(lines: Iterable[str], **options: Any) -> list[ImportOutcome]:
    return list(import_lines(lines, **options))


def results(lines: Iterable[str], **options: Any) -> list[tuple[str, str]]:
    return [(outcome.result.value, outcome.reason) for outcome in import_lines(lines, **options)]


def line_of(**changes: Any) -> str:
    data = {
        "format": 1,
        "conversation_id": "c",
        "user": None,
        "forked_from": None,
        "created_at": "2026-01-01T00:00:00+00:00",
        "updated_at": "2026-01-02T00:00:00.000001+00:00",
        "state": AgentState(conversation_history=["a", "b"]).to_dict(),
        "messages": [[1, None], [4, "key"]],
    }
    return json.dumps({name: value for name, value in (data | changes).items() if value != ...})


def contents(conversation_id: str) -> list[Any]:
    return [
        message["content"] if isinstance(message, dict) else message
        for message in storage.load_state(conversation_id).conversation_history
    ]


def chats(tmp_path: Path, *lines: Any, **options: Any) -> list[tuple[str | None, str, str]]:
    with written(tmp_path / "chats", *lines).open("rb") as stream:
        records = read_records(stream)
        return [
            (outcome.conversation_id, outcome.result.value, outcome.reason)
            for outcome in import_records(records, **options)
        ]


def written(path: Path, *lines: Any, zipped: bool = False) -> Path:
    text = "".join(
        (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n"
        for line in lines
    )
    data = text.encode("utf-8")
    path.write_bytes(gzip.compress(data) if zipped else data)
    return path


MESSAGES = [
    {"role": "system", "content": "é"},
    {"content": None, "role": "assistant", "tool_calls": [{"id": "1"}], "x": 1.0},
]
