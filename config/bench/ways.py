"""The ways that are measured: the public API as hosts configure it, old code, and the floor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from django.db import connection
from django.test import override_settings

from config.bench.floors import Floor, Held, bare_floor, floor_here, prepared
from config.demo.oldcode import old_load, old_save
from conversations import conf
from conversations.state import AgentState
from conversations.storage import append_messages, load_state, save_state
from conversations.stores.registry import legacy_store
from flags.conf import read_breaker
from flags.phases import Phase, switches_for
from flags.switches import forced_phase

FRESH, MIGRATED, FLOOR, BARE, OLD = "tables", "tables, migrated", "floor", "bare floor", "old code"
# What a hand-written program could do where it may not prepare statements either.
PLAIN_FLOOR = "floor, unprepared"
# A team that starts fresh, and one whose legacy store is asked whether old code wrote to it.
FRESH_SETTINGS: Mapping[str, Any] = {}
MIGRATED_SETTINGS: Mapping[str, Any] = {
    "LEGACY": "memory_chunks",
    "SWITCHES": switches_for(Phase.NEW_ONLY),
}


class Way(Protocol):
    """One way to keep conversations. What `load` gives besides the state goes into the writes."""

    @property
    def name(self) -> str:
        """Return how the way is called in tables."""

    def taken(self) -> AbstractContextManager[None]:
        """Configure the process for it meanwhile; nothing of that is measured."""

    def plain(self) -> Any:
        """Return the DB-API connection whose statements are counted."""

    def create(self, conversation_id: str, owner: Any, state: AgentState) -> None:
        """Create a conversation."""

    def load(self, conversation_id: str, owner: Any) -> tuple[AgentState, Any]:
        """Return the state, and what a write has to know of it."""

    def save(
        self, conversation_id: str, owner: Any, state: AgentState, new: Sequence[Any], held: Any
    ) -> None:
        """Save the state, to which the messages `new` were added behind."""

    def append(self, conversation_id: str, owner: Any, new: Sequence[Any], held: Any) -> None:
        """Add messages."""


def _read_settings() -> None:
    """Read the settings, as a process does once: they have just changed."""
    for read in (conf.alias, conf.replica, conf.require_owner, conf.state_class, read_breaker):
        read()
    for name in ("PREPARE_STATEMENTS", "MAX_DEPTH", "MAX_MESSAGE_BYTES", "MAX_STATE_BYTES"):
        conf.get(name)
    legacy_store()


@dataclass(frozen=True, slots=True)
class Api:
    """`save_state`, `load_state` and `append_messages`; of the switches' phase if none is named."""

    name: str
    settings: Mapping[str, Any]
    phase: Phase | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(override_settings(CONVERSATIONS=dict(self.settings)))
            if self.phase is not None:
                stack.enter_context(forced_phase(self.phase))
            _read_settings()
            yield

    def plain(self) -> Any:
        return connection.connection

    def create(self, conversation_id: str, owner: Any, state: AgentState) -> None:
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
class OldCode:
    """The code being replaced; to add messages, it loads and saves everything."""

    name: str = OLD

    @contextmanager
    def taken(self) -> Iterator[None]:
        yield

    def plain(self) -> Any:
        return connection.connection

    def create(self, conversation_id: str, owner: Any, state: AgentState) -> None:
        old_save(conversation_id, state, owner)

    def load(self, conversation_id: str, owner: Any) -> tuple[AgentState, Any]:
        return old_load(conversation_id), None

    def save(
        self, conversation_id: str, owner: Any, state: AgentState, new: Sequence[Any], held: Any
    ) -> None:
        old_save(conversation_id, state, owner)

    def append(self, conversation_id: str, owner: Any, new: Sequence[Any], held: Any) -> None:
        state = old_load(conversation_id)
        state.conversation_history += new
        old_save(conversation_id, state, owner)


@dataclass(frozen=True, slots=True)
class Bottom:
    """The floor, on Django's connection or on one of its own."""

    name: str
    floor: Floor = field(repr=False)
    prepare: bool = True

    @contextmanager
    def taken(self) -> Iterator[None]:
        with prepared(wanted=self.prepare):
            yield

    def plain(self) -> Any:
        return self.floor.connect()

    def create(self, conversation_id: str, owner: Any, state: AgentState) -> None:
        with override_settings(CONVERSATIONS=dict(FRESH_SETTINGS)):
            save_state(conversation_id, state, owner)

    def load(self, conversation_id: str, owner: Any) -> tuple[AgentState, Held]:
        return self.floor.load(conversation_id, owner)

    def save(
        self, conversation_id: str, owner: Any, state: AgentState, new: Sequence[Any], held: Held
    ) -> None:
        self.floor.save(conversation_id, owner, state, list(new), held)

    def append(self, conversation_id: str, owner: Any, new: Sequence[Any], held: Held) -> None:
        self.floor.append(conversation_id, owner, list(new), held)


@contextmanager
def ways(*, prepare: bool) -> Iterator[list[Way]]:
    """Give the ways that are measured against each other; `prepare` is for the public API."""
    host = {"PREPARE_STATEMENTS": prepare}
    # SQLite's module keeps every statement prepared.
    plain = connection.vendor == "postgresql" and not prepare
    with bare_floor() as bare:
        yield [
            Api(FRESH, {**FRESH_SETTINGS, **host}),
            Api(MIGRATED, {**MIGRATED_SETTINGS, **host}),
            Bottom(FLOOR, floor_here()),
            *([Bottom(PLAIN_FLOOR, floor_here(), prepare=False)] if plain else []),
            Bottom(BARE, bare),
            OldCode(),
        ]
