"""Permissions of the admin, for models and for single conversations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from conversations.models import ConversationState
from flags.phases import Phase
from memory.models import MemoryMetadata
from tests.support.admin_answers import (
    ALL_VIEWS,
    MODELS,
    STATES,
    bulk_delete,
    numbers,
    page_url,
    save,
    text_of,
    turns,
    url,
)

pytestmark = pytest.mark.django_db


def test_staff_without_permission_see_nothing(staff: Callable[..., Client], owner: User) -> None:
    save("c", turns(1), user=owner)
    save("unmoved", turns(1), user=owner, phase=Phase.LEGACY)
    client = staff()
    pages = [
        *(url(model, "changelist") for model in MODELS),
        page_url("c"),
        page_url("c", tab="context"),
        page_url("c", tab="records"),
        url(ConversationState, "delete", ConversationState.objects.get().pk),
        reverse(f"{STATES}_legacy"),
        reverse(f"{STATES}_unmoved") + "?id=unmoved",
        reverse(f"{STATES}_unmoved_delete") + "?id=unmoved",
    ]
    assert {page: client.get(page).status_code for page in pages} == dict.fromkeys(pages, 403)


def test_a_transcript_needs_permission_to_view_messages(
    staff: Callable[..., Client], owner: User
) -> None:
    save("c", turns(2), user=owner, items=[{"content": "an item"}])
    row = ConversationState.objects.get()
    MemoryMetadata.objects.create(conversation=row, key="channel", value="telephone")
    client = staff("view_conversationstate")
    assert numbers(client.get(page_url("c"))) == []
    assert "no permission to view messages" in text_of(client.get(page_url("c")))
    assert "an item" not in text_of(client.get(page_url("c", tab="context")))
    assert "telephone" not in text_of(client.get(page_url("c", tab="records")))
    client = staff(*ALL_VIEWS)
    assert numbers(client.get(page_url("c"))) == [1, 2]
    assert "an item" in text_of(client.get(page_url("c", tab="context")))
    assert "telephone" in text_of(client.get(page_url("c", tab="records")))


def test_viewing_does_not_permit_deleting(staff: Callable[..., Client], owner: User) -> None:
    save("c", turns(1), user=owner)
    client = staff(*ALL_VIEWS)
    page = text_of(client.get(page_url("c")))
    address = url(ConversationState, "delete", ConversationState.objects.get().pk)
    assert address not in page
    assert client.post(address, {"post": "yes"}).status_code == 403
    unmoved = reverse(f"{STATES}_unmoved_delete") + "?id=c"
    assert client.post(unmoved).status_code == 403
    bulk_delete(client, post="yes")
    assert ConversationState.objects.exists()


def test_an_object_permission_is_asked_for_every_conversation(
    operator: Client, owner: User
) -> None:
    save("open", turns(1), user=owner)
    save("closed", turns(1), user=owner)

    def permitted(self: Any, request: Any, obj: Any = None) -> bool:
        return obj is None or obj.conversation_id == "open"

    shown_by = "conversations.admin.states.ConversationAdmin"
    with (
        mock.patch(f"{shown_by}.has_delete_permission", permitted),
        mock.patch(f"{shown_by}.has_view_permission", permitted),
    ):
        assert operator.get(page_url("open")).status_code == 200
        assert operator.get(page_url("closed")).status_code == 403
        assert bulk_delete(operator, post="yes").status_code == 403
    assert ConversationState.objects.count() == 2
