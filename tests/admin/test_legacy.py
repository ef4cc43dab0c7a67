"""Conversations that only legacy holds: listed, read and deleted."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import OperationalError
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from conversations import storage
from conversations.models import ConversationState, ConversationTombstone
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryMetadata
from tests.support.admin_answers import (
    STATES,
    messages_of,
    numbers,
    page_url,
    save,
    text_of,
    turns,
    url,
)

pytestmark = pytest.mark.django_db


def test_conversations_of_legacy_are_listed_read_and_deleted(operator: Client, owner: User) -> None:
    save("unmoved & <b>", turns(120), user=owner, phase=Phase.LEGACY)
    save("moved", turns(2), user=owner, phase=Phase.DUAL_WRITE)
    with forced_phase(Phase.LEGACY):
        response = operator.get(reverse(f"{STATES}_legacy"))
        found = {line.conversation_id: line.residence for line, _ in response.context["lines"]}
        assert found == {"unmoved & <b>": "legacy", "moved": "both"}
        addresses = {line.conversation_id: link for line, link in response.context["lines"]}
        assert addresses["moved"] == page_url("moved")
        response = operator.get(addresses["unmoved & <b>"])
        assert numbers(response) == list(range(21, 121))
        earlier = response.context["transcript"].links["earlier"]
        assert numbers(operator.get(reverse(f"{STATES}_unmoved") + earlier)) == [*range(1, 21)]
        delete = response.context["delete_url"]
        assert operator.get(delete).status_code == 200
        assert MemoryChunk.objects.count() == 2
        operator.post(delete)
        assert MemoryChunk.objects.count() == 1
    assert ConversationTombstone.objects.get().conversation_id == "unmoved & <b>"
    assert LogEntry.objects.get().object_repr == "unmoved & <b>"


def test_a_conversation_with_a_row_is_shown_on_its_own_page(operator: Client, owner: User) -> None:
    save("c", turns(1), user=owner)
    response = operator.get(reverse(f"{STATES}_unmoved"), {"id": "c"})
    assert response.headers["Location"] == page_url("c")


def test_legacy_is_listed_page_by_page(
    operator: Client, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conversations.admin.legacy.PER_PAGE", 2)
    for number in range(5):
        save(f"c{number}", turns(1), user=owner, phase=Phase.LEGACY)
    address, seen = reverse(f"{STATES}_legacy"), []
    query = ""
    for _ in range(3):
        response = operator.get(address + query)
        seen += [line.conversation_id for line, _ in response.context["lines"]]
        query = response.context["next"]
    assert seen == ["c4", "c3", "c2", "c1", "c0"]
    assert query == ""


def test_a_late_write_of_old_code_to_a_deleted_conversation_is_listed_as_deleted(
    operator: Client, owner: User
) -> None:
    save("c", turns(1), user=owner, phase=Phase.LEGACY)
    storage.delete_conversation("c")
    late = MemoryChunk.objects.create(content="{}", created_at=timezone.now(), user=owner)
    for key, value in (("conversation_id", "c"), ("type", "state")):
        MemoryMetadata.objects.create(chunk=late, key=key, value=value)
    response = operator.get(reverse(f"{STATES}_legacy"))
    ((line, address),) = response.context["lines"]
    assert (line.conversation_id, line.residence, address) == ("c", "deleted", "")
    unmoved = reverse(f"{STATES}_unmoved") + "?id=c"
    assert operator.get(unmoved).headers["Location"] == url(ConversationState, "changelist")
    response = operator.post(reverse(f"{STATES}_unmoved_delete") + "?id=c", follow=True)
    assert "This conversation was deleted already." in messages_of(response)


def test_legacy_that_does_not_answer_is_an_error_and_no_empty_list(operator: Client) -> None:
    store = "conversations.stores.chunks.store.ChunkStore"
    with mock.patch(f"{store}.list", side_effect=OperationalError):
        response = operator.get(reverse(f"{STATES}_legacy"))
    assert response.status_code == 503
    assert "did not answer" in text_of(response)
    with mock.patch(f"{store}.owner", side_effect=OperationalError):
        response = operator.post(reverse(f"{STATES}_unmoved_delete") + "?id=c", follow=True)
    assert messages_of(response)[0].startswith("Nothing was deleted. ")


def test_a_team_without_legacy_is_not_offered_its_list(operator: Client, settings: Any) -> None:
    address = reverse(f"{STATES}_legacy")
    assert address in text_of(operator.get(url(ConversationState, "changelist")))
    settings.CONVERSATIONS = {}
    assert address not in text_of(operator.get(url(ConversationState, "changelist")))
    assert operator.get(address).context["lines"] == []


def test_a_conversation_without_owner_is_read_and_deleted_where_owners_are_required(
    operator: Client, settings: Any
) -> None:
    save("nobody's", turns(130))
    settings.CONVERSATIONS = {"REQUIRE_OWNER": True}
    response = operator.get(page_url("nobody's"))
    assert numbers(response) == list(range(31, 131))
    earlier = response.context["transcript"].links["earlier"]
    assert numbers(operator.get(page_url("nobody's") + earlier)) == list(range(1, 31))
    operator.post(url(ConversationState, "delete", ConversationState.objects.get().pk), {"post": 1})
    assert not ConversationState.objects.exists()


def test_an_owned_conversation_is_read_and_deleted_where_owners_are_required(
    operator: Client, owner: User, settings: Any
) -> None:
    save("c", turns(3), user=owner)
    settings.CONVERSATIONS = {"REQUIRE_OWNER": True}
    assert numbers(operator.get(page_url("c"))) == [1, 2, 3]
    operator.post(url(ConversationState, "delete", ConversationState.objects.get().pk), {"post": 1})
    assert not ConversationState.objects.exists()
