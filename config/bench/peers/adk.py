"""Google ADK's DatabaseSessionService: a row of JSON an event, appended one by one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from config.bench.peers.engines import MODULES as ENGINE, engine
from config.bench.peers.shared import Peer, texts_of

MODULES = (*ENGINE, "google.adk.sessions", "google.adk.events", "google.genai.types")
_APP = "bench"


class Service(Peer):
    """A message is an event; a turn is as many calls as it has messages."""

    name = "Google ADK"
    exact = False
    limits = (
        "DatabaseSessionService on asyncpg. It has no way to add several events at once: a turn is"
        " a transaction a message, and can be cut between two. It locks the session, refuses one"
        " that changed since the load, and orders by the clients' clocks. Gives events, not what"
        " it was given."
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, made: Any) -> None:
        self._loop = loop
        # By the engine: by a URL each call would first ask whether the connection is alive.
        self._service = import_module("google.adk.sessions").DatabaseSessionService(db_engine=made)
        self._event = import_module("google.adk.events").Event
        self._types = import_module("google.genai.types")
        loop.run_until_complete(self._service.prepare_tables())

    def create(self, key: str, owner: Any, messages: Sequence[Any]) -> None:
        session = self._loop.run_until_complete(
            self._service.create_session(app_name=_APP, user_id=str(owner), session_id=key)
        )
        self.save(key, owner, self.added(session, messages))

    def load(self, key: str, owner: Any) -> Any:
        return self._loop.run_until_complete(
            self._service.get_session(app_name=_APP, user_id=str(owner), session_id=key)
        )

    def added(self, loaded: Any, new: Sequence[Any]) -> Any:
        """Make the events here: each gets an id of its own, and the time, which is its order."""
        return loaded, [self._as_event(message) for message in new]

    def save(self, key: str, owner: Any, change: Any) -> None:
        self._loop.run_until_complete(self._append(*change))

    def found(self, loaded: Any) -> list[Any]:
        return [self._text(event) for event in loaded.events]

    async def _append(self, session: Any, events: Sequence[Any]) -> None:
        for event in events:
            await self._service.append_event(session, event)

    def _as_event(self, message: Any) -> Any:
        role = "user" if message.get("role") == "user" else "model"
        content = self._types.Content(role=role, parts=self._parts(message))
        return self._event(author=role, invocation_id="bench", content=content)

    def _parts(self, message: Any) -> list[Any]:
        types, texts = self._types, texts_of(message.get("content"))
        if message.get("role") == "tool":
            answer = types.FunctionResponse(
                id=message.get("tool_call_id"),
                name=message.get("tool_name"),
                response={"result": "".join(texts)},
            )
            return [types.Part(function_response=answer)]
        calls = [
            types.FunctionCall(
                id=call["id"],
                name=call["function"]["name"],
                args=json.loads(call["function"]["arguments"]),
            )
            for call in message.get("tool_calls") or ()
        ]
        spoken = [types.Part(text=text) for text in texts]
        return [*spoken, *(types.Part(function_call=call) for call in calls)]

    def _text(self, event: Any) -> str:
        texts = []
        for part in event.content.parts:
            answer = part.function_response
            texts.append(answer.response["result"] if answer else part.text or "")
        return "".join(texts)


@contextmanager
def opened() -> Iterator[list[Peer]]:
    """Give the service, on an engine of its own."""
    with engine() as (loop, made):
        yield [Service(loop, made)]
