"""What both floors share: what a program knows of a conversation, and how columns are made."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from config.bench.rows import Row, row_of
from conversations.changes import OWN_KEYS
from conversations.digests import EMPTY
from conversations.documents import DEFAULTS, ITEMS, MESSAGES, field_digests, fields_digest
from conversations.fieldcodec import decode_fields, encode_fields
from conversations.state import AgentState

FIELDS = ("user_input", "focus_areas", "step_count", "last_tool_result", "extra", "state_digest")
# What a message's row holds behind the codec's columns.
BEHIND = ("digest", "timestamp", "key", "key_digest")


@dataclass(slots=True)
class Held:
    """What a program that uses the floor knows of a conversation after a load or a write."""

    revision: int
    messages_digest: bytes


class Refused(Exception):
    """The conversation is another owner's, or has another revision by now: load it again."""


class Floor(Protocol):
    """Saves and loads one conversation by hand-written SQL, on the connection of `connect`."""

    @property
    def connect(self) -> Callable[[], Any]:
        """Return the function that gives the DB-API connection."""

    def load(self, conversation_id: str, owner: Any) -> tuple[AgentState, Held]:
        """Return a state equal to that of `load_state`, and what a later save needs."""

    def append(self, conversation_id: str, owner: Any, messages: list[Any], held: Held) -> None:
        """Add messages behind the last one. Raises: Refused."""

    def append_unseen(self, conversation_id: str, owner: Any, messages: list[Any]) -> None:
        """Add messages behind the last one, whatever the revision. Raises: Refused."""

    def save(
        self, conversation_id: str, owner: Any, state: AgentState, new: list[Any], held: Held
    ) -> None:
        """Add the messages `new`, and make the fields those of the state. Raises: Refused."""


def new_rows(messages: list[Any], now: datetime) -> list[Row]:
    token = f"{OWN_KEYS}{secrets.token_hex(8)}"
    rows = (row_of(message, now=now) for message in messages)
    # Behind the codec's columns: the digest, then the time.
    return [(*row, f"{token}:{number}", row[-2]) for number, row in enumerate(rows)]


def columns_of(state: AgentState) -> list[Any]:
    """Return the columns `FIELDS` of a state without context items."""
    fields = {name: getattr(state, name) for name in DEFAULTS if name not in (ITEMS, MESSAGES)}
    fields |= state.extra
    columns = encode_fields(fields) | {"state_digest": fields_digest(field_digests(fields)) + EMPTY}
    return [columns[name] for name in FIELDS]


def state_of(columns: Sequence[Any], messages: list[Any]) -> AgentState:
    """Return the state of the columns `FIELDS` but the last."""
    user_input, focus, steps, result, extra = columns
    if extra:
        fields = decode_fields(dict(zip(FIELDS, columns, strict=False)))
        return AgentState.from_dict({**fields, MESSAGES: messages})
    return AgentState(
        user_input=user_input,
        step_count=steps,
        focus=json.loads(focus),
        conversation_history=messages,
        last_tool_result=json.loads(result),
    )
