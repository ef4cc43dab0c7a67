"""The store that LEGACY names: by its name, as a table of the host, or by the path of a class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from django.core.checks import CheckMessage, Warning
from django.core.exceptions import ImproperlyConfigured

from conversations import storage
from conversations.checks.legacy import check_legacy
from conversations.stores.base import LegacyStore
from conversations.stores.chunks.store import ChunkStore
from conversations.stores.jsonfield.appended_rows import AppendedRows
from conversations.stores.jsonfield.store import JSONFieldStore
from conversations.stores.registry import configured_store
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk
from tests.support.factories import state, texts

MAPPING = {"model": "blobs.TextSession", "conversation_id": "session_key", "state": "payload"}


class OwnStore(ChunkStore):
    """A store of a host, with a key of its own in the mapping."""

    def __init__(self, legacy: Mapping[str, Any]) -> None:
        self.shelf = legacy["shelf"]

    @classmethod
    def check(cls, legacy: Mapping[Any, Any]) -> Iterable[CheckMessage]:
        if "shelf" not in legacy:
            yield Warning("LEGACY lacks shelf.", id="host.W001")


class ShelvedStore(ChunkStore):
    """A store of a host that leaves the check of its keys to ours."""

    def __init__(self, legacy: Mapping[str, Any]) -> None:
        self.shelf = legacy.get("shelf")


class HalfStore:
    """A class that keeps some promises of LegacyStore."""

    def load(self, conversation_id: str) -> None:
        return None


OWN = {"store": f"{__name__}.OwnStore", "shelf": "upper"}


@pytest.mark.parametrize(
    ("legacy", "kind"),
    [
        ("memory_chunks", ChunkStore),
        (MAPPING, JSONFieldStore),
        (MAPPING | {"newest_by": "id"}, AppendedRows),
        (OWN, OwnStore),
        ({"store": f"{__name__}.ShelvedStore"}, ShelvedStore),
    ],
)
def test_each_form_of_the_setting_makes_its_store(settings: Any, legacy: Any, kind: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": legacy}
    found = configured_store()
    assert type(found) is kind
    assert isinstance(found, LegacyStore)
    assert check_legacy() == []


@pytest.mark.django_db
def test_a_hosts_own_store_takes_part_in_the_rollout(settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": OWN}
    with forced_phase(Phase.DUAL_WRITE):
        assert set(storage.save_state("c", state("a"))["stores"]) == {"legacy", "tables"}
    assert MemoryChunk.objects.count() == 1
    for phase in (Phase.LEGACY, Phase.NEW_ONLY):
        with forced_phase(phase):
            assert texts(storage.load_state("c")) == ["a"]


@pytest.mark.parametrize(
    ("store", "text"),
    [
        (5, "is 5, no dotted path"),
        ("nowhere.Store", "names 'nowhere.Store', which cannot be imported"),
        (f"{__name__}.OWN", f"names '{__name__}.OWN', which is no class"),
        (f"{__name__}.HalfStore", f"names '{__name__}.HalfStore', which lacks blobs, check, claim"),
    ],
)
def test_a_value_that_is_no_store_is_refused_by_name(settings: Any, store: Any, text: str) -> None:
    settings.CONVERSATIONS = {"LEGACY": {"store": store}}
    (error,) = check_legacy()
    assert error.id == "conversations.E004"
    assert error.msg.startswith(f'CONVERSATIONS["LEGACY"]["store"] {text}')
    with pytest.raises(ImproperlyConfigured, match="describes no store"):
        configured_store()


def test_a_hosts_own_store_checks_its_own_keys(settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": {"store": OWN["store"]}}
    assert [message.id for message in check_legacy()] == ["host.W001"]
