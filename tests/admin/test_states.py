"""The list of conversations."""

from __future__ import annotations

import re

import pytest
from django.contrib.auth.models import User
from django.test import Client

from conversations.models import ConversationState
from flags.phases import Phase
from tests.support.admin_answers import save, text_of, turns, url

pytestmark = pytest.mark.django_db


def test_the_list_shows_owner_length_and_store(operator: Client, owner: User) -> None:
    save("in-tables", turns(3), user=owner)
    save("in-both", turns(4), user=owner, phase=Phase.DUAL_WRITE)
    found = text_of(operator.get(url(ConversationState, "changelist")))
    rows = {
        conversation_id: re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", row))
        for conversation_id in ("in-tables", "in-both")
        for row in re.findall(r"<tr>.*?</tr>", found, re.S)
        if f">{conversation_id}<" in row
    }
    assert re.search(r"in-tables amira 3 .+ tables ", rows["in-tables"])
    assert re.search(r"in-both amira 4 .+ both ", rows["in-both"])


def test_conversations_are_found_by_id_user_name_and_user_key(
    operator: Client, owner: User
) -> None:
    other = User.objects.create_user("noor")
    save("first", turns(1), user=owner)
    save("second", turns(1), user=other)

    def found(term: str) -> list[str]:
        response = operator.get(url(ConversationState, "changelist", q=term))
        return [row.conversation_id for row in response.context["cl"].result_list]

    assert found("first") == ["first"]
    assert found("noor") == ["second"]
    assert found(str(owner.pk)) == ["first"]
    assert found("fir") == []
    assert found("9" * 40) == []
    assert operator.get(url(ConversationState, "changelist", q="\x00")).status_code == 200
