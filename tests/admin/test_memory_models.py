"""Context items, metadata and chunks are found by filters and searches."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from flags.admin.base import ReadOnlyAdmin
from flags.phases import Phase
from memory.admin.models import ChunkAdmin
from memory.models import MemoryChunk, MemoryContextItem, MemoryMetadata
from tests.support.admin_answers import found_in, save, turns, url

pytestmark = pytest.mark.django_db


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


@pytest.mark.parametrize("model", [MemoryChunk, MemoryMetadata])
def test_chunks_and_metadata_of_legacy_are_found_by_conversation_id(
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
