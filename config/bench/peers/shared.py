"""What is asked of every store that is measured, and ours as one of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from django.db import connection

from config.bench.playing import add, begun
from config.bench.ways import Way


class Peer(ABC):
    """A store of conversations. Timed are `load` and `save`; what an application does is not.

    `exact`: a load gives back what was put in. `limits` says what the store does not do.
    """

    exact: bool = True
    limits: str = ""

    @property
    @abstractmethod
    def name(self) -> str:
        """Return how the store is called in tables."""

    def taken(self) -> AbstractContextManager[None]:
        """Configure the process for it meanwhile."""
        return nullcontext()

    def plain(self) -> Any:
        """Return the psycopg connection whose statements are counted; None if it has none."""
        return None

    def native(self, messages: Sequence[Any]) -> list[Any]:
        """Return messages as an application that uses this store has them."""
        return list(messages)

    @abstractmethod
    def create(self, key: str, owner: Any, messages: Sequence[Any]) -> None:
        """Create a conversation of native messages."""

    @abstractmethod
    def load(self, key: str, owner: Any) -> Any:
        """Return the conversation, all its messages as Python objects."""

    @abstractmethod
    def added(self, loaded: Any, new: Sequence[Any]) -> Any:
        """Return what a save takes to add native messages to what was loaded."""

    @abstractmethod
    def save(self, key: str, owner: Any, change: Any) -> None:
        """Write what `added` gave."""

    @abstractmethod
    def found(self, loaded: Any) -> list[Any]:
        """Return the messages of what was loaded as they were put in; if not exact, their texts."""


@dataclass(frozen=True, slots=True)
class Ours(Peer):
    """One of the bench's own ways: the public API, or the floor."""

    way: Way

    @property
    def name(self) -> str:
        return self.way.name

    def taken(self) -> AbstractContextManager[None]:
        return self.way.taken()

    def plain(self) -> Any:
        return self.way.plain()

    def create(self, key: str, owner: Any, messages: Sequence[Any]) -> None:
        self.way.create(key, owner, begun(messages))

    def load(self, key: str, owner: Any) -> Any:
        return self.way.load(key, owner)

    def added(self, loaded: Any, new: Sequence[Any]) -> Any:
        state, held = loaded
        add(state, new, state.step_count + 1)
        return state, new, held

    def save(self, key: str, owner: Any, change: Any) -> None:
        self.way.save(key, owner, *change)

    def found(self, loaded: Any) -> list[Any]:
        state, _ = loaded
        messages: list[Any] = state.conversation_history
        return messages


def texts_of(content: Any) -> list[str]:
    """Return the texts in the content of a message: itself, or those of its parts."""
    parts = content if isinstance(content, list) else [content]
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return [text for text in texts if isinstance(text, str)]


def said(message: Any) -> str:
    """Return all text of a message as it was put in; "" where it has none."""
    return "".join(texts_of(message.get("content"))) if isinstance(message, dict) else ""


def parameters() -> dict[str, Any]:
    """Return psycopg's parameters of Django's connection, which Django's own are left out of."""
    found = connection.get_connection_params()
    for ours in ("cursor_factory", "context", "prepare_threshold"):
        found.pop(ours, None)
    return found
