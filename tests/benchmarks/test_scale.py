"""Every list of the admin is measured, found in the admin itself."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client, override_settings
from django.urls import path

from benchmarks import adminpages, scale
from benchmarks.population import populate
from benchmarks.rounds import Run
from conversations.models import ConversationState

pytestmark = pytest.mark.django_db(transaction=True)


def test_every_list_of_the_admin_is_found(run: Run, client: Client) -> None:
    """A list, or a page, that is added later is measured, or the bench says that it cannot be."""
    client.force_login(get_user_model().objects.create_superuser("root"))
    populate(messages=4000, conversations=400, beside=True)
    with override_settings(CONVERSATIONS={"LEGACY": "memory_chunks"}):
        pages = adminpages.pages_of(client)
        groups = {page.group for page in pages}
        for model, shown in admin.site._registry.items():
            name = f"{model._meta.app_label}/{model._meta.model_name}"
            ours = model._meta.app_label in adminpages.OURS or name == "waffle/switch"
            assert (name in groups) == ours
            if ours:
                assert (f"{name}, searched" in groups) == bool(shown.search_fields)
                assert (f"{name}, filtered" in groups) == bool(shown.list_filter)
        assert "conversations_conversationstate_legacy, next" in groups
        assert "flags_transition_health" in groups
        assert len({(page.group, page.what) for page in pages}) == len(pages) > 150
        # A page of a million rows is to be as full as one of ten thousand messages.
        short = {f"flags/{name}" for name in ("transition", "reportingprocess")}
        for name in groups - {f"{name}, next" for name in groups}:
            paged = "/" in name and "," not in name and name != "waffle/switch"
            paged = paged and name not in {*short, "conversations/syncrun"}
            assert not paged or f"{name}, next" in groups


def test_an_admin_page_without_known_queries_is_an_error(
    run: Run, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.force_login(get_user_model().objects.create_superuser("root"))
    shown: Any = admin.site.get_model_admin(ConversationState)
    known = shown.get_urls()
    monkeypatch.setattr(
        shown, "get_urls", lambda: [path("new/", lambda request: None, name="a_new_page"), *known]
    )
    with (
        override_settings(CONVERSATIONS={"LEGACY": "memory_chunks"}),
        pytest.raises(LookupError, match="a_new_page"),
    ):
        adminpages.pages_of(client)


def test_of_pages_with_one_name_the_worst_is_told() -> None:
    pages = [adminpages.Page("a list, filtered", what, "/") for what in ("x", "y", "only here")]
    few, many = (
        scale.Place(name, connection, None, (), None, list(pages[:count]))  # type: ignore[arg-type]
        for name, count in (("few", 3), ("many", 2))
    )
    groups = scale.groups(["load"], [few, many])
    assert groups["admin: a list, filtered"] == [
        f"admin: a list, filtered, {what}" for what in ("x", "y")
    ]
    assert groups["load"] == ["load"]
