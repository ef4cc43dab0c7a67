"""What the lists of the admin ask the database, and that it is enough: nothing lost or doubled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.staticfiles import finders
from django.core.paginator import Paginator
from django.db import connection
from django.db.models import F
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape

from conversations import storage
from conversations.models import (
    ConversationMessage,
    ConversationMismatch,
    ConversationState,
    ConversationTombstone,
)
from flags.admin import base
from flags.admin.text import visible
from flags.phases import Phase
from flags.switches import forced_phase
from memory.admin.models import ChunkAdmin
from memory.models import MemoryChunk, MemoryContextItem, MemoryMetadata
from tests.support.factories import state

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("root"))
    return client


def address(model: Any, query: str = "") -> str:
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist"
    return f"{reverse(name)}?{query}"


def listed(operator: Client, model: Any, query: str = "") -> list[int]:
    shown = operator.get(address(model, query)).context["cl"]
    return [row.pk for row in shown.result_list]


def save(name: str, *lines: Any, sources: tuple[str, ...] = ()) -> None:
    items = [{"content": "an item", "source": source} for source in sources]
    with forced_phase(Phase.NEW_ONLY):
        storage.save_state(name, state(*lines, memory_context=items))


def chunk(*kinds: str) -> int:
    made = MemoryChunk.objects.create(content="{}", created_at=timezone.now())
    MemoryMetadata.objects.bulk_create(
        MemoryMetadata(chunk=made, key="type", value=kind) for kind in kinds
    )
    return int(made.pk)


def test_chunks_are_filtered_by_kind_among_the_latest(
    operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once, however many rows describe it; and as many as the help text says."""
    monkeypatch.setattr(ChunkAdmin, "most_filtered", 5)
    pks = [chunk("state"), chunk(), chunk("state", "state"), chunk("summary"), chunk("ltm")]
    assert listed(operator, MemoryChunk, "kind=state") == [pks[2], pks[0]]
    assert listed(operator, MemoryChunk, "kind=summary") == [pks[3]]
    assert listed(operator, MemoryChunk, "kind=ltm") == [pks[4]]
    newest = chunk("state")
    assert listed(operator, MemoryChunk, "kind=state") == [newest, pks[2]]
    assert listed(operator, MemoryChunk) == [newest, *reversed(pks)]


def test_a_filter_offers_values_of_the_latest_rows_and_finds_in_more(
    operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MOST_OFFERED", 2)
    save("c", sources=("old", "web", "chat"))
    shown = operator.get(address(MemoryContextItem)).context["cl"]
    offered = next(found for found in shown.filter_specs if found.title == "source")
    assert [value for value, _ in offered.lookup_choices] == ["chat", "web"]
    oldest = MemoryContextItem.objects.order_by("pk")[0].pk
    assert listed(operator, MemoryContextItem, "source=old") == [oldest]
    shown = operator.get(address(MemoryContextItem, "source=old")).context["cl"]
    assert sorted(
        value
        for found in shown.filter_specs
        if found.title == "source"
        for value, _ in found.lookup_choices
    ) == ["chat", "old", "web"]


def test_an_empty_count_saves_the_query_for_rows(operator: Client) -> None:
    save("c", "a")
    table = f'FROM "{ConversationMessage._meta.db_table}"'
    for query, rows, statements in (("role=tool", [], 2), ("role=user", [1], 3)):
        with CaptureQueriesContext(
            connection,
        ) as caught:
            found = listed(operator, ConversationMessage, query)
        assert len(found) == len(rows)
        # Where the latest begin, how many there are, and these.
        asked = [each["sql"] for each in caught if table in each["sql"]]
        assert len(asked) == statements, asked


@pytest.mark.parametrize("order", ["1", "-1", "0", "-0"])
def test_pages_of_messages_by_conversation_show_each_message_once(
    operator: Client, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conversations.admin.records.MessageAdmin.list_per_page", 7)
    for number in range(6):
        save(f"c{number}", *"abcde")
    storage.append_messages("c0", [{"role": "user", "content": "again"}])
    paged: list[int] = []
    for page in range(1, 6):
        paged += listed(operator, ConversationMessage, f"o={order}&p={page}")
    by = "conversation_id" if order.endswith("1") else "pk"
    key = F(by).desc() if order.startswith("-") else F(by).asc()
    wanted = ConversationMessage.rows.order_by(key, "-pk").values_list("pk", flat=True)
    assert paged == list(wanted)


@pytest.mark.parametrize("order", ["", "o=1", "o=-1"])
@pytest.mark.parametrize("model", [ConversationMessage, MemoryContextItem])
def test_the_conversations_of_a_page_are_read_behind_it(
    operator: Client, model: Any, order: str
) -> None:
    """Joined and sorted by conversation, SQLite begins with all of them: 0.5 s of 10,000."""
    for name in ("a", "b"):
        save(name, "line", sources=("web",))
    with CaptureQueriesContext(connection) as caught:
        response = operator.get(address(model, order))
    assert response.content.count(b"conversationstate/") >= 2
    tables = {model._meta.db_table, ConversationState._meta.db_table}
    asked = [sql for each in caught for sql in [each["sql"]] if tables & set(sql.split('"'))]
    assert [sql for sql in asked if tables <= set(sql.split('"'))] == []
    behind = f'FROM "{ConversationState._meta.db_table}"'
    assert len([sql for sql in asked if behind in sql]) == 1


def said(response: Any) -> str:
    """Return what a page says, without its tags, between blanks."""
    words = re.sub(r"<[^>]+>", " ", response.content.decode()).split()
    return f" {' '.join(words)} "


@pytest.mark.parametrize("most", [11, 10_001])
def test_a_list_that_stopped_counting_says_so(
    operator: Client, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(base, "MOST_COUNTED", most)
    monkeypatch.setattr("conversations.admin.records.MessageAdmin.list_per_page", 3)
    monkeypatch.setattr("conversations.admin.states.ConversationAdmin.list_per_page", 3)
    for number in range(14):
        save(f"c{number:02}", "a")
    messages = operator.get(address(ConversationMessage))
    conversations = operator.get(address(ConversationState))
    if most == 11:
        assert " more than 10 messages " in said(messages)
        assert "Select all more than 10 conversations " in said(conversations)
        assert "All more than 10 selected" in said(conversations)
        counts = r"\b1[14] (?:messages|results|conversations|selected|total)"
        assert re.findall(counts, said(messages) + said(conversations)) == []
        # The fourth page would show one row, and others would follow.
        assert messages.context["cl"].paginator.num_pages == 3
    else:
        assert " 14 messages " in said(messages)
        assert "Select all 14 conversations " in said(conversations)
        assert "more than" not in said(messages) + said(conversations)
        assert messages.context["cl"].paginator.num_pages == 5
    # Filtered and searched, what is found is counted by itself.
    assert " 1 message " in said(operator.get(address(ConversationMessage, "q=c07")))


def test_a_list_with_a_paginator_of_the_hosts_own_shows_its_count(
    operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MOST_COUNTED", 3)
    monkeypatch.setattr("conversations.admin.records.MessageAdmin.paginator", Paginator)
    save("c", *"abcde")
    assert " 5 messages " in said(operator.get(address(ConversationMessage)))


@pytest.mark.parametrize("name", ["i" * 255, "معرف-المحادثة", "an id with blanks", "\x01<b>"])
def test_an_id_stays_on_one_line_and_is_whole_in_its_title(operator: Client, name: str) -> None:
    """In every list that names a conversation; the sheet that cuts it comes with the page."""
    save(name, "a", sources=("web",))
    ConversationTombstone.rows.create(conversation_id=name, reason="r", deleted_at=timezone.now())
    ConversationMismatch.rows.create(
        conversation_id=name, seen_at=timezone.now(), phase=1, revision=1, places="[]"
    )
    title = (
        f'<bdi class="reading-name" title="{escape(visible(name))}">{escape(visible(name))}</bdi>'
    )
    for model in (
        ConversationState,
        ConversationMessage,
        MemoryContextItem,
        ConversationTombstone,
        ConversationMismatch,
    ):
        page = operator.get(address(model)).content.decode()
        assert title in page, model
        assert 'href="/static/flags/reading.css"' in page
        assert 'href="/static/flags/lists.css"' in page
    sheet = finders.find("flags/reading.css")
    assert isinstance(sheet, str)
    rules = re.findall(r"([^{}]*)\{([^}]*)\}", Path(sheet).read_text())
    (rule,) = [body for selector, body in rules if selector.strip().endswith("*/\n.reading-name")]
    for line in ("white-space: nowrap;", "text-overflow: ellipsis;", "overflow: hidden;"):
        assert line in rule


def test_an_id_breaks_in_the_heading_of_a_page_and_in_the_way_to_it(operator: Client) -> None:
    """It may have no blank: one of 255 characters made the page three times as wide."""
    save("i" * 255, "a")
    with forced_phase(Phase.LEGACY):
        storage.save_state("l" * 255, state("a"))
    ConversationTombstone.rows.create(
        conversation_id="t" * 255, reason="r", deleted_at=timezone.now()
    )
    conversation = ConversationState.rows.get()
    tombstone = ConversationTombstone.rows.get()
    for name, args, query in (
        ("state_change", [conversation.pk], ""),
        ("state_history", [conversation.pk], ""),
        ("state_delete", [conversation.pk], ""),
        ("state_unmoved", [], f"?id={'l' * 255}"),
        ("state_unmoved_delete", [], f"?id={'l' * 255}"),
        ("tombstone_change", [tombstone.pk], ""),
        ("tombstone_history", [tombstone.pk], ""),
    ):
        page = operator.get(reverse(f"admin:conversations_conversation{name}", args=args) + query)
        assert 'href="/static/flags/lists.css"' in page.content.decode(), name
    sheet = finders.find("flags/lists.css")
    assert isinstance(sheet, str)
    (rule,) = [each for each in Path(sheet).read_text().split("}") if ".breadcrumbs" in each]
    assert "overflow-wrap: anywhere;" in rule
    for place in (".breadcrumbs", "#content h1", "#content h2", ".messagelist li", ".readonly"):
        assert place in rule


def test_the_name_of_a_tool_breaks_in_a_transcript() -> None:
    sheet = finders.find("conversations/conversation.css")
    assert isinstance(sheet, str)
    rules = Path(sheet).read_text().split("}")
    (rule,) = [each for each in rules if each.strip().startswith(".cs summary {")]
    assert "overflow-wrap: anywhere;" in rule


@pytest.mark.parametrize(
    ("sheet", "place", "body"),
    [
        ("flags/reading.css", "#changelist .field-shown_id", "max-width: 0;"),
        ("flags/reading.css", "#changelist .field-in_conversation", "max-width: 0;"),
        ("flags/reading.css", ".reading-excerpt", "overflow-wrap: anywhere;"),
        ("flags/lists.css", "#changelist table thead th", "white-space: normal;"),
        ("flags/lists.css", "#changelist td.nowrap", "white-space: normal;"),
    ],
)
def test_columns_give_way_so_that_none_is_cut_off(sheet: str, place: str, body: str) -> None:
    """Beside the filters a list has 630 of 1,280 pixels. Seen in a browser, these rules do it."""
    found = finders.find(sheet)
    assert isinstance(found, str)
    rules = [each.partition("{") for each in Path(found).read_text().split("}")]
    assert any(place in selector and body in inner for selector, _, inner in rules)
