"""The ways that are measured: the public API as hosts configure it, and the floor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from django.db import connection
from django.test import override_settings

from config.bench.floors import Floor, Held, bare_floor, floor_here, prepared
from conversations.state import AgentState
from conversations.storage import append_messages, load_state, save_state
from flags.phases import Phase, switches_for

FRESH, MIGRATED, FLOOR, BARE = "tables", "tables, migrated", "floor", "bare floor"
# A team that starts fresh, and one whose legacy store is asked whether old code wrote to it.
SETTINGS = {
    FRESH: {},
    MIGRATED: {"LEGACY": "memory_chunks", "SWITCHES": switches_for(Phase.NEW_ONLY)},
}


class Way(Protocol):
    """One way to keep conversations. What `load` gives besides the state goes into `save`."""

    name: str

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Configure the process for it; nothing of that is measured."""

    def create(self, conversation_id: str, owner: Any, state: AgentState) -> Any:
        """Create a conversation. Returns: what `append` has to know of it."""

    def load(self, conversation_id: str, owner: Any) -> tuple[AgentState, Any]:
        """Return the state, and what `save` has to know of it."""

    def save(
        self, conversation_id: str, owner: Any, state: AgentState, new: Sequence[Any], held: Any
    ) -> None:
        """Save the state, to which the messages `new` were added behind."""

    def append(self, conversation_id: str, owner: Any, new: Sequence[Any], held: Any) -> None:
        """Add messages."""


@dataclass(frozen=True, slots=True)
class Api:
    """`save_state`, `load_state` and `append_messages`, in phase new_only."""

    name: str

    @contextmanager
    def taken(self) -> Iterator[None]:
        with override_settings(CONVERSATIONS=SETTINGS[self.name]):
            yield

    def plain(self) -> Any:
        """Return the connection whose statements are counted."""
        return connection.connection

    def create(self, conversation_id: str, owner: Any, state: AgentState) -> Any:
        save_state(conversation_id, state, owner)

    def load(self, conversation_id: str, owner: Any) -> tuple[AgentState, Any]:
        return load_state(conversation_id, user_id=owner), None

    def save(
        self, conversation_id: str, owner: Any, state: AgentState, new: Sequence[Any], held: Any
    ) -> None:
        save_state(conversation_id, state, owner)

    def append(self, conversation_id: str, owner: Any, new: Sequence[Any], held: Any) -> None:
        append_messages(conversation_id, new, user_id=owner)


@dataclass(frozen=True, slots=True)
class Bottom:
    """The floor, on Django's connection or on one of its own."""

    name: str
    floor: Floor
    own: bool = field(default=False)

    @contextmanager
    def taken(self) -> Iterator[None]:
        with prepared():
            yield

    def plain(self) -> Any:
        """Return the connection whose statements are counted."""
        return self.floor.connect()

    def create(self, conversation_id: str, owner: Any, state: AgentState) -> Held:
        with override_settings(CONVERSATIONS=SETTINGS[FRESH]):
            save_state(conversation_id, state, owner)
        return self.floor.load(conversation_id, owner)[1]

    def load(self, conversation_id: str, owner: Any) -> tuple[AgentState, Held]:
        return self.floor.load(conversation_id, owner)

    def save(
        self, conversation_id: str, owner: Any, state: AgentState, new: Sequence[Any], held: Held
    ) -> None:
        self.floor.save(conversation_id, owner, state, list(new), held)

    def append(self, conversation_id: str, owner: Any, new: Sequence[Any], held: Held) -> None:
        self.floor.append(conversation_id, owner, list(new), held)


@contextmanager
def ways() -> Iterator[list[Api | Bottom]]:
    """Give the ways whose conversations live in the tables."""
    with ExitStack() as stack:
        bare = stack.enter_context(bare_floor())
        yield [
            Api(FRESH),
            Api(MIGRATED),
            Bottom(FLOOR, floor_here()),
            Bottom(BARE, bare, own=True),
        ]
