"""Some loads are compared with the other store; what differs is recorded, never what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone

from conversations.models import ConversationMessage, ConversationMismatch
from conversations.reading import shadow
from conversations.storage import append_messages, create_new_conversation, load_state, save_state
from conversations.stores.chunks.store import ChunkStore
from flags import metrics, reporter
from flags.histogram import Measure
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk
from tests.faults.injection import failing, touches_legacy
from tests.flags.test_metrics import counted, monitoring
from tests.machine.oldcode import OldSession
from tests.support.factories import messages, state, texts
from tests.support.legacy_schema import old_save
from tests.writing.test_ingest import JSON_COLUMN

pytestmark = pytest.mark.django_db(transaction=True)

BOTH = [Phase.DUAL_WRITE, Phase.NEW_READS, Phase.NEW_PRIMARY]


@pytest.fixture(params=["memory_chunks", OldSession.settings, JSON_COLUMN])
def legacy(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def _every_load(
    settings: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[None]:
    chosen = "memory_chunks"
    if "legacy" in request.fixturenames:
        chosen = request.getfixturevalue("legacy")
    settings.CONVERSATIONS = {"LEGACY": chosen, "SHADOW_SHARE": 1}
    monkeypatch.setattr(reporter, "ensure", lambda: None)
    monitoring(on=True)
    metrics.forget()
    yield
    reporter._waiting.clear()
    metrics.forget()


def compared(store: str) -> Measure:
    return counted().get(("shadow", store), Measure())


@pytest.mark.parametrize("phase", BOTH)
def test_a_matching_comparison_is_evidence(legacy: Any, phase: Phase) -> None:
    with forced_phase(phase):
        save_state("c", state("a", memory_context=[{"b": 1.0, "a": 2}]))
        load_state("c")
        append_messages("c", messages("b"))
        load_state("c", max_messages=1)
    other = "tables" if phase == Phase.DUAL_WRITE else "legacy"
    measure = compared(other)
    assert (measure.count, measure.errors, measure.mismatches) == (2, 0, 0)
    assert not ConversationMismatch.objects.exists()


def test_nothing_against_nothing_is_none() -> None:
    with forced_phase(Phase.NEW_READS):
        load_state(create_new_conversation())
        load_state("missing")
    assert compared("legacy").count == 0


@pytest.mark.parametrize("phase", [Phase.LEGACY, Phase.NEW_ONLY])
def test_where_one_store_is_written_nothing_is_compared(phase: Phase) -> None:
    with forced_phase(phase):
        save_state("c", state("a"))
        load_state("c")
    assert not [key for key in counted() if key[0] == "shadow"]


def test_a_comparison_during_a_write_is_no_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    load, meanwhile = ChunkStore.load, ["b"]

    def written_first(store: ChunkStore, conversation_id: str) -> Any:
        if meanwhile:
            append_messages("c", messages(meanwhile.pop()))
        return load(store, conversation_id)

    with forced_phase(Phase.NEW_READS):
        save_state("c", state("a"))
        monkeypatch.setattr(ChunkStore, "load", written_first)
        assert shadow.compare("c", ChunkStore()) is None
        found = shadow.compare("c", ChunkStore())
    assert found is not None
    assert found.places == ()


def test_the_share_is_kept(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks", "SHADOW_SHARE": 0.25}
    drawn = iter([0.1, 0.3, 0.24, 0.25, 0.9])
    monkeypatch.setattr(shadow.random, "random", lambda: next(drawn))
    with forced_phase(Phase.NEW_READS):
        save_state("c", state("a"))
        for _ in range(5):
            load_state("c")
    assert compared("legacy").count == 2


def test_without_monitoring_nothing_is_compared() -> None:
    monitoring(on=False)
    with forced_phase(Phase.NEW_READS):
        save_state("c", state("a"))
        load_state("c")
    monitoring(on=True)
    assert compared("legacy").count == 0


def test_a_write_that_only_one_store_has_yet_is_no_mismatch() -> None:
    with forced_phase(Phase.NEW_READS):
        save_state("c", state("a"))
        with failing(touches_legacy):
            append_messages("c", messages("behind"))
        load_state("c")
        save_state("d", state("a"))
        old_save(connection, "d", None, state("a", "old code").to_dict())
        assert texts(load_state("d")) == ["a", "old code"]
    assert compared("legacy").mismatches == 0
    reporter.beat()
    assert not ConversationMismatch.objects.exists()


def test_a_difference_is_recorded_with_its_places_and_no_content(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with forced_phase(Phase.NEW_READS):
        save_state("c", state("secret", "words", user_input="kept"))
        ConversationMessage.rows.filter(sequence=2).update(content="garbled")
        load_state("c")
    reporter.beat()
    (found,) = ConversationMismatch.objects.all()
    assert (found.conversation_id, found.phase, found.revision) == ("c", 2, 1)
    assert json.loads(found.places) == ["conversation_history[1]"]
    assert len(found.tables_hash) == len(found.legacy_hash) == 96
    assert found.tables_hash != found.legacy_hash
    assert compared("legacy").mismatches == 1
    everything = json.dumps(list(ConversationMismatch.objects.values()), default=str) + caplog.text
    for word in ("secret", "words", "garbled", "kept"):
        assert word not in everything


@pytest.mark.parametrize(
    ("spoil", "place"),
    [
        (lambda rows: rows.update(content="{broken"), "unreadable in legacy"),
        (
            lambda rows: rows.update(content="{}"),
            "conversation_history: 1 in the tables, 0 in legacy",
        ),
    ],
)
def test_a_spoilt_blob_is_a_mismatch(spoil: Any, place: str) -> None:
    with forced_phase(Phase.NEW_READS):
        save_state("c", state("a"))
        spoil(MemoryChunk.objects.all())
        assert texts(load_state("c")) == ["a"]
    reporter.beat()
    assert json.loads(ConversationMismatch.objects.get().places)[0] == place


def test_a_mismatch_survives_the_rollback_of_the_caller() -> None:
    with forced_phase(Phase.NEW_READS):
        save_state("c", state("a"))
        MemoryChunk.objects.update(content="{broken")
        with transaction.atomic():
            load_state("c")
            transaction.set_rollback(True)
    reporter.beat()
    assert ConversationMismatch.objects.count() == 1


def test_a_comparison_that_fails_is_counted_and_touches_neither_load_nor_transaction() -> None:
    with forced_phase(Phase.NEW_READS):
        save_state("c", state("a"))
        with transaction.atomic():
            with failing(lambda sql: "memory_chunks" in sql):
                assert texts(load_state("c")) == ["a"]
            save_state("other", state("b"))
        assert texts(load_state("other")) == ["b"]
    assert compared("legacy").errors == 1


def test_old_mismatches_are_removed() -> None:
    for age in (metrics.KEPT * 2, metrics.KEPT / 2):
        ConversationMismatch.rows.create(
            conversation_id="c",
            seen_at=timezone.now() - age,
            phase=2,
            revision=1,
            places="[]",
            tables_hash="",
        )
    assert shadow.prune() == 1
    assert ConversationMismatch.objects.count() == 1
