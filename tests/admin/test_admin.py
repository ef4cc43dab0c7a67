"""The admin: reading conversations, deleting them, and what it must never do."""

from __future__ import annotations

import html
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlencode

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import OperationalError, connection
from django.test import Client, RequestFactory
from django.urls import reverse
from django.utils import timezone
from hypothesis import given, strategies as st
from waffle import get_waffle_switch_model
from waffle.admin import SwitchAdmin

from conversations import storage
from conversations.admin.pages import Asked
from conversations.admin.rendering import shown_item, shown_message
from conversations.admin.residence import CONDITIONS, Residence, residence_of
from conversations.exceptions import StorageUnavailable
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
from conversations.rollout.sync import runs
from conversations.state import AgentState
from conversations.storage import StoredMessage
from conversations.stores.normalized import new_row
from flags.admin import register
from flags.admin.base import CappedPaginator, ReadOnlyAdmin
from flags.admin.text import shown, shown_json, visible
from flags.phases import HELP_TEXTS, ROUTING, Phase, Switch, switches_for
from flags.switches import forced_phase
from memory.admin.models import ChunkAdmin
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
pytestmark = pytest.mark.django_db


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


@pytest.fixture
def owner() -> User:
    return User.objects.create_user("amira")


@pytest.fixture
def operator(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("root"))
    return client


@pytest.fixture
def staff() -> Callable[..., Client]:
    """Log in a member of staff who has these permissions and no others."""

    def log_in(*codenames: str) -> Client:
        user = User.objects.create_user(f"staff{User.objects.count()}", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
        assert user.user_permissions.count() == len(codenames)
        client = Client()
        client.force_login(user)
        return client

    return log_in


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


# What there is, and what is not


def test_every_model_has_an_admin() -> None:
    ours = {*apps.get_app_config("conversations").get_models()}
    ours |= {*apps.get_app_config("memory").get_models()}
    assert ours == set(MODELS)
    assert [model for model in MODELS if not admin.site.is_registered(model)] == []


@pytest.mark.parametrize("model", MODELS)
def test_nothing_can_be_added_or_changed(operator: Client, owner: User, model: Any) -> None:
    save("c", turns(2), user=owner, phase=Phase.DUAL_WRITE, items=[{"content": "x"}])
    assert operator.get(url(model, "add")).status_code == 403
    row = model._base_manager.first()
    if row is not None:
        allowed = 405 if model is ConversationState else 403
        assert operator.post(url(model, "change", row.pk), {}).status_code == allowed


@pytest.mark.parametrize("model", [model for model in MODELS if model is not ConversationState])
def test_only_conversations_can_be_deleted(operator: Client, owner: User, model: Any) -> None:
    save("c", turns(2), user=owner, phase=Phase.DUAL_WRITE, items=[{"content": "x"}])
    response = operator.get(url(model, "changelist"))
    assert "delete_selected" not in text_of(response)
    row = model._base_manager.first()
    if row is not None:
        assert operator.post(url(model, "delete", row.pk), {"post": "yes"}).status_code == 403
        assert model._base_manager.filter(pk=row.pk).exists()


@pytest.mark.parametrize("model", MODELS)
def test_one_row_of_every_model_has_a_page(operator: Client, owner: User, model: Any) -> None:
    save("c", turns(2), user=owner, phase=Phase.DUAL_WRITE, items=[{"content": "x"}])
    row = ConversationState.objects.get()
    storage.redact_message("c", 1)
    if model is ConversationConflict:
        ConversationConflict.rows.create(
            conversation=row,
            kind="merged",
            reason="r",
            revision=1,
            detail='{"omitted":[1]}',
            created_at=row.updated_at,
        )
    if model is MemoryMetadata:
        MemoryMetadata.objects.create(conversation=row, key="channel", value="web")
    if model is ConversationTombstone:
        ConversationTombstone.rows.create(
            conversation_id="gone", deleted_at=row.updated_at, reason="deleted"
        )
    if model is ConversationMismatch:
        ConversationMismatch.rows.create(
            conversation_id="c",
            seen_at=row.updated_at,
            phase=1,
            revision=1,
            places='["conversation_history[0].content"]',
        )
    if model in (SyncRun, SyncBatch):
        runs.begin("tables")
        next(runs.work(SyncRun.rows.get().pk))
    found = model._base_manager.last()
    assert operator.get(url(model, "change", found.pk)).status_code == 200
    assert operator.get(url(model, "history", found.pk)).status_code == 200
    assert operator.get(url(model, "changelist")).status_code == 200


def test_a_user_can_be_deleted_in_the_admin_with_all_that_is_theirs(
    operator: Client, owner: User
) -> None:
    save("c", turns(2), user=owner, phase=Phase.DUAL_WRITE, items=[{"content": "x"}])
    address = reverse("admin:auth_user_delete", args=[owner.pk])
    assert "permission" not in text_of(operator.get(address))
    operator.post(address, {"post": "yes"})
    left = {model: model._base_manager.count() for model in MODELS}
    assert left == dict.fromkeys(MODELS, 0) | {ConversationTombstone: 1}


# The list of conversations


def test_the_list_says_whose_how_long_and_where(operator: Client, owner: User) -> None:
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


def test_residence_and_its_filter_agree_for_all_numbers(operator: Client) -> None:
    now = timezone.now()
    pairs = [(revision, legacy) for revision in range(4) for legacy in range(4)]
    for revision, legacy in pairs:
        row = new_row(f"{revision}-{legacy}", now=now, revision=revision, legacy_revision=legacy)
        row.save()
    for residence, condition in CONDITIONS.items():
        wanted = {f"{r}-{lr}" for r, lr in pairs if residence_of(r, lr) == residence}
        rows = ConversationState.objects.filter(condition)
        assert set(rows.values_list("conversation_id", flat=True)) == wanted
        address = url(ConversationState, "changelist", lives=residence.replace(" ", "-"))
        assert operator.get(address).context["cl"].result_count == len(wanted)


@pytest.mark.parametrize(
    ("revision", "legacy_revision", "residence"),
    [
        (3, 0, Residence.TABLES),
        (0, 3, Residence.LEGACY),
        (3, 3, Residence.BOTH),
        (4, 3, Residence.LEGACY_BEHIND),
        (3, 4, Residence.TABLES_BEHIND),
    ],
)
def test_the_higher_number_is_ahead(
    revision: int, legacy_revision: int, residence: Residence
) -> None:
    assert residence_of(revision, legacy_revision) == residence


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


def test_counting_stops_at_the_cap(owner: User, monkeypatch: pytest.MonkeyPatch) -> None:
    save("c", turns(20), user=owner)
    rows = ConversationMessage.objects.order_by("sequence")
    assert CappedPaginator(rows, 5).count == 20
    monkeypatch.setattr("flags.admin.base.MOST_COUNTED", 11)
    assert CappedPaginator(rows, 5).count == 11


def test_items_are_filtered_by_source_type_and_score(operator: Client, owner: User) -> None:
    items = [
        {"content": "a", "source": "chat", "context_type": "fact", "relevance_score": 0.9},
        {"content": "b", "source": "chat", "context_type": "taste", "relevance_score": 0.5},
        {"content": "c", "source": "web", "context_type": "fact", "relevance_score": 0.1},
        {"content": "d", "source": "web", "context_type": "taste"},
    ]
    save("c", [], user=owner, items=items)

    def found(**query: str) -> set[str]:
        response = operator.get(url(MemoryContextItem, "changelist", **query))
        return {item.content for item in response.context["cl"].result_list}

    assert found(source="chat") == {"a", "b"}
    assert found(context_type="fact") == {"a", "c"}
    assert found(score="0.8") == {"a"}
    assert found(score="0") == {"c"}
    assert found(score="unknown") == {"d"}
    assert found(source="web", score="0.4") == set()


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


# The transcript


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


# Conversations that only legacy holds


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


def test_what_is_deleted_but_written_late_by_old_code_is_said_to_be_deleted(
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


# Deleting


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
def test_a_bulk_deletion_that_fails_halfway_reports_what_is_gone(
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


# Permissions


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


# Hostile content and hostile addresses


NAUGHTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "NUL \x00 here",
    "lone \ud800 surrogate",
    "\u202eright to left override",
    "مرحبا",
    "{{ 7|add:7 }} {% load x %}",
    "back\\slash \\u0000",
]


def test_hostile_content_is_shown_and_never_run(operator: Client, owner: User) -> None:
    messages: list[Any] = [{"role": "user", "content": text} for text in NAUGHTY]
    messages += [{"role": text, "content": text, "tool_name": text} for text in NAUGHTY]
    messages += [{"role": "assistant", "content": None, "tool_calls": NAUGHTY}]
    messages += [
        {
            "content": None,
            "tool_calls": [{"id": text, "function": {"name": text, "arguments": text}}],
        }
        for text in NAUGHTY
    ]
    messages += [*NAUGHTY, {text: text for text in NAUGHTY}, [NAUGHTY], None, 1.5]
    items: list[Any] = [{"content": text, "source": text, text: 1} for text in NAUGHTY]
    save("<script>id</script>", messages, user=owner, items=items)
    owner.username = "<script>name</script>"
    owner.save()
    row = ConversationState.objects.get()
    for key in NAUGHTY[:2]:
        MemoryMetadata.objects.create(conversation=row, key=key, value=key)
    pages = [
        url(ConversationState, "changelist"),
        *(page_url(row.conversation_id, tab=tab) for tab in ("transcript", "context", "records")),
        url(ConversationState, "delete", row.pk),
        url(ConversationMessage, "changelist"),
        url(MemoryContextItem, "changelist"),
        url(MemoryMetadata, "changelist"),
        *(url(ConversationMessage, "change", m.pk) for m in ConversationMessage.objects.all()),
        *(url(MemoryContextItem, "change", i.pk) for i in MemoryContextItem.objects.all()),
    ]
    for address in pages:
        response = operator.get(address)
        assert response.status_code == 200
        page = text_of(response)
        assert re.search(r"<script>(alert|id|name)|<img src=x|\x00", page) is None
    page = html.unescape(text_of(operator.get(page_url(row.conversation_id))))
    assert "\u202e" not in page
    for text in NAUGHTY:
        assert visible(text) in page


def test_every_naughty_string_is_shown(operator: Client, owner: User, shared_data: Path) -> None:
    strings = json.loads((shared_data / "naughty_strings.json").read_text())
    save("c", [{"role": "user", "content": text} for text in strings], user=owner)
    page, query = "", "?after=0"
    while query:
        response = operator.get(page_url("c") + query)
        page += html.unescape(text_of(response))
        query = response.context["transcript"].links.get("later", "")
    assert [text for text in strings if visible(text) not in page] == []


def test_pages_have_no_inline_style_and_no_inline_script(operator: Client, owner: User) -> None:
    save("c", turns(3), user=owner, phase=Phase.DUAL_WRITE)
    row = ConversationState.objects.get()
    pages = [
        *(page_url("c", tab=tab) for tab in ("transcript", "context", "records")),
        url(ConversationState, "changelist"),
        url(ConversationState, "delete", row.pk),
        reverse(f"{STATES}_legacy"),
        reverse(f"{STATES}_unmoved_delete") + "?id=x",
        reverse("admin:waffle_switch_changelist"),
    ]
    for address in pages:
        page = text_of(operator.get(address))
        assert re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", page) is None


BAD = ["9999-12-31T23:59:59-05:00|c", "abc", "-1", "9" * 30, "١٢", "1.5", "", "\x00", "1;DROP"]


@pytest.mark.parametrize("value", BAD)
def test_bad_parameters_never_raise(operator: Client, owner: User, value: str) -> None:
    save("c", turns(3), user=owner)
    for name in ("before", "after", "superseded", "role", "tab"):
        assert operator.get(page_url("c", **{name: value})).status_code == 200
    for name in ("p", "o", "q", "lives", "all", "nonsense", "version", "source", "score", "role"):
        for model in MODELS:
            response = operator.get(url(model, "changelist", **{name: value}), follow=True)
            assert response.status_code == 200
    assert operator.get(reverse(f"{STATES}_legacy"), {"before": value}).status_code == 200
    for name in ("unmoved", "unmoved_delete"):
        status = operator.get(reverse(f"{STATES}_{name}"), {"id": value}, follow=True).status_code
        assert status in (200, 404)
    wrong = operator.get(page_url("c").replace("/change", f"{value}x/change"), follow=True)
    assert wrong.status_code in (200, 404)


@pytest.mark.parametrize("value", [*BAD, "5"])
def test_what_makes_no_sense_in_an_address_is_taken_as_not_said(value: str) -> None:
    asked = Asked.of(RequestFactory().get("/", {"before": value, "after": "3"}))
    assert (asked.before, asked.after) == ((5, None) if value == "5" else (None, 3))


KEYS = [
    *("role", "content", "tool_calls", "function_call", "function", "name", "arguments"),
    *("type", "text", "tool_name", "tool_success", "tool_call_id", "input", "id"),
]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None, categories=None)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_value_can_be_shown_as_a_message(value: Any) -> None:
    message = shown_message(StoredMessage(1, None, value, 1))
    texts = [message.role, *message.labels]
    for block in message.blocks:
        texts += [block.title, block.note, block.content.text]
    item = shown_item(value, score=None)
    shown = "".join([*texts, item.source, item.kind, item.content.text, item.rest.text])
    # A lone surrogate, or a part that is no text, could not be sent to a browser.
    assert shown.encode().decode() == shown


@given(JSON)
def test_indenting_changes_nothing_but_the_layout(value: Any) -> None:
    text = json.dumps(value)
    indented = shown_json(text, limit=10**9)
    assert indented.is_json
    assert re.sub(r"\s", "", visible(json.dumps(json.loads(text), ensure_ascii=False))) == re.sub(
        r"\s", "", indented.text
    )


@pytest.mark.parametrize(
    ("message", "blocks"),
    [
        ({"content": "hello"}, [("text", "", "hello")]),
        ({"content": ["a", {"type": "text", "text": "b"}]}, [("text", "", "a"), ("text", "", "b")]),
        (
            {"content": [{"type": "tool_use", "name": "find", "input": {"n": 1}}]},
            [("call", "find", '{\n  "n": 1\n}')],
        ),
        (
            {"content": [{"type": "image", "url": "x"}]},
            [("part", "image", '{\n  "type": "image",\n  "url": "x"\n}')],
        ),
        (
            {"content": None, "function_call": {"name": "find", "arguments": "[1]"}},
            [("call", "find", "[\n  1\n]")],
        ),
        ({"tool_calls": [{"name": "find", "args": {}}]}, [("call", "find", "{}")]),
        ({"tool_calls": ["odd"]}, [("call", "tool call", "odd")]),
        ({"role": "tool", "content": "[]"}, [("result", "Result", "[]")]),
        ({"role": 5, "why": None}, [("rest", "More fields", '{\n  "role": 5,\n  "why": null\n}')]),
    ],
)
def test_every_form_of_message_is_laid_out(message: Any, blocks: Any) -> None:
    laid_out = shown_message(StoredMessage(1, None, message, 1)).blocks
    assert [(block.kind, block.title, block.content.text) for block in laid_out] == blocks


def test_a_long_text_is_cut_and_says_so() -> None:
    cut = shown("x" * 25_000)
    assert (len(cut.text), cut.hidden) == (20_000, 5_000)


# Queries


@pytest.fixture
def filled(transactional_db: None) -> dict[str, str]:
    """60 conversations, one of them with 250 messages and 250 items, one ahead in legacy."""
    user = User.objects.create_user("amira")
    items = [{"content": f"item {n}", "source": f"s{n}"} for n in range(250)]
    for number in range(60):
        save(f"c{number:02}", turns(2), user=user, phase=Phase.DUAL_WRITE)
    save("long", turns(250), user=user, items=items, phase=Phase.DUAL_WRITE)
    save("ahead", turns(250), user=user, items=items, phase=Phase.DUAL_WRITE)
    save("unmoved", turns(250), user=user, items=items, phase=Phase.LEGACY)
    with forced_phase(Phase.LEGACY):
        storage.append_messages("ahead", turns(3))
    first = {model: model._base_manager.first() for model in MODELS}
    pages = {f"list of {model.__name__}": url(model, "changelist") for model in MODELS}
    pages |= {
        f"one {model.__name__}": url(model, "change", row.pk) for model, row in first.items() if row
    }
    for name in ("long", "ahead"):
        for tab in ("transcript", "context", "records"):
            pages[f"{tab} of {name}"] = page_url(name, tab=tab, superseded=1)
        pk = ConversationState.objects.get(conversation_id=name).pk
        pages[f"preview of {name}"] = url(ConversationState, "delete", pk)
    pages["search"] = url(ConversationState, "changelist", q="amira")
    pages["filter"] = url(MemoryContextItem, "changelist", source="s1", score="0.8")
    pages["legacy"] = reverse(f"{STATES}_legacy")
    pages["unmoved"] = reverse(f"{STATES}_unmoved") + "?id=unmoved"
    return pages


def test_no_page_takes_more_than_ten_queries(
    filled: dict[str, str],
    staff: Callable[..., Client],
    django_assert_max_num_queries: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Once in half a second the switches are read anew, whatever a page asks for.
    monkeypatch.setattr("flags.switches.SNAPSHOT_SECONDS", 3600)
    client = staff(*ALL_VIEWS, "delete_conversationstate")
    client.get(filled["search"])
    for name, address in filled.items():
        with django_assert_max_num_queries(10, info=name):
            response = client.get(address)
        assert response.status_code == 200, name
    chosen = {
        "action": "delete_selected",
        "_selected_action": [str(row.pk) for row in ConversationState.objects.all()],
    }
    with django_assert_max_num_queries(10, info="bulk preview"):
        response = client.post(url(ConversationState, "changelist"), chosen)
    assert "Messages, with superseded versions: 620" in text_of(response)


# Switches


@pytest.fixture
def switches() -> type[Any]:
    model = get_waffle_switch_model()
    model.objects.all().delete()
    for name, active in switches_for(Phase.DUAL_WRITE).items():
        model.objects.create(name=name, active=active)
    model.objects.create(name="a_host's_own", note="note of the host")
    return model


def phase_shown(response: Any) -> str:
    found = re.search(r'<aside class="flags-phase.*?</aside>', text_of(response), re.S)
    assert found is not None
    return " ".join(re.sub(r"<[^>]+>", " ", found[0]).split())


def test_the_list_of_switches_says_what_each_does_and_the_phase(
    operator: Client, switches: Any
) -> None:
    response = operator.get(reverse("admin:waffle_switch_changelist"))
    page = html.unescape(text_of(response))
    for text in [*map(HELP_TEXTS.get, ROUTING), "note of the host"]:
        assert text in page
    assert phase_shown(response) == (
        "dual_write The switches spell this phase."
        " Saves write both stores, legacy decides Loads prefer legacy"
    )


def test_an_emergency_is_shown_above_all(operator: Client, switches: Any) -> None:
    switches.objects.create(name=Switch.EMERGENCY_ROLLBACK, active=True)
    said = phase_shown(operator.get(reverse("admin:waffle_switch_changelist")))
    assert said.startswith("emergency rollback It overrules the other switches.")
    assert "Saves write legacy Loads prefer legacy" in said


def test_mixed_switches_are_named_with_what_to_turn(operator: Client, switches: Any) -> None:
    switches.objects.filter(name=Switch.USE_NEW_SAVE).update(active=False)
    pk = switches.objects.get(name=Switch.USE_NEW_SAVE).pk
    for address in (
        reverse("admin:waffle_switch_changelist"),
        reverse("admin:waffle_switch_change", args=[pk]),
    ):
        said = phase_shown(operator.get(address))
        assert said.startswith("mixed switches They spell no phase, and act as dual_write")
        assert "turn use_new_save on." in said


def test_switches_that_cannot_be_read_are_not_guessed(operator: Client, switches: Any) -> None:
    with mock.patch("flags.admin.switches.try_read_settings", return_value=None):
        response = operator.get(reverse("admin:waffle_switch_changelist"))
    assert response.status_code == 200
    assert "flags-phase" not in text_of(response)


def test_an_admin_that_the_host_made_for_switches_is_left_alone(switches: Any) -> None:
    class HostsAdmin(SwitchAdmin):
        pass

    site = admin.AdminSite()
    register(site)
    assert not site.is_registered(switches)
    site.register(switches, HostsAdmin)
    register(site)
    assert type(site.get_model_admin(switches)) is HostsAdmin


def test_without_legacy_the_switches_are_said_to_decide_nothing(
    operator: Client, switches: Any, settings: Any
) -> None:
    settings.CONVERSATIONS = {}
    said = phase_shown(operator.get(reverse("admin:waffle_switch_changelist")))
    assert said.startswith("new_only LEGACY is not set")


def test_our_switch_is_flipped_but_not_renamed(operator: Client, switches: Any) -> None:
    switch = switches.objects.get(name=Switch.USE_NEW_LOAD)
    address = reverse("admin:waffle_switch_change", args=[switch.pk])
    page = html.unescape(text_of(operator.get(address)))
    assert HELP_TEXTS[Switch.USE_NEW_LOAD] in page
    form = {"name": "renamed", "active": "on", "note": ""}
    form |= {f"{field}_0": "2030-01-01" for field in ("created", "modified")}
    form |= {f"{field}_1": "00:00:00" for field in ("created", "modified")}
    assert operator.post(address, form).status_code == 302
    switch.refresh_from_db()
    assert (switch.name, switch.active) == (Switch.USE_NEW_LOAD, True)


def test_switches_are_not_deleted_behind_waffles_cache(operator: Client, switches: Any) -> None:
    page = text_of(operator.get(reverse("admin:waffle_switch_changelist")))
    assert 'value="delete_individually"' in page
    assert 'value="delete_selected"' not in page


def test_other_switches_are_edited_as_before(operator: Client, switches: Any) -> None:
    switch = switches.objects.get(name="a_host's_own")
    address = reverse("admin:waffle_switch_change", args=[switch.pk])
    assert 'name="name"' in text_of(operator.get(address))


# What has no index is looked for among the latest rows


def found_in(operator: Client, model: Any, **query: Any) -> list[int]:
    listed = operator.get(url(model, "changelist", **query)).context["cl"]
    return sorted(row.pk for row in listed.result_list)


def test_filters_and_searches_look_at_the_latest_rows_and_ids_at_all(
    operator: Client, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReadOnlyAdmin, "most_filtered", 5)
    save("old", turns(4), user=owner)
    save("new", turns(4), user=owner)
    pks = list(ConversationMessage.rows.order_by("pk").values_list("pk", flat=True))
    ConversationMessage.rows.update(tool_name="search")
    of_users = [pk for place, pk in enumerate(pks) if place % 2]
    # The latest five, and of these the user's.
    assert found_in(operator, ConversationMessage, role="user") == of_users[1:]
    assert found_in(operator, ConversationMessage, q="search") == pks[3:]
    assert found_in(operator, ConversationMessage, q="old") == pks[:4]
    assert found_in(operator, ConversationMessage, q="old", role="user") == of_users[:2]
    assert found_in(operator, ConversationMessage, q="nothing") == []
    assert found_in(operator, ConversationMessage) == pks


@pytest.mark.parametrize("model", [MemoryChunk, MemoryMetadata])
def test_what_legacy_says_of_a_conversation_is_found_by_its_id(
    operator: Client, owner: User, monkeypatch: pytest.MonkeyPatch, model: Any
) -> None:
    monkeypatch.setattr(ReadOnlyAdmin, "most_filtered", 2)
    monkeypatch.setattr(ChunkAdmin, "most_filtered", 2)
    for name in ("old", "new"):
        save(name, turns(1), user=owner, phase=Phase.DUAL_WRITE)
    first = MemoryChunk.objects.order_by("pk")[0]
    naming = MemoryMetadata.objects.get(chunk=first, key="conversation_id")
    wanted = first if model is MemoryChunk else naming
    assert found_in(operator, model, q="old") == [wanted.pk]
    assert found_in(operator, model, q="nothing") == []


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


def test_a_list_without_a_search_shows_all_rows_for_any_term(operator: Client) -> None:
    run = SyncRun.rows.create(target="tables", batch_size=1, started_at=timezone.now())
    assert found_in(operator, SyncRun, q="nothing") == [run.pk]


def test_a_list_is_sorted_by_what_has_an_index_alone(operator: Client, owner: User) -> None:
    save("c", turns(3), user=owner)
    pks = list(ConversationMessage.rows.order_by("-pk").values_list("pk", flat=True))
    for place, column in enumerate(admin.site.get_model_admin(ConversationMessage).list_display):
        listed = operator.get(url(ConversationMessage, "changelist", o=place)).context["cl"]
        wanted = pks[::-1] if column == "id" else pks
        assert [row.pk for row in listed.result_list] == wanted or column == "in_conversation"
