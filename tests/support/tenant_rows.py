"""The rows of two tenants, for the pages of `tests.support.tenants`."""

from __future__ import annotations

import html
import re
from typing import Any

from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from conversations import models, storage
from conversations.models import ConversationState
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryContextItem, MemoryMetadata
from tests.support.factories import state
from tests.support.tenants import url

STATES = "conversations_conversationstate"

# The tenants, and the names of what is theirs.
OWN, HIDDEN = "amber", "cobalt"

# Of every model whose rows show a part of a conversation, or name one.
CONTENT = [
    models.ConversationConflict,
    models.ConversationMessage,
    models.ConversationMismatch,
    models.ConversationRedaction,
    models.ConversationState,
    models.ConversationTombstone,
    MemoryChunk,
    MemoryContextItem,
    MemoryMetadata,
]

# Nothing says whose these are, so this host hides them from every tenant.
OWNERLESS = [models.ConversationTombstone]


def save(name: str, user: User | None, *, phase: Phase = Phase.DUAL_WRITE, lines: int = 2) -> Any:
    said = [f"{name} said {number}" for number in range(lines)]
    items = [{"content": f"{name} noted", "source": f"source of {name}"}]
    with forced_phase(phase):
        storage.save_state(name, state(*said, memory_context=items), user)
    return ConversationState.rows.filter(conversation_id=name).first()


def fill(name: str, user: User) -> None:
    """Save rows of every kind for one tenant: in both stores, in legacy alone, and deleted."""
    now = timezone.now()
    with forced_phase(Phase.DUAL_WRITE):
        row = save(name, user)
        storage.redact_message(name, 1, replacement=f"redacted of {name}", user_id=user)
    save(f"{name}-unmoved", user, phase=Phase.LEGACY)
    save(f"{name}-deleted", user)
    storage.delete_conversation(f"{name}-deleted", user)
    models.ConversationConflict.rows.create(
        conversation=row, kind="merged", reason=name, revision=1, detail="{}", created_at=now
    )
    for named in (name, f"{name}-unmoved"):
        models.ConversationMismatch.rows.create(
            conversation_id=named, seen_at=now, phase=1, revision=1, places="[]"
        )
    message, item = row.messages.first(), MemoryContextItem.objects.filter(conversation=row).first()
    for target in ({"conversation": row}, {"message": message}, {"context_item": item}):
        MemoryMetadata.objects.create(key=f"key of {name}", value=f"{name} value", **target)
    MemoryChunk.objects.create(user=user, content=f"{name} long-term", created_at=now)


def address(model: Any, name: str, *args: Any) -> str:
    return url(f"{model._meta.app_label}_{model._meta.model_name}_{name}", *args)


def words_of(response: Any) -> str:
    words = re.sub(r"<[^>]+>", " ", response.content.decode())
    return html.unescape(" ".join(words.split()))


def legacy_lines(client: Client, query: str = "") -> tuple[list[str], str]:
    response = client.get(url(f"{STATES}_legacy") + query)
    return [line.conversation_id for line, _ in response.context["lines"]], response.context["next"]
