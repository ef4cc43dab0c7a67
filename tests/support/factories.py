"""Users, messages and states for tests."""

from __future__ import annotations

from typing import Any

import factory
from django.contrib.auth import get_user_model

from conversations.state import AgentState


class UserFactory(factory.django.DjangoModelFactory):
    """A user."""

    class Meta:
        model = get_user_model()

    username = factory.Sequence(lambda number: f"user{number}")


def message(text: Any, role: str = "user") -> dict[str, Any]:
    """Return a message."""
    return {"role": role, "content": text}


def messages(*texts: Any) -> list[dict[str, Any]]:
    """Return messages of a user."""
    return [message(text) for text in texts]


def state(*texts: Any, **fields: Any) -> AgentState:
    """Return a state with these messages."""
    return AgentState(conversation_history=messages(*texts), **fields)


def texts(loaded: Any) -> list[Any]:
    """Return the texts of a state's messages."""
    return [entry["content"] for entry in loaded.conversation_history]
