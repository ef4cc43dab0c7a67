"""Many conversations are verified at once, and found to be what each is when it is alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from conversations.models import ConversationMessage, ConversationState
from conversations.rollout.runs import working
from conversations.rollout.sync import sync
from conversations.rollout.verification import IN_ORDER, Kind, Verified, bulk, runs, verify
from conversations.routing import ids
from conversations.storage import (
    append_messages,
    delete_conversation,
    remove_messages,
    save_state,
)
from conversations.stores.normalized import content_sizes
from conversations.stores.registry import configured_store
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryContextItem
from tests.faults.injection import failing, touches_messages
from tests.machine.oldcode import OldChunks, OldSession
from tests.support.blobs.models import AssistantSession, TextSession
from tests.support.factories import message, messages, state

pytestmark = pytest.mark.django_db(transaction=True)

JSON_COLUMN = {
    "model": "blobs.AssistantSession",
    "conversation_id": "session_key",
    "owner": "owner",
    "state": "data",
    "version": "version",
}
STORES: dict[str, Any] = {
    "memory_chunks": "memory_chunks",
    "text": OldSession.settings,
    "json": JSON_COLUMN,
    "none": None,
}
postgresql = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="SQLite has one writer at a time"
)


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, settings: Any) -> str:
    settings.CONVERSATIONS = {"LEGACY": STORES[request.param]} if STORES[request.param] else {}
    settings.CONVERSATIONS["REQUIRE_OWNER"] = False
    return str(request.param)


def write_legacy(store: str, name: str, data: Any) -> None:
    """Let old code write a blob, which need not be a state."""
    if store == "memory_chunks":
        OldChunks().write(name, data)
    elif store == "text":
        OldSession().write(name, data)
    elif store == "json":
        AssistantSession.objects.update_or_create(
            session_key=name, defaults={"data": data, "version": 7}
        )


def change_legacy(name: str, old: str, new: str) -> None:
    """Change a stored state without a trace in the token."""
    for chunk in MemoryChunk.objects.filter(metadata__value=name):
        MemoryChunk.objects.filter(pk=chunk.pk).update(content=str(chunk.content).replace(old, new))
    for row in AssistantSession.objects.filter(session_key=name):
        changed = json.loads(json.dumps(row.data).replace(old, new))
        AssistantSession.objects.filter(pk=row.pk).update(data=changed)


def some_of_everything(store: str) -> list[str]:
    rich = {"memory_context": [{"content": "i", "source": "s", "relevance_score": 0.5}]}
    names = ["a", "b", "edited", "behind", "ahead", "foreign", "aside", "gone", "other", "lies"]
    names += ["unreadable", "vanished", "items", "counts", "number"]
    with forced_phase(Phase.DUAL_WRITE):
        for name in names:
            save_state(name, state(name, "two", **rich))
        save_state("edited", state("edited", "other", **rich))
        remove_messages("edited", [1])
        save_state("number", state("n", extra={"score": 1e23, "z": 1, "a": -0.0}))
        delete_conversation("gone")
    with forced_phase(Phase.NEW_ONLY):
        append_messages("behind", messages("more"))
        save_state("tables", state("t"))
    if store != "none":
        with forced_phase(Phase.LEGACY):
            append_messages("ahead", messages("more"))
            save_state("unmoved", state("u"))
    write_legacy(store, "foreign", state("foreign", "two", "late").to_dict())
    write_legacy(store, "gone", state("late").to_dict())
    write_legacy(store, "aside", {"conversation_history": "no list"})
    with forced_phase(Phase.DUAL_WRITE):
        append_messages("aside", messages("more"))
    change_legacy("other", '"two"', '"three"')
    change_legacy("unreadable", '"conversation_history": [', '"conversation_history": [3, ')
    for model, key in ((TextSession, "session_key"), (AssistantSession, "session_key")):
        model.objects.filter(**{key: "vanished"}).delete()
    rows = ConversationMessage.rows
    rows.filter(conversation__conversation_id="lies", sequence=2).update(content="x")
    MemoryContextItem.objects.filter(conversation__conversation_id="items").update(content="x")
    ConversationState.rows.filter(conversation_id="counts").update(message_count=7)
    return [*names, "tables", "unmoved", "nowhere"]


def rolled_back(call: Callable[[], Any]) -> Any:
    with transaction.atomic():
        found = call()
        transaction.set_rollback(True)
    return found


def notes() -> dict[str, int]:
    return dict(ConversationState.rows.values_list("conversation_id", "verified_revision"))


def test_a_verification_of_many_agrees_with_one_of_each(store: str) -> None:
    names = some_of_everything(store)

    def alone() -> Any:
        return [found for name in names for found in verify([name])], notes()

    def at_once() -> Any:
        return list(verify(names)), notes()

    expected = rolled_back(alone)
    assert rolled_back(at_once) == expected
    kinds = {kind for found in expected[0] for kind in found.kinds}
    assert {Kind.TABLES_ONLY, Kind.DIGEST_LIES, Kind.UNKNOWN} <= kinds
    if store != "none":
        assert {Kind.EQUAL, Kind.PENDING, Kind.LEGACY_BEHIND, Kind.DELETED} <= kinds
    if store in ("memory_chunks", "json"):
        assert Kind.DIFFERENT in kinds
    # And it was at once: nothing of what is in order is looked at alone.
    legacy = configured_store()
    with transaction.atomic():
        settled = bulk.verify_all(legacy, names)
        transaction.set_rollback(True)
    in_order = {one.conversation_id for one in expected[0] if set(one.kinds) <= IN_ORDER}
    assert in_order - settled.keys() <= {"gone"}


COUNT = 400


def statements(call: Callable[[], Any]) -> int:
    """Return how many statements a call takes, besides BEGIN, COMMIT and SAVEPOINT."""
    with CaptureQueriesContext(connection) as queries:
        call()
    around = ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE")
    return sum(not query["sql"].startswith(around) for query in queries)


def test_verifying_takes_half_a_statement_a_conversation_at_most(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A slow machine gets smaller batches, which is no matter of this test.
    monkeypatch.setattr(working, "TARGET_SECONDS", 60)
    with forced_phase(Phase.NEW_ONLY if store == "none" else Phase.LEGACY):
        for number in range(COUNT):
            save_state(f"c{number}", state("one", "two", memory_context=[{"content": "i"}]))
    if store != "none":
        assert sum(1 for _ in sync("tables")) == COUNT
    kind = Kind.TABLES_ONLY if store == "none" else Kind.EQUAL
    found: list[Any] = []
    # The first one notes what it finds, the second has nothing to note.
    for _ in range(2):
        whole = statements(lambda: [found.extend(done) for done in runs.work(runs.begin())])
        assert whole <= COUNT / 2
    assert statements(lambda: found.extend(verify())) <= COUNT / 10
    assert [one.kinds for one in found] == [(kind,)] * COUNT * 3


def test_a_conversation_with_a_write_in_progress_is_verified_again(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is read, then comes a write, then the messages are read: too many of them."""
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    with forced_phase(Phase.DUAL_WRITE):
        for name in "abc":
            save_state(name, state(name))
    whole = bulk.contents_of

    def contents_of(keys: Any) -> Any:
        with forced_phase(Phase.DUAL_WRITE):
            append_messages("b", messages("meanwhile"))
        return whole(keys)

    monkeypatch.setattr(bulk, "contents_of", contents_of)
    assert [one.kinds for one in verify()] == [(Kind.EQUAL,)] * 3
    revisions = ConversationState.rows.order_by("conversation_id")
    assert list(revisions.values_list("revision", "verified_revision")) == [(1, 1), (2, 2), (1, 1)]


def test_a_conversation_written_during_its_verification_is_not_noted(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    with forced_phase(Phase.DUAL_WRITE):
        for name in "ab":
            save_state(name, state(name))
    whole = bulk._set_aside

    def set_aside(rows: Any) -> Any:
        with forced_phase(Phase.DUAL_WRITE):
            append_messages("b", messages("behind the looks"))
        return whole(rows)

    monkeypatch.setattr(bulk, "_set_aside", set_aside)
    assert [one.kinds for one in verify()] == [(Kind.EQUAL,)] * 2
    assert notes() == {"a": 1, "b": -1}


def test_one_that_fails_keeps_no_other_from_its_turn(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    names = [f"c{number}" for number in range(8)]
    with forced_phase(Phase.DUAL_WRITE):
        for name in names:
            save_state(name, state(name))
    whole, tried = bulk._verified, []

    def verified(legacy: Any, ids: Any) -> Any:
        tried.append(list(ids))
        if "c3" in ids:
            raise KeyError("a host's function")
        return whole(legacy, ids)

    monkeypatch.setattr(bulk, "_verified", verified)
    assert [one.kinds for one in verify()] == [(Kind.EQUAL,)] * 8
    assert tried == [names, names[:4], names[:2], names[2:4], ["c2"], ["c3"], names[4:]]


@pytest.mark.parametrize("inside", [False, True])
def test_a_statement_that_fails_for_many_is_tried_for_each(settings: Any, inside: bool) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    with forced_phase(Phase.DUAL_WRITE):
        for name in "abc":
            save_state(name, state(name))
    # Of the statements that read messages, the first asks how large they are.
    for after in (0, 1):
        with failing(touches_messages, after=after, times=1) as failed:
            if inside:
                with transaction.atomic():
                    found = list(verify())
            else:
                found = list(verify())
        assert [one.kinds for one in found] == [(Kind.EQUAL,)] * 3
        assert len(failed) == 1


def test_one_that_cannot_be_read_is_named_among_others(settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    with forced_phase(Phase.DUAL_WRITE):
        for name in "abc":
            save_state(name, state(name))
    MemoryChunk.objects.filter(metadata__value="b").update(content="{broken")
    first, second, third = verify()
    assert second == Verified("b", (Kind.UNREADABLE,), ("legacy",))
    assert (first.kinds, third.kinds) == ((Kind.EQUAL,), (Kind.EQUAL,))


# Memory


def test_a_large_conversation_is_verified_alone(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = {"memory_context": [{"content": "x" * 3_000}], "extra": {"note": "y" * 2_000}}
    phase = Phase.NEW_ONLY if store == "none" else Phase.DUAL_WRITE
    with forced_phase(phase):
        for name in ("a", "b", "large", "z"):
            lines = ["m" * 1_000, "é" * 1_000] if name == "large" else ["small"]
            save_state(name, state(*lines, **(large if name == "large" else {})))
        save_state("large", state("another", **large))
    names = ["a", "b", "large", "z"]
    sizes = content_sizes(names)
    assert 8_000 < sizes["large"] < 9_000
    assert sizes["a"] == sizes["b"] < 300
    assert "nobody" not in content_sizes(["nobody"])
    monkeypatch.setattr(ids, "TOGETHER_BYTES", 4_000)
    found = [list(portion) for portion in bulk.portions(configured_store(), names)]
    assert found == [["a", "b"], ["large"], ["z"]]
    assert [one.mismatched for one in verify(names)] == [False] * 4


def test_where_sizes_are_not_known_each_is_verified_alone(settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    with failing(lambda sql: "SUM(" in sql):
        assert bulk.portions(configured_store(), ["a", "b"]) == [["a"], ["b"]]


# Writers


@postgresql
def test_a_verification_does_not_wait_for_a_locked_row(settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    with forced_phase(Phase.DUAL_WRITE):
        for name in "abc":
            save_state(name, state(name))
    held, released = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic():
                ConversationState.rows.select_for_update().get(conversation_id="b")
                held.set()
                released.wait(timeout=60)
        finally:
            connections.close_all()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(timeout=60)
        assert [one.kinds for one in verify()] == [(Kind.EQUAL,)] * 3
    finally:
        released.set()
        holder.join()
    assert notes() == {"a": 1, "b": -1, "c": 1}


def test_a_message_of_every_shape_is_read_as_alone(settings: Any) -> None:
    settings.CONVERSATIONS = {"REQUIRE_OWNER": False}
    odd = [
        message("plain"),
        "no mapping",
        {"role": "tool", "tool_name": "t", "tool_success": True, "content": "c"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"content": [{"type": "text", "text": "part"}], "nul": "\0"},
    ]
    with forced_phase(Phase.NEW_ONLY):
        for name in "ab":
            save_state(name, state(*odd))
    assert [one.kinds for one in verify()] == [(Kind.TABLES_ONLY,)] * 2
    assert len(bulk.verify_all(None, ["a", "b"])) == 2
