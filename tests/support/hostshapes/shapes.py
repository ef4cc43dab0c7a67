"""Old code over each of these tables: it makes a chat, adds to it, and reads it."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

from django.db.models import F

from tests.support.factories import messages
from tests.support.hostshapes.models import (
    Assistant,
    Chat,
    History,
    Session,
    Snapshot,
    Thread,
    Visit,
)

Texts = list[Any]


def said(data: Any, name: str = "conversation_history") -> Texts:
    """Return the texts of the messages that a blob holds."""
    return [message["content"] for message in (data if isinstance(data, list) else data[name])]


@dataclass(frozen=True)
class Shape:
    """How a host keeps chats. Its methods are the host's own code."""

    mapping: dict[str, Any]
    # Whether a new conversation can be saved under an id of ours.
    takes_new_ids = False
    owned = True

    def make(self, user: Any, *texts: str) -> str:
        """Make a chat as the host does. Returns: the id by which it is known to us."""
        raise NotImplementedError

    def write(self, name: str, *texts: str) -> None:
        """Write a chat as old code does, whole."""
        raise NotImplementedError

    def read(self, name: str) -> Texts:
        """Read a chat as old code does."""
        raise NotImplementedError

    def raw(self, name: str) -> Any:
        """Return the JSON as the host has it."""
        raise NotImplementedError


class UUIDSession(Shape):
    def make(self, user: Any, *texts: str) -> str:
        data = {"conversation_history": messages(*texts), "channel": "web"}
        return str(Session.objects.create(user=user, data=data).pk)

    def write(self, name: str, *texts: str) -> None:
        row = Session.objects.get(pk=name)
        row.data["conversation_history"] = messages(*texts)
        row.save()

    def read(self, name: str) -> Texts:
        return said(self.raw(name))

    def raw(self, name: str) -> Any:
        return Session.objects.get(pk=name).data


class NumberedChat(Shape):
    def make(self, user: Any, *texts: str) -> str:
        assistant = Assistant.objects.create(name="a")
        payload = json.dumps({"messages": messages(*texts)})
        made = Chat.objects.create(user=user, assistant=assistant, payload=payload)
        return str(made.pk)

    def write(self, name: str, *texts: str) -> None:
        payload = json.dumps({"messages": messages(*texts)})
        Chat.objects.filter(pk=name).update(payload=payload)

    def read(self, name: str) -> Texts:
        return said(self.raw(name), "messages")

    def raw(self, name: str) -> Any:
        return json.loads(Chat.objects.get(pk=name).payload)


class UserHistory(Shape):
    def make(self, user: Any, *texts: str) -> str:
        History.objects.create(user=user, history=messages(*texts))
        return str(user.pk)

    def write(self, name: str, *texts: str) -> None:
        History.objects.filter(user=name).update(history=messages(*texts))

    def read(self, name: str) -> Texts:
        return said(self.raw(name))

    def raw(self, name: str) -> Any:
        return History.objects.get(user=name).history


class UserThread(Shape):
    takes_new_ids = False

    def make(self, user: Any, *texts: str) -> str:
        assistant = Assistant.objects.create(name="a")
        data = {"conversation_history": messages(*texts)}
        Thread.objects.create(user=user, assistant=assistant, state=data)
        return f"{user.pk}:{assistant.pk}"

    def _row(self, name: str) -> Any:
        user, assistant = name.split(":")
        return Thread.objects.filter(user=user, assistant=assistant)

    def write(self, name: str, *texts: str) -> None:
        data = {"conversation_history": messages(*texts)}
        self._row(name).update(state=data, version=F("version") + 1)

    def read(self, name: str) -> Texts:
        return said(self.raw(name))

    def raw(self, name: str) -> Any:
        return self._row(name).get().state


class OpenVisit(Shape):
    takes_new_ids = True
    owned = False

    def make(self, user: Any, *texts: str) -> str:
        name = uuid.uuid4().hex
        Visit.objects.create(session_key=name)
        self.write(name, *texts)
        return name

    def write(self, name: str, *texts: str) -> None:
        payload = json.dumps({"conversation_history": messages(*texts)})
        Visit.objects.filter(session_key=name).update(payload=payload)

    def read(self, name: str) -> Texts:
        return said(self.raw(name))

    def raw(self, name: str) -> Any:
        return json.loads(Visit.objects.get(session_key=name).payload)


class SnapshotsOfChat(Shape):
    def make(self, user: Any, *texts: str) -> str:
        name = str(uuid.uuid4())
        self._add(name, user.pk, texts[:1])
        self._add(name, user.pk, texts)
        return name

    def _add(self, name: str, user: Any, texts: Any) -> None:
        blob = json.dumps({"conversation_history": messages(*texts)})
        Snapshot.objects.create(chat=name, user_id=user, model_name="m", blob=blob)

    def write(self, name: str, *texts: str) -> None:
        self._add(name, self._newest(name).user_id, texts)

    def _newest(self, name: str) -> Snapshot:
        return Snapshot.objects.filter(chat=name).latest("created_at")

    def read(self, name: str) -> Texts:
        return said(self.raw(name))

    def raw(self, name: str) -> Any:
        return json.loads(self._newest(name).blob)


SHAPES: dict[str, Shape] = {
    "a session with a UUID": UUIDSession(
        {
            "model": "hostshapes.Session",
            "conversation_id": "id",
            "owner": "user",
            "state": "data",
            "updated_at": "updated_at",
        }
    ),
    "a numbered chat": NumberedChat(
        {
            "model": "hostshapes.Chat",
            "conversation_id": "id",
            "owner": "user",
            "state": "payload",
            "to_state": "tests.support.hostshapes.blobs.chat_to_state",
            "from_state": "tests.support.hostshapes.blobs.chat_from_state",
        }
    ),
    "a history per user": UserHistory(
        {
            "model": "hostshapes.History",
            "conversation_id": "user",
            "owner": "user",
            "state": "history",
            "to_state": "tests.support.hostshapes.blobs.history_to_state",
            "from_state": "tests.support.hostshapes.blobs.history_from_state",
        }
    ),
    "a thread per user and assistant": UserThread(
        {
            "model": "hostshapes.Thread",
            "conversation_id": ["user", "assistant"],
            "owner": "user",
            "state": "state",
            "version": "version",
        }
    ),
    "a visit of nobody": OpenVisit(
        {
            "model": "hostshapes.Visit",
            "conversation_id": "session_key",
            "state": "payload",
        }
    ),
    "snapshots of a chat": SnapshotsOfChat(
        {
            "model": "hostshapes.Snapshot",
            "conversation_id": "chat",
            "owner": "user",
            "state": "blob",
            "newest_by": "created_at",
        }
    ),
}
