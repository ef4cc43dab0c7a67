"""The page of one conversation: transcript, context and records."""

from __future__ import annotations

import html
import re
from unittest import mock

import pytest
from django.contrib.auth.models import User
from django.test import Client

from conversations import storage
from conversations.exceptions import StorageUnavailable
from conversations.models import ConversationConflict, ConversationState
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryMetadata
from tests.support.admin_answers import numbers, page_url, save, text_of, turns

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("phase", [Phase.NEW_ONLY, Phase.DUAL_WRITE])
@pytest.mark.parametrize("behind", [False, True])
def test_a_transcript_shows_every_message_once(
    operator: Client, owner: User, phase: Phase, behind: bool
) -> None:
    save("c", turns(250 - 10 * behind), user=owner, phase=phase)
    if behind:
        with forced_phase(Phase.LEGACY):
            storage.append_messages("c", turns(250)[240:])
    address = page_url("c")
    seen: list[int] = []
    pages = 0
    query = ""
    while pages < 5:
        response = operator.get(address + query)
        seen = numbers(response) + seen
        pages += 1
        query = response.context["transcript"].links.get("earlier", "")
        if not query:
            break
    assert (seen, pages) == (list(range(1, 251)), 3)
    query, seen = "?after=0", []
    while query:
        response = operator.get(address + query)
        seen += numbers(response)
        query = response.context["transcript"].links.get("later", "")
    assert seen == list(range(1, 251))


def test_superseded_versions_are_shown_on_request_only(operator: Client, owner: User) -> None:
    save("c", turns(3), user=owner)
    storage.replace_message("c", 2, {"role": "assistant", "content": "edited"})
    storage.remove_messages("c", [3])
    assert numbers(operator.get(page_url("c"))) == [1]
    response = operator.get(page_url("c", superseded=1))
    assert numbers(response) == [1, 2, 3]
    assert text_of(response).count("superseded in revision") == 2


def test_pages_with_superseded_versions_skip_none(operator: Client, owner: User) -> None:
    save("c", turns(147), user=owner)
    for turn in range(6):
        storage.replace_message("c", 50, {"role": "user", "content": f"version {turn} of fifty"})
    versions = set()
    query = "?superseded=1"
    while query:
        response = operator.get(page_url("c") + query)
        versions |= set(re.findall(r"version \d of fifty|turn number 0050", text_of(response)))
        query = response.context["transcript"].links.get("earlier", "")
    assert versions == {"turn number 0050", *(f"version {turn} of fifty" for turn in range(6))}


def test_a_role_can_be_chosen(operator: Client, owner: User) -> None:
    save("c", turns(6), user=owner)
    assert numbers(operator.get(page_url("c", role="assistant"))) == [1, 3, 5]
    assert numbers(operator.get(page_url("c", role="nonsense"))) == [1, 2, 3, 4, 5, 6]


def test_tool_calls_are_folded_and_their_arguments_indented(operator: Client, owner: User) -> None:
    arguments = '{"city": "\\u6771\\u4eac", "n": 1e22, "n": 1.0, "deep": {"a": []}}'
    broken = '{"city": "Os'
    calls = [
        {"id": "call_1", "function": {"name": "weather", "arguments": arguments}},
        {"id": "call_2", "function": {"name": "fails", "arguments": broken}},
    ]
    save("c", [{"role": "assistant", "content": None, "tool_calls": calls}], user=owner)
    page = html.unescape(text_of(operator.get(page_url("c"))))
    folded = re.findall(r'<details class="cs-call">(.*?)</details>', page, re.S)
    assert len(folded) == 2
    indented = '{\n  "city": "東京",\n  "n": 1e22,\n  "n": 1.0,\n  "deep": {\n    "a": []\n  }\n}'
    assert "weather" in folded[0]
    assert f">{indented}</pre>" in folded[0]
    assert f">{broken}</pre>" in folded[1]
    kept = storage.list_messages("c").messages[0].message["tool_calls"]
    assert [call["function"]["arguments"] for call in kept] == [arguments, broken]


def test_context_and_records_have_a_page_each(operator: Client, owner: User) -> None:
    save("c", [], user=owner, items=[{"content": f"item {n} here"} for n in range(120)])
    storage.update_state_partial("c", {"user_input": "the last words"})
    row = ConversationState.objects.get()
    MemoryMetadata.objects.create(conversation=row, key="channel", value="telephone")
    ConversationConflict.rows.create(
        conversation=row, kind="merged", reason="two lost", revision=1, created_at=row.updated_at
    )
    context = text_of(operator.get(page_url("c", tab="context")))
    assert "the last words" in context
    assert len(re.findall(r"item \d+ here", context)) == 100
    assert "20 more context items" in context
    records = text_of(operator.get(page_url("c", tab="records")))
    assert "telephone" in records
    assert "two lost" in records


def test_context_is_that_of_legacy_where_legacy_is_ahead(operator: Client, owner: User) -> None:
    save("c", turns(1), user=owner, phase=Phase.DUAL_WRITE)
    with forced_phase(Phase.LEGACY):
        storage.update_state_partial(
            "c", {"user_input": "only in legacy", "new_context_items": [{"content": "new item"}]}
        )
        page = text_of(operator.get(page_url("c", tab="context")))
    assert "only in legacy" in page
    assert "new item" in page
    # What a load notes for the next save is nothing of the conversation's.
    assert "baseline" not in page


def test_a_store_that_does_not_answer_gives_an_error_and_no_empty_page(
    operator: Client, owner: User
) -> None:
    save("c", turns(1), user=owner)
    for name, tab in (("transcript_of", "transcript"), ("context_of", "context")):
        with mock.patch(f"conversations.admin.views.{name}", side_effect=StorageUnavailable):
            response = operator.get(page_url("c", tab=tab))
        assert response.status_code == 503
        assert "did not answer" in text_of(response)
