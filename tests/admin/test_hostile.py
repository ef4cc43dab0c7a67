"""Hostile content is shown and never run, and a hostile address never raises."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client, RequestFactory
from django.urls import reverse

from conversations.admin.pages import Asked
from conversations.models import ConversationMessage, ConversationState
from flags.admin.text import visible
from flags.phases import Phase
from memory.models import MemoryContextItem, MemoryMetadata
from tests.support.admin_answers import MODELS, STATES, page_url, save, text_of, turns, url

pytestmark = pytest.mark.django_db

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
def test_a_senseless_value_in_an_address_is_ignored(value: str) -> None:
    asked = Asked.of(RequestFactory().get("/", {"before": value, "after": "3"}))
    assert (asked.before, asked.after) == ((5, None) if value == "5" else (None, 3))
