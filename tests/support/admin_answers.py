"""Conversations to read in the admin, their addresses, and the content of an answer."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from conversations import storage
from conversations.models import (
    ConversationConflict,
    ConversationMessage,
    ConversationMismatch,
    ConversationRedaction,
    ConversationState,
    ConversationTombstone,
    SyncBatch,
    SyncRun,
)
from conversations.state import AgentState
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryContextItem, MemoryMetadata

MODELS = [
    ConversationConflict,
    ConversationMessage,
    ConversationMismatch,
    ConversationRedaction,
    ConversationState,
    ConversationTombstone,
    MemoryChunk,
    MemoryContextItem,
    MemoryMetadata,
    SyncBatch,
    SyncRun,
]

STATES = "admin:conversations_conversationstate"

SECRET = "the secret of the message"


def url(model: Any, name: str, *args: Any, **query: Any) -> str:
    path = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{name}", args=args)
    return f"{path}?{urlencode(query)}" if query else path


def page_url(conversation_id: str, **query: Any) -> str:
    row = ConversationState.objects.get(conversation_id=conversation_id)
    return url(ConversationState, "change", row.pk, **query)


def text_of(response: Any) -> str:
    return str(response.content.decode())


def messages_of(response: Any) -> list[str]:
    return [str(message) for message in response.context["messages"]]


ALL_VIEWS = [f"view_{model._meta.model_name}" for model in MODELS]


def turns(count: int) -> list[dict[str, Any]]:
    return [
        {"role": ("user", "assistant")[turn % 2], "content": f"turn number {turn:04} ends"}
        for turn in range(1, count + 1)
    ]


def save(
    conversation_id: str,
    messages: list[Any],
    *,
    user: User | None = None,
    phase: Phase = Phase.NEW_ONLY,
    items: list[Any] | None = None,
) -> None:
    state = AgentState(conversation_history=messages, memory_context=items or [])
    with forced_phase(phase):
        storage.save_state(conversation_id, state, user_id=user)


def numbers(response: Any) -> list[int]:
    return [int(found) for found in re.findall(r"turn number (\d{4}) ends", text_of(response))]


def bulk_delete(operator: Client, **confirmed: str) -> Any:
    return operator.post(
        url(ConversationState, "changelist"),
        {
            "action": "delete_selected",
            "_selected_action": [str(row.pk) for row in ConversationState.objects.all()],
            **confirmed,
        },
        follow=True,
    )


def found_in(operator: Client, model: Any, **query: Any) -> list[int]:
    listed = operator.get(url(model, "changelist", **query)).context["cl"]
    return sorted(row.pk for row in listed.result_list)
