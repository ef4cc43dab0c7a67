"""Messages, mismatches and deleted conversations are found by filters and searches."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from conversations import storage
from conversations.models import ConversationMessage, ConversationMismatch, ConversationTombstone
from tests.support.admin_answers import found_in, save, url

pytestmark = pytest.mark.django_db


def test_messages_are_filtered_by_role_version_and_tool(operator: Client, owner: User) -> None:
    save(
        "c",
        [
            {"role": "user", "content": "a"},
            {"role": "tool", "content": "b", "tool_name": "find", "tool_success": False},
            {"role": "critic", "content": "d"},
        ],
        user=owner,
    )
    storage.replace_message("c", 1, {"role": "user", "content": "A"})

    def found(**query: str) -> set[str]:
        response = operator.get(url(ConversationMessage, "changelist", **query))
        return {message.content for message in response.context["cl"].result_list}

    assert found(role="tool") == {"b"}
    assert found(role="other") == {"d"}
    assert found(version="current") == {"A", "b", "d"}
    assert found(version="superseded") == {"a"}
    assert found(outcome="failed") == {"b"}
    assert found(q="find") == {"b"}


def test_a_mismatch_is_found_by_its_conversation(operator: Client) -> None:
    now = timezone.now()
    rows = [
        ConversationMismatch.rows.create(
            conversation_id=name, seen_at=now, phase=1, revision=1, places="[]"
        )
        for name in ("a", "b")
    ]
    assert found_in(operator, ConversationMismatch, q="b") == [rows[1].pk]
    assert len(found_in(operator, ConversationMismatch)) == 2


def test_a_deleted_conversation_is_found_by_its_whole_id(operator: Client) -> None:
    rows = {
        name: ConversationTombstone.rows.create(
            conversation_id=name, reason="a reason", deleted_at=timezone.now()
        )
        for name in ("a b", "a", '"a b"')
    }
    for name, row in rows.items():
        assert found_in(operator, ConversationTombstone, q=f" {name} ") == [row.pk]
    assert found_in(operator, ConversationTombstone, q="b") == []
    assert len(found_in(operator, ConversationTombstone, q=" ")) == 3
