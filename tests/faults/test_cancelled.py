"""A transaction rolled back, a coroutine cancelled: told or complete, and repeatable."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import pickle
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction

from conversations import aio
from conversations.state import AgentState
from conversations.storage import append_messages, load_state, save_state
from conversations.writing import write
from flags.phases import Phase
from flags.switches import forced_phase
from tests.faults.cases import Conversation
from tests.support.factories import messages, texts

pytestmark = pytest.mark.django_db(transaction=True)


class Undo(Exception):
    pass


# What a repeat takes: the state itself, a copy of it, or one that came through a queue.
REPEATS: dict[str, Callable[[Any], Any]] = {
    "the same": lambda state: state,
    "copied": copy.deepcopy,
    "pickled": lambda state: pickle.loads(pickle.dumps(state)),
}
SAVES: dict[str, Callable[[str, Any], Any]] = {
    "save_state": save_state,
    "append_messages": lambda name, state: append_messages(name, messages("b"), keys=["b"]),
}
COROUTINES: dict[str, Callable[[str, Any], Awaitable[Any]]] = {
    "save_state": aio.save_state,
    "append_messages": lambda name, state: aio.append_messages(name, messages("b"), keys=["b"]),
}


def in_every_phase() -> Iterator[tuple[str, Any]]:
    """Give a conversation with the text "a", and a state of it that adds "b", in each phase."""
    for phase in Phase:
        with forced_phase(phase):
            name = Conversation().id
            save_state(name, AgentState(conversation_history=messages("a")))
            state = load_state(name)
            state.conversation_history += messages("b")
            state.step_count += 1
            yield name, state


@pytest.mark.parametrize("again", REPEATS.values(), ids=REPEATS)
@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
def test_a_rolled_back_save_is_gone_and_saved_again_once(
    save: Callable[[str, Any], Any], again: Callable[[Any], Any]
) -> None:
    for name, state in in_every_phase():
        with pytest.raises(Undo), transaction.atomic():
            assert save(name, state)["committed"] is False
            assert texts(load_state(name)) == ["a", "b"]
            raise Undo
        assert texts(load_state(name)) == ["a"]
        repeated = again(state)
        for _ in range(2):
            save(name, repeated)
            assert texts(load_state(name)) == ["a", "b"]


class Gate:
    """Holds up one write before its first statement."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there, self.go = threading.Event(), threading.Event()
        self._shut, self._added = False, write.try_append
        monkeypatch.setattr(write, "try_append", self._waiting)

    def shut(self) -> None:
        self.there.clear()
        self.go.clear()
        self._shut = True

    def _waiting(self, *args: Any, **kwargs: Any) -> Any:
        if self._shut:
            self._shut = False
            self.there.set()
            assert self.go.wait(60)
        return self._added(*args, **kwargs)

    async def held(self, call: Awaitable[Any]) -> asyncio.Task[Any]:
        """Start a write. Returns: its task, once it is held up."""
        self.shut()
        task: asyncio.Task[Any] = asyncio.ensure_future(call)  # type: ignore[assignment]
        while not self.there.is_set():
            assert not task.done()
            await asyncio.sleep(0.001)
        return task


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.mark.parametrize("again", REPEATS.values(), ids=REPEATS)
@pytest.mark.parametrize("call", COROUTINES.values(), ids=COROUTINES)
def test_a_coroutine_cancelled_in_the_middle_raises_and_a_repeat_adds_nothing(
    call: Callable[[str, Any], Awaitable[Any]], again: Callable[[Any], Any], gate: Gate
) -> None:
    async def run(name: str, state: Any, repeated: Any) -> None:
        try:
            task = await gate.held(call(name, state))
            # asgiref may wait for its thread before it tells of the cancellation.
            asyncio.get_running_loop().call_later(0.02, gate.go.set)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(task, timeout=0.001)
            await call(name, repeated)
        finally:
            await sync_to_async(connections.close_all)()

    for name, state in in_every_phase():
        asyncio.run(run(name, state, again(state)))
        assert texts(load_state(name)) == ["a", "b"]


@pytest.mark.parametrize("kind", SAVES)
def test_a_repeat_beside_the_cancelled_write_that_still_goes_on_adds_nothing(
    kind: str, gate: Gate
) -> None:
    """In another thread, as another process does it; the first has read nothing yet."""

    def beside(name: str, repeated: Any) -> None:
        try:
            SAVES[kind](name, repeated)
        finally:
            connections.close_all()

    async def run(name: str, state: Any, repeated: Any) -> None:
        task = await gate.held(COROUTINES[kind](name, state))
        task.cancel()
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(beside, name, repeated))
        thread.start()
        gate.go.set()
        await asyncio.wait([task])
        await asyncio.to_thread(thread.join)
        await sync_to_async(connections.close_all)()

    for name, state in in_every_phase():
        asyncio.run(run(name, state, copy.deepcopy(state)))
        assert texts(load_state(name)) == ["a", "b"]
