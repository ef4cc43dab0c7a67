"""Who wrote into legacy: what is ours, or was there before, is never taken for old code's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from conversations import storage
from conversations.models import ConversationState
from conversations.rollout.findings import findings
from conversations.rollout.gates import traffic
from conversations.storage import ANY_OWNER
from conversations.stores.registry import configured_store
from flags import processes, records, reporter, transitions
from flags.gates import GateResult, Step
from flags.phases import Phase
from flags.switches import snapshot
from flags.transitions import status
from memory.models import MemoryChunk
from tests.commands.test_conversations import run
from tests.conformance.test_stores import APPENDED, TEXT, VERSIONED
from tests.faults.injection import failing, mentions_tables
from tests.flags.test_emergency import set_emergency
from tests.flags.test_switches import set_rows
from tests.support.blobs.models import TextSession, VersionedSession
from tests.support.factories import UserFactory, messages, state
from tests.support.hostshapes.models import Entry
from tests.support.legacy_schema import old_save
from tests.support.rollout import EASED

pytestmark = pytest.mark.django_db(transaction=True)

STORES: dict[str, Any] = {
    "chunks": "memory_chunks",
    "text": TEXT,
    "text with a time": VERSIONED,
    "appended": APPENDED,
}
TIMED = ("chunks", "text with a time")


@pytest.fixture(params=STORES, autouse=True)
def legacy(
    request: pytest.FixtureRequest, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    settings.CONVERSATIONS = {
        "LEGACY": STORES[request.param],
        **EASED,
        "FOREIGN_QUIET": timedelta(hours=24),
    }
    monkeypatch.setattr(reporter, "ensure", lambda: None)
    enter(Phase.LEGACY)
    yield request.param
    set_emergency(on=False)


def enter(phase: Phase) -> None:
    set_rows(phase)
    snapshot.forget()
    status()


def others_write(legacy: str, name: str, *said: str, at: Any = None) -> None:
    """Write as old code does."""
    data = state(*said).to_dict()
    if legacy == "chunks":
        old_save(connection, name, None, data, created_at=at)
        return
    payload = {"payload": json.dumps(data)}
    if legacy == "appended":
        Entry.objects.create(session_key=name, **payload)
    elif legacy == "text":
        TextSession.objects.update_or_create(session_key=name, defaults=payload)
    else:
        payload = payload | {"changed_at": at or timezone.now()}
        VersionedSession.objects.update_or_create(session_key=name, defaults=payload)


def gate() -> GateResult:
    now = timezone.now()
    return traffic.foreign_writes(Step(Phase.DUAL_WRITE, Phase.NEW_READS, now, now))


def seen() -> set[str]:
    """Return what is taken for old code's, by the gate and by the findings alike."""
    ids = set(gate().evidence["ids"])
    assert gate().passed is not bool(ids)
    assert findings().foreign_writes == len(ids)
    assert findings().pending == 0
    return ids


def synced() -> None:
    assert run("sync", "--to", "tables")[0] == 0


def everything_of_ours(name: str, user: Any) -> None:
    """Call every function that writes, on one conversation and on others."""
    storage.save_state(name, state("a"), user)
    storage.append_messages(name, messages("b"), keys=["b"])
    storage.replace_message(name, "b", messages("c")[0])
    storage.update_state_partial(name, {"step_count": 2, "new_context_items": ["i"]})
    loaded = storage.load_state(name, user_id=user)
    loaded.conversation_history += messages("d")
    storage.save_state(name, loaded, user)
    storage.remove_messages(name, last=1)
    storage.redact_message(name, 1)
    storage.fork_conversation(name)
    storage.clear_conversation(name)
    open_one = storage.create_new_conversation(ANY_OWNER)
    storage.claim_conversation(open_one, user)
    storage.delete_conversation(storage.create_new_conversation(user), user)


def test_nothing_of_ours_is_taken_for_old_codes() -> None:
    """In any phase, and in any phase after it."""
    user = UserFactory()
    for place, phase in enumerate([*Phase, *reversed(Phase), *Phase]):
        enter(phase)
        everything_of_ours(f"c{place}", user)
        for earlier in range(place):
            storage.append_messages(f"c{earlier}", messages(f"in {phase.label}"))
        if phase != Phase.LEGACY:
            assert seen() == set()
    enter(Phase.DUAL_WRITE)
    synced()
    assert run("sync", "--to", "legacy")[0] == 0
    assert seen() == set()


def test_our_own_writes_in_phase_legacy_keep_no_gate_waiting(legacy: str) -> None:
    storage.save_state("saved since", state("a"))
    for name in ("ours", "loaded"):
        storage.save_state(name, state("a"))
    others_write(legacy, "there before", "a")
    enter(Phase.DUAL_WRITE)
    storage.append_messages("saved since", messages("b"))
    storage.list_messages("loaded")
    synced()
    assert seen() == set()
    synced()
    assert seen() == set()


def test_a_write_of_old_code_over_ours_is_seen(legacy: str) -> None:
    storage.save_state("c", state("a"))
    enter(Phase.DUAL_WRITE)
    storage.save_state("d", state("a"))
    synced()
    assert seen() == set()
    others_write(legacy, "c", "a", "theirs")
    storage.load_state("c")
    assert seen() == {"c"}
    others_write(legacy, "d", "a", "theirs")
    synced()
    assert seen() == {"c", "d"}


def test_a_new_conversation_of_old_code_is_seen(legacy: str) -> None:
    """At once where legacy has times; else once a sync has taken in all that was there before."""
    others_write(legacy, "before", "a")
    enter(Phase.DUAL_WRITE)
    if legacy in TIMED:
        others_write(legacy, "meanwhile", "a")
    synced()
    assert seen() == ({"meanwhile"} if legacy in TIMED else set())
    already = seen()
    for number, take_in in enumerate(TAKING_IN):
        others_write(legacy, f"new {number}", "a")
        take_in(f"new {number}")
        already.add(f"new {number}")
        assert seen() == already


TAKING_IN: list[Callable[[str], Any]] = [
    lambda name: synced(),
    lambda name: storage.append_messages(name, messages("b")),
    lambda name: run("sync", "--to", "tables", name),
]


def test_a_failed_conversation_of_a_sync_was_there_before(legacy: str) -> None:
    """Repairing the table that would not take it is no write of old code."""
    others_write(legacy, "c", "a")
    others_write(legacy, "d", "a")
    enter(Phase.DUAL_WRITE)
    store: Any = configured_store()
    model = MemoryChunk if legacy == "chunks" else store.model
    column = "content" if legacy == "chunks" else "payload"
    first = model.objects.order_by("pk")[0]
    model.objects.filter(pk=first.pk).update(**{column: "{"})
    assert run("sync", "--to", "tables")[0] == 1
    model.objects.filter(pk=first.pk).update(**{column: getattr(first, column)})
    synced()
    assert seen() == set()


def test_old_times_are_old_for_every_writer(legacy: str) -> None:
    if legacy not in TIMED:
        pytest.skip("there are no times")
    enter(Phase.DUAL_WRITE)
    others_write(legacy, "c", "a", at=timezone.now() - timedelta(hours=30))
    synced()
    assert seen() == set()


def test_a_canary_and_an_emergency_write_legacy_alone(legacy: str) -> None:
    """What they leave there is ours, and evidence begins anew behind them."""
    processes.report()
    transitions.advance(percent=0)
    storage.save_state("beside the canary", state("a"))
    transitions.canary(100)
    synced()
    assert seen() == set()
    transitions.emergency()
    storage.save_state("in the emergency", state("a"))
    transitions.resume()
    storage.load_state("in the emergency")
    synced()
    assert seen() == set()
    others_write(legacy, "beside the canary", "a", "theirs")
    synced()
    assert seen() == {"beside the canary"}


def test_a_blind_write_to_legacy_counts_and_the_gate_says_so() -> None:
    """It carries no mark, and a host's row has no place for one."""
    storage.save_state("c", state("a"))
    enter(Phase.DUAL_WRITE)
    storage.append_messages("c", messages("b"))
    assert (seen(), gate().fix.count("did not answer")) == (set(), 1)
    with failing(mentions_tables):
        assert storage.append_messages("c", messages("c"))["stores"] == ["legacy"]
    storage.load_state("c")
    assert seen() == {"c"}
    assert "our own saves that went to legacy while the tables did not answer" in gate().fix


def test_where_nothing_is_recorded_nothing_without_a_row_is_evidence(legacy: str) -> None:
    enter(Phase.LEGACY)
    assert records.tables_written_since() is None
    others_write(legacy, "c", "a")
    synced()
    (noted,) = ConversationState.rows.values_list("foreign_written_at", flat=True)
    assert (noted is None) is (legacy not in TIMED)
    assert set(gate().evidence["ids"]) == set()
    enter(Phase.DUAL_WRITE)
    assert records.tables_written_since() is not None
    assert seen() == set()
