"""What is measured: the public API as hosts configure it, old code, and the baseline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from django.db import connection
from django.test import override_settings

from benchmarks.baseline import Baseline, bare_baseline, baseline_here, prepared
from config.demo.oldcode import old_load, old_save
from conversations import conf
from conversations.state import AgentState
from conversations.storage import append_messages, load_state, save_state
from conversations.stores.registry import configured_store
from flags.conf import read_breaker
from flags.phases import Phase, switches_for
from flags.switches import forced_phase

FRESH, MIGRATED, FLOOR, BARE, OLD = "tables", "tables, migrated", "floor", "bare floor", "old code"
# What a hand-written program could do where it may not prepare statements either.
PLAIN_FLOOR = "floor, unprepared"
# A team that starts fresh, and one whose legacy store is asked whether old code wrote to it.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    FRESH: {},
    MIGRATED: {"LEGACY": "memory_chunks", "SWITCHES": switches_for(Phase.NEW_ONLY)},
}


class Contender(ABC):
    """A store of conversations. Timed are `load`, `save` and `append`, and nothing else.

    `exact`: a load gives back what was put in; `ordered`: with the order of keys.
    """

    name: str
    exact = True
    ordered = True

    def configured(self) -> AbstractContextManager[None]:
        """Configure the process for it meanwhile; nothing of that is measured."""
        return nullcontext()

    def plain(self) -> Any:
        """Return the DB-API connection whose statements are counted; None if it has none."""
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

    def append(self, key: str, owner: Any, new: Sequence[Any], loaded: Any) -> None:
        """Add messages to a conversation that is not to be loaded for that."""
        raise NotImplementedError

    @abstractmethod
    def found(self, loaded: Any) -> list[Any]:
        """Return the messages of what was loaded as they were put in; if not exact, their texts."""


def add(state: AgentState, turn: Sequence[Any]) -> None:
    """Change a loaded state as an assistant does in a turn."""
    state.conversation_history = [*state.conversation_history, *turn]
    state.step_count += 1
    state.user_input = f"what was said in turn {state.step_count}"
    state.last_tool_result = {"turn": state.step_count, "ok": True}


def begun(messages: Sequence[Any]) -> AgentState:
    """Return the state of a conversation after its first turn."""
    state = AgentState(focus=["bench"])
    add(state, messages)
    return state


class StateContender(Contender):
    """A contender that loads an AgentState, and beside it what its writes have to know."""

    def plain(self) -> Any:
        return connection.connection

    def added(self, loaded: Any, new: Sequence[Any]) -> Any:
        add(loaded[0], new)
        return loaded[0], new, loaded[1]

    def found(self, loaded: Any) -> list[Any]:
        return list(loaded[0].conversation_history)


@dataclass(frozen=True)
class Api(StateContender):
    """`save_state`, `load_state` and `append_messages`; of the switches' phase if none is named."""

    name: str
    settings: Mapping[str, Any]
    phase: Phase | None = None
    ordered: bool = True

    @contextmanager
    def configured(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(override_settings(CONVERSATIONS=dict(self.settings)))
            if self.phase is not None:
                stack.enter_context(forced_phase(self.phase))
            # A process reads its settings once, and these have just changed.
            for read in (conf.alias, conf.replica, conf.require_owner, conf.state_class):
                read()
            for name in ("PREPARE_STATEMENTS", "MAX_DEPTH", "MAX_MESSAGE_BYTES", "MAX_STATE_BYTES"):
                conf.get(name)
            read_breaker()
            configured_store()
            yield

    def create(self, key: str, owner: Any, messages: Sequence[Any]) -> None:
        save_state(key, begun(messages), owner)

    def load(self, key: str, owner: Any) -> tuple[AgentState, None]:
        return load_state(key, user_id=owner), None

    def save(self, key: str, owner: Any, change: Any) -> None:
        save_state(key, change[0], owner)

    def append(self, key: str, owner: Any, new: Sequence[Any], loaded: Any) -> None:
        append_messages(key, new, user_id=owner)


def api(name: str, *, prepare: bool = False) -> Api:
    """Return the public API of a team that started fresh, or of one that migrated."""
    return Api(name, {**SETTINGS[name], "PREPARE_STATEMENTS": prepare})


class OldCode(StateContender):
    """The code being replaced; to add messages, it loads and saves everything."""

    name = OLD

    def create(self, key: str, owner: Any, messages: Sequence[Any]) -> None:
        old_save(key, begun(messages), owner)

    def load(self, key: str, owner: Any) -> tuple[AgentState, None]:
        return old_load(key), None

    def save(self, key: str, owner: Any, change: Any) -> None:
        old_save(key, change[0], owner)

    def append(self, key: str, owner: Any, new: Sequence[Any], loaded: Any) -> None:
        state = old_load(key)
        state.conversation_history += new
        old_save(key, state, owner)


@dataclass(frozen=True)
class Bottom(StateContender):
    """The baseline, on Django's connection or on one of its own."""

    name: str
    baseline: Baseline = field(repr=False)
    prepare: bool = True

    def configured(self) -> AbstractContextManager[None]:
        return prepared(wanted=self.prepare)

    def plain(self) -> Any:
        return self.baseline.connect()

    def create(self, key: str, owner: Any, messages: Sequence[Any]) -> None:
        with override_settings(CONVERSATIONS={}):
            save_state(key, begun(messages), owner)

    def load(self, key: str, owner: Any) -> Any:
        return self.baseline.load(key, owner)

    def save(self, key: str, owner: Any, change: Any) -> None:
        state, new, held = change
        self.baseline.write(key, owner, new, held, state)

    def append(self, key: str, owner: Any, new: Sequence[Any], loaded: Any) -> None:
        self.baseline.write(key, owner, new, loaded[1])


@contextmanager
def hosts(prepare: bool) -> Iterator[list[Contender]]:
    """Give the API of hosts, the baseline, and old code; `prepare` is for the public API."""
    # SQLite's module keeps every statement prepared.
    plain = connection.vendor == "postgresql" and not prepare
    with bare_baseline() as bare:
        yield [
            api(FRESH, prepare=prepare),
            api(MIGRATED, prepare=prepare),
            Bottom(FLOOR, baseline_here()),
            *([Bottom(PLAIN_FLOOR, baseline_here(), prepare=False)] if plain else []),
            Bottom(BARE, bare),
            OldCode(),
        ]
