"""Messages of every kind that the bench writes by hand, and their turns."""

from __future__ import annotations

from typing import Any

CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1.0}'}}


MESSAGES: list[Any] = [
    {"role": "user", "content": "hello"},
    {"content": "hello", "role": "user"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "assistant", "tool_calls": [CALL], "content": "I look"},
    {
        "role": "tool",
        "tool_call_id": "1",
        "tool_name": "look",
        "tool_success": True,
        "content": "x",
    },
    {
        "role": "tool",
        "tool_call_id": "1",
        "tool_name": "look",
        "tool_success": False,
        "content": "",
    },
    {"role": "tool", "tool_call_id": "1", "name": "look", "content": "x"},
    {"role": "user", "content": [{"type": "text", "text": "parts"}, {"type": "image"}]},
    {"role": "user", "content": "at", "timestamp": "2026-01-02T03:04:05+00:00", "more": [1, 1.0]},
    {"role": "assistant", "content": "é 🚲", "message_type": "note"},
]


TURNS: tuple[Any, ...] = (tuple(MESSAGES[:2]), tuple(MESSAGES[2:5]), tuple(MESSAGES[5:]))
