"""The hosts' functions between their own JSON and `AgentState.to_dict()`."""

from __future__ import annotations

from typing import Any


def chat_to_state(data: dict[str, Any]) -> dict[str, Any]:
    """{"messages": [...], ...} -> the state."""
    return {"conversation_history": data.get("messages", []), **data.get("rest", {})}


def chat_from_state(state: dict[str, Any]) -> dict[str, Any]:
    """The state -> {"messages": [...]}, with what else was set as "rest"."""
    rest = {name: value for name, value in state.items() if name != "conversation_history"}
    return {"messages": state["conversation_history"], **({"rest": rest} if _says(rest) else {})}


def history_to_state(data: Any) -> dict[str, Any]:
    """[message, ...] -> the state; the whole state where a list could not hold it."""
    return {"conversation_history": data} if isinstance(data, list) else dict(data)


def history_from_state(state: dict[str, Any]) -> Any:
    """The state -> its messages, where it has nothing else."""
    rest = {name: value for name, value in state.items() if name != "conversation_history"}
    return state if _says(rest) else state["conversation_history"]


def _says(rest: dict[str, Any]) -> bool:
    return any(value not in ("", 0, None, []) for value in rest.values())
