"""Deletions in the admin go through the public API, and claim only what they did."""

from __future__ import annotations

import logging
from typing import Any
from unittest import mock

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.urls import reverse

from conversations import storage
from conversations.exceptions import StorageUnavailable
from conversations.models import ConversationMessage, ConversationState, ConversationTombstone
from flags.phases import Phase
from memory.models import MemoryChunk, MemoryMetadata
from tests.support.admin_answers import (
    MODELS,
    SECRET,
    bulk_delete,
    messages_of,
    page_url,
    save,
    text_of,
    turns,
    url,
)

pytestmark = pytest.mark.django_db


def test_deleting_removes_from_both_stores_and_logs_the_id_only(
    operator: Client, owner: User, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    save("c", [{"role": "user", "content": SECRET}], user=owner, phase=Phase.DUAL_WRITE)
    address = url(ConversationState, "delete", ConversationState.objects.get().pk)
    preview = operator.get(address)
    assert SECRET not in text_of(preview)
    operator.get(page_url("c"))
    response = operator.post(address, {"post": "yes"}, follow=True)
    assert response.status_code == 200
    assert not ConversationState.objects.exists()
    assert not MemoryChunk.objects.exists()
    assert ConversationTombstone.objects.get().conversation_id == "c"
    entry = LogEntry.objects.get()
    assert (entry.object_repr, entry.change_message) == ("c", "")
    assert SECRET not in "".join(record.getMessage() for record in caplog.records)


def test_a_bulk_deletion_goes_through_the_api(operator: Client, owner: User) -> None:
    for number in range(3):
        save(f"c{number}", turns(2), user=owner, phase=Phase.DUAL_WRITE)
    with mock.patch(
        "conversations.admin.deletions.delete_conversation", wraps=storage.delete_conversation
    ) as deleting:
        preview = bulk_delete(operator)
        assert deleting.call_count == 0
        assert "Messages, with superseded versions: 6" in text_of(preview)
        response = bulk_delete(operator, post="yes")
    assert sorted(call.args[0] for call in deleting.call_args_list) == ["c0", "c1", "c2"]
    assert messages_of(response) == ["3 conversations were deleted."]
    assert not ConversationState.objects.exists()
    assert not MemoryChunk.objects.exists()
    assert set(LogEntry.objects.values_list("object_repr", flat=True)) == {"c0", "c1", "c2"}


def test_the_preview_counts_to_its_cap(
    operator: Client, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conversations.admin.deletions.MOST_COUNTED", 11)
    monkeypatch.setattr("conversations.admin.deletions.MOST_LISTED", 2)
    for number in range(4):
        save(f"c{number}", turns(5), user=owner, items=[{"content": "x"}])
    message = ConversationMessage.objects.first()
    MemoryMetadata.objects.create(message=message, key="k", value=SECRET)
    page = text_of(bulk_delete(operator))
    assert "Messages, with superseded versions: more than 10" in page
    assert "Context items: 4" in page
    assert "Metadata: 1" in page
    assert "… and 2 more conversations" in page
    assert SECRET not in page


def test_too_many_at_once_are_refused(
    operator: Client, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conversations.admin.deletions.MOST_AT_ONCE", 2)
    for number in range(3):
        save(f"c{number}", turns(1), user=owner)
    response = bulk_delete(operator, post="yes")
    assert messages_of(response) == ["Select 2 conversations at most."]
    assert ConversationState.objects.count() == 3


def failing_after(successes: int, *, lose_connection: bool = False) -> Any:
    """Patch delete_conversation so that it fails after so many successes."""
    left = iter(range(successes))

    def delete(conversation_id: str, user_id: Any = None) -> bool:
        if next(left, None) is None:
            if lose_connection:
                connection.close()
            raise StorageUnavailable
        return storage.delete_conversation(conversation_id, user_id)

    return mock.patch("conversations.admin.deletions.delete_conversation", delete)


def test_a_failed_deletion_claims_nothing(operator: Client, owner: User) -> None:
    save("c", turns(1), user=owner)
    address = url(ConversationState, "delete", ConversationState.objects.get().pk)
    with failing_after(0):
        response = operator.post(address, {"post": "yes"}, follow=True)
    (said,) = messages_of(response)
    assert said.startswith("Nothing was deleted. ")
    assert not LogEntry.objects.exists()
    assert ConversationState.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("atomic_requests", [False, True])
def test_a_bulk_deletion_that_fails_halfway_reports_the_deleted_ones(
    operator: Client, owner: User, monkeypatch: pytest.MonkeyPatch, atomic_requests: bool
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", atomic_requests)
    for number in range(3):
        save(f"c{number}", turns(1), user=owner)
    with failing_after(1, lose_connection=True):
        response = bulk_delete(operator, post="yes")
    said = messages_of(response)
    assert said[0].startswith("2 conversations were not deleted. ")
    assert said[1:] == ["1 conversation was deleted."]
    assert ConversationState.objects.count() == 2
    assert LogEntry.objects.count() == 1


def test_a_conversation_that_is_gone_already_is_not_claimed(operator: Client, owner: User) -> None:
    save("c", turns(1), user=owner)
    with mock.patch("conversations.admin.deletions.delete_conversation", return_value=False):
        single = operator.post(
            url(ConversationState, "delete", ConversationState.objects.get().pk),
            {"post": "yes"},
            follow=True,
        )
        bulk = bulk_delete(operator, post="yes")
    assert messages_of(single) == ["This conversation was deleted already."]
    assert messages_of(bulk) == ["1 conversation was already deleted by another user."]
    assert not LogEntry.objects.exists()


def test_a_user_can_be_deleted_in_the_admin_with_all_that_is_theirs(
    operator: Client, owner: User
) -> None:
    save("c", turns(2), user=owner, phase=Phase.DUAL_WRITE, items=[{"content": "x"}])
    address = reverse("admin:auth_user_delete", args=[owner.pk])
    assert "permission" not in text_of(operator.get(address))
    operator.post(address, {"post": "yes"})
    left = {model: model._base_manager.count() for model in MODELS}
    assert left == dict.fromkeys(MODELS, 0) | {ConversationTombstone: 1}
