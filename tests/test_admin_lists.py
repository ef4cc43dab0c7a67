"""What the lists of the admin ask the database, and that it is enough: nothing lost or doubled."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.db.models import F
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from conversations import storage
from conversations.models import ConversationMessage, ConversationState
from flags.phases import Phase
from flags.switches import forced_phase
from memory.admin import reading
from memory.admin.models import ChunkAdmin
from memory.models import MemoryChunk, MemoryContextItem, MemoryMetadata
from tests.factories import state

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
    """Each once, whatever rows describe it; and as many as the help text says."""
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
    monkeypatch.setattr(reading, "MOST_OFFERED", 2)
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


def test_what_is_counted_to_be_none_is_not_looked_for_again(operator: Client) -> None:
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
