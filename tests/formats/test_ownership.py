"""The owners of imported conversations: known users, legacy's owners, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.contrib.auth.models import User

from conversations import storage
from conversations.formats import ImportOutcome, Owners, Result, export_lines
from conversations.models import ConversationState
from conversations.state import AgentState
from conversations.writing.delete import claim
from tests.support.exports import MESSAGES, chats, imported, line_of, results

pytestmark = pytest.mark.django_db


def test_chats_are_imported_for_the_user_of_their_name(tmp_path: Path, owner: User) -> None:
    chat = {"id": "a", "user": "amira", "messages": MESSAGES, "metadata": {"task": 1}}
    stranger = {"id": "b", "user": "nobody here", "messages": []}
    nobodys = Owners(ownerless=True)
    assert chats(tmp_path, chat, stranger, "{", line_of(), owners=nobodys) == [
        ("a", "created", ""),
        ("b", "created", ""),
        (None, "invalid", "line 3: is no JSON: the line is broken off"),
        ("c", "created", ""),
    ]
    assert storage.load_state("a", user_id=owner).to_dict() == {
        **AgentState(conversation_history=MESSAGES).to_dict(),
        "metadata": {"task": 1},
    }
    assert ConversationState.objects.get(conversation_id="b").user is None
    claim("b", str(owner.pk))
    again = chats(tmp_path, chat, stranger, owners=nobodys)
    assert {result for _, result, _ in again} == {"unchanged"}


def test_a_chat_of_another_owner_is_refused(tmp_path: Path, owner: User) -> None:
    imported([line_of()])
    chat = {"id": "c", "user": "amira", "messages": []}
    refused = ("c", "refused", "it belongs to another owner here, or to none")
    assert chats(tmp_path, chat, replace=True) == [refused]


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        ("424242", "user: there is no such user here"),
        ("no key", "user: can be no user's primary key here"),
    ],
)
def test_a_line_of_an_unknown_user_is_refused(user: str, reason: str) -> None:
    assert imported([line_of(user=user)]) == [ImportOutcome(1, "c", Result.REFUSED, reason)]
    assert not ConversationState.objects.exists()


def test_an_owner_that_only_legacy_knew_needs_no_user() -> None:
    line = line_of(user=None, legacy_user="424242")
    assert results([line]) == [("created", "")]
    row = ConversationState.objects.get()
    assert (row.user_id, row.legacy_user_id) == (None, "424242")
    assert results([line]) == [("unchanged", "")]


def test_an_owner_that_only_legacy_knew_and_who_is_here_becomes_the_owner(owner: User) -> None:
    assert results([line_of(legacy_user=str(owner.pk))]) == [("created", "")]
    assert ConversationState.objects.get().user == owner


def test_replacing_never_changes_the_owner(owner: User) -> None:
    other = User.objects.create_user("other")
    imported([line_of(user=str(other.pk)), line_of(conversation_id="of nobody")])
    before = list(export_lines())
    lines = [line_of(user=str(owner.pk)), line_of(), line_of(conversation_id="of nobody", user="1")]
    claim_nobody = line_of(conversation_id="of nobody", user=str(owner.pk))
    refused = ("refused", "it belongs to another owner here, or to none")
    assert results([*lines[:2], claim_nobody], replace=True) == [refused] * 3
    assert list(export_lines()) == before
    claim("of nobody", str(owner.pk))
    assert results([claim_nobody]) == [("unchanged", "")]
