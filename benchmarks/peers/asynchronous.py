"""Peers that know coroutines alone, on SQLAlchemy and asyncpg: OpenAI Agents and Google ADK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from django.db import connection

from benchmarks.baseline import parameters
from benchmarks.contenders import Contender
from benchmarks.corpus import texts_of

_APP = "bench"
# Of psycopg's parameters: what asyncpg calls them.
_NAMES = {"dbname": "database", "sslmode": "ssl"} | {
    name: name for name in ("host", "port", "user", "password")
}


@contextmanager
def _engine() -> Iterator[tuple[asyncio.Runner, Any]]:
    """Give a runner whose loop is kept, and an engine whose connections commit as Django's here.

    No connection is tried before it is used (SQLAlchemy's default): that costs a round trip.
    """
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        setting = {"synchronous_commit": cursor.fetchone()[0]}
    arguments = {_NAMES[name]: value for name, value in parameters().items() if name in _NAMES}
    arguments = {name: value for name, value in arguments.items() if value}
    create = import_module("sqlalchemy.ext.asyncio").create_async_engine
    with asyncio.Runner() as runner:
        made = create(
            "postgresql+asyncpg://", connect_args={**arguments, "server_settings": setting}
        )
        try:
            yield runner, made
        finally:
            runner.get_loop().run_until_complete(made.dispose())


class Sessions(Contender):
    """OpenAI Agents' SQLAlchemySession, a row of JSON text a message.

    A session object for each conversation is kept: a new one compiles its SQL again.
    """

    name = "OpenAI Agents"

    def __init__(self, runner: asyncio.Runner, made: Any) -> None:
        self._wait, self._engine = runner.get_loop().run_until_complete, made
        self._known: dict[str, Any] = {}
        self._wait(self._new("bench", create_tables=True).get_items())

    def create(self, key: str, owner: Any, messages: Sequence[Any]) -> None:
        self._known[key] = self._new(key)
        self.save(key, owner, messages)

    def load(self, key: str, owner: Any) -> Any:
        return self._wait(self._known[key].get_items())

    def added(self, loaded: Any, new: Sequence[Any]) -> Any:
        return list(new)

    def save(self, key: str, owner: Any, change: Any) -> None:
        self._wait(self._known[key].add_items(change))

    def found(self, loaded: Any) -> list[Any]:
        return list(loaded)

    def _new(self, key: str, **more: Any) -> Any:
        module = import_module("agents.extensions.memory.sqlalchemy_session")
        return module.SQLAlchemySession(key, engine=self._engine, **more)


@contextmanager
def sessions() -> Iterator[list[Contender]]:
    """Give the sessions, on an engine of their own."""
    with _engine() as (runner, made):
        yield [Sessions(runner, made)]


class Service(Contender):
    """Google ADK's DatabaseSessionService, a row of JSON an event.

    A message is an event; a turn is as many calls as it has messages.
    """

    name = "Google ADK"
    exact = False

    def __init__(self, runner: asyncio.Runner, made: Any) -> None:
        self._wait = runner.get_loop().run_until_complete
        # By the engine: by a URL each call would first ask whether the connection is alive.
        self._service = import_module("google.adk.sessions").DatabaseSessionService(db_engine=made)
        self._event = import_module("google.adk.events").Event
        self._types = import_module("google.genai.types")
        self._wait(self._service.prepare_tables())

    def create(self, key: str, owner: Any, messages: Sequence[Any]) -> None:
        names = {"app_name": _APP, "user_id": str(owner), "session_id": key}
        session = self._wait(self._service.create_session(**names))
        self.save(key, owner, self.added(session, messages))

    def load(self, key: str, owner: Any) -> Any:
        names = {"app_name": _APP, "user_id": str(owner), "session_id": key}
        return self._wait(self._service.get_session(**names))

    def added(self, loaded: Any, new: Sequence[Any]) -> Any:
        """Make the events here: each gets an id of its own, and the time, which is its order."""
        return loaded, [self._as_event(message) for message in new]

    def save(self, key: str, owner: Any, change: Any) -> None:
        self._wait(self._append(*change))

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
        answers = [(part.function_response, part.text) for part in event.content.parts]
        return "".join(
            answer.response["result"] if answer else text or "" for answer, text in answers
        )


@contextmanager
def services() -> Iterator[list[Contender]]:
    """Give the service, on an engine of its own."""
    with _engine() as (runner, made):
        yield [Service(runner, made)]
