"""Every model has an admin for reading: nothing is editable, and lists stay bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from conversations import storage
from conversations.models import (
    ConversationConflict,
    ConversationMessage,
    ConversationMismatch,
    ConversationState,
    ConversationTombstone,
    SyncBatch,
    SyncRun,
)
from conversations.rollout.sync import runs
from flags.admin.base import CappedPaginator, ReadOnlyAdmin
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryContextItem, MemoryMetadata
from tests.support.admin_answers import (
    ALL_VIEWS,
    MODELS,
    STATES,
    found_in,
    page_url,
    save,
    text_of,
    turns,
    url,
)

pytestmark = pytest.mark.django_db


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


def test_counting_stops_at_the_cap(owner: User, monkeypatch: pytest.MonkeyPatch) -> None:
    save("c", turns(20), user=owner)
    rows = ConversationMessage.objects.order_by("sequence")
    assert CappedPaginator(rows, 5).count == 20
    monkeypatch.setattr("flags.admin.base.MOST_COUNTED", 11)
    assert CappedPaginator(rows, 5).count == 11


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
    # Once in half a second the switches are read anew, on any page.
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
