"""A load that prefers legacy is one statement, and gives what the way step by step gives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import connection, models, transaction
from django.test import override_settings
from django.utils import timezone
from hypothesis import given, settings

from conversations import reading
from conversations.content.codec import encode_message
from conversations.content.document import Document
from conversations.exceptions import InvalidState
from conversations.models import ConversationMessage
from conversations.reading import Selection
from conversations.reading.load_stepwise import Reader, read_in_steps
from conversations.reading.loaded import Loaded
from conversations.routing.standing import decide
from conversations.state import AgentState
from conversations.storage import append_messages, load_state, save_state
from conversations.stores.chunks.format import QUARANTINE_MARK, REVISION_MARK
from conversations.stores.jsonfield.table import HostTable
from conversations.stores.registry import configured_store
from flags import metrics
from flags.phases import Phase, StoreName
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryMetadata
from tests.conformance.test_stores import APPENDED, JSON, TEXT, VERSIONED
from tests.storage.test_statements import statements
from tests.support.blobs.models import AssistantSession, TextSession
from tests.support.factories import UserFactory, message, state
from tests.support.legacy_schema import old_save
from tests.support.scale import examples
from tests.support.strategies import states
from tests.support.tables import Tables

pytestmark = pytest.mark.django_db(transaction=True)

STORES: dict[str, Any] = {
    "chunks": "memory_chunks",
    "text": TEXT,
    "json": {name: value for name, value in JSON.items() if name != "version"},
    "json with a version": JSON,
    "text with a time": VERSIONED | {"version": "changed_at"},
    "rows that are added": APPENDED,
}
ITEMS = [{"content": "i", "relevance_score": 0.5}, {"content": "j"}]


@pytest.fixture(params=STORES, autouse=True)
def legacy(request: pytest.FixtureRequest) -> Any:
    with override_settings(CONVERSATIONS={"LEGACY": STORES[request.param]}):
        yield request.param


@pytest.fixture(autouse=True)
def _phase() -> Any:
    with forced_phase(Phase.DUAL_WRITE):
        yield


def loses() -> bool:
    """Whether legacy's JSON comes back in another order, and is told by the tables."""
    store = configured_store()
    return store is not None and not store.exact


def in_steps(conversation_id: str, selection: Selection | None = None) -> Loaded | None:
    decision = decide(conversation_id)
    chosen = selection or Selection()
    reader = Reader(conversation_id, chosen, None, decision, decision.legacy)
    return read_in_steps(conversation_id, reader)


def told(loaded: Loaded | None) -> Any:
    """Return all that a load gives, but for what is drawn anew by each."""
    assert loaded is not None
    baseline = loaded.baseline.to_json() | {"token": ""}
    return loaded.document.to_json(), baseline, loaded.info


def at_once(conversation_id: str, selection: Selection | None = None) -> Loaded | None:
    decision = decide(conversation_id)
    return reading.read(conversation_id, selection or Selection(), decision, owner=None)


def counted(conversation_id: str) -> int:
    return len(statements(lambda: load_state(conversation_id)))


def test_a_load_takes_one_statement_and_items_of_the_tables_another() -> None:
    save_state("c", state("a", "b"))
    save_state("d", state("a", memory_context=ITEMS))
    assert counted("c") == 1
    assert counted("d") == (2 if loses() else 1)
    assert load_state("d").load_info.store == StoreName.LEGACY


def test_a_load_of_messages_in_legacy_alone_takes_one_as_well() -> None:
    save_state("c", state("a"))
    with forced_phase(Phase.LEGACY):
        held = load_state("c")
        held.conversation_history.append(message("b"))
        save_state("c", held)
        assert counted("c") == 1 or loses()
        read = " ".join(statements(lambda: load_state("c")))
        assert read.count("FROM conversation_messages") <= 1
        assert load_state("c").conversation_history == held.conversation_history


def test_a_load_of_messages_in_the_tables_alone_takes_another_and_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_state("c", state("a"))
    with forced_phase(Phase.NEW_ONLY):
        append_messages("c", [message("b")])
    observed: list[Any] = []
    monkeypatch.setattr(
        metrics, "observe", lambda *said, **counted: observed.append((*said, counted))
    )
    sent = statements(lambda: load_state("c"))
    assert len(sent) == 2
    assert load_state("c").load_info.store == StoreName.NORMALIZED
    assert observed == [("load", StoreName.LEGACY, None, {"fallback": True})] * 2


@pytest.mark.long
@given(made=states())
@settings(max_examples=examples(200))
def test_any_state_is_what_it_is_step_by_step(made: AgentState) -> None:
    try:
        save_state("c", made)
    except InvalidState:
        # A JSON column says before any SQL what it cannot hold.
        assert loses() or configured_store() is not None
        return
    assert told(at_once("c")) == told(in_steps("c"))


@pytest.mark.parametrize(
    "chosen", [Selection(max_messages=1), Selection(0.4), Selection(max_messages=0, max_items=1)]
)
def test_a_part_of_it_is_what_it_is_step_by_step(chosen: Selection) -> None:
    save_state("c", state("a", "b", "c", memory_context=ITEMS))
    assert told(at_once("c", chosen)) == told(in_steps("c", chosen))
    with forced_phase(Phase.NEW_ONLY):
        assert told(at_once("c", chosen)) == told(in_steps("c", chosen))


def test_a_window_of_the_tables_read_step_by_step_is_in_order() -> None:
    save_state("c", state("a", "b", "c", "d"))
    with forced_phase(Phase.NEW_ONLY):
        loaded = in_steps("c", Selection(max_messages=3))
    assert loaded is not None
    assert [each["content"] for each in loaded.document.messages] == ["b", "c", "d"]


# 1 for 1.0 is what a JSON column may have made of it.
@pytest.mark.parametrize(("ours", "theirs"), [(True, 1), (1, True), (2, 1.0), ("a", "b")])
def test_where_the_stores_differ_a_load_returns_the_values_of_legacy(
    ours: Any, theirs: Any
) -> None:
    """The tables prove nothing yet in this phase: legacy's own values are what callers get."""
    held, changed = (
        {"role": "user", "content": "x", "n": n, "in": [{"deep": n}]} for n in (theirs, ours)
    )
    save_state("c", AgentState(conversation_history=[held]))
    columns = encode_message(changed, now=timezone.now())
    assert ConversationMessage.rows.update(**columns) == 1
    tables = Tables().load("c")
    assert tables is not None
    assert json.dumps(tables.document.messages) == json.dumps([changed])
    given = load_state("c").conversation_history
    assert json.dumps(given, sort_keys=True) == json.dumps([held], sort_keys=True)


def test_a_foreign_write_is_taken_in_first(legacy: str) -> None:
    save_state("c", state("a"))
    if legacy == "chunks":
        old_save(connection, "c", None, state("a", "b").to_dict())
    else:
        store: Any = configured_store()
        store.save("c", Document.from_dict(state("a", "b").to_dict()))
    assert [each["content"] for each in load_state("c").conversation_history] == ["a", "b"]
    assert counted("c") == 1


def test_a_conversation_gone_from_legacy_is_loaded_from_the_tables(legacy: str) -> None:
    save_state("c", state("a"))
    store: Any = configured_store()
    store.delete("c")
    held = load_state("c")
    assert [each["content"] for each in held.conversation_history] == ["a"]
    assert held.load_info.store == StoreName.NORMALIZED


def test_a_blob_that_cannot_be_read_is_given_by_the_tables(legacy: str) -> None:
    if legacy != "chunks":
        pytest.skip("one row of a host's has another token as soon as it is spoilt")
    save_state("c", state("a"))
    MemoryChunk.objects.update(content="{")
    held = load_state("c")
    assert held.load_info.store == StoreName.NORMALIZED
    assert [each["content"] for each in held.conversation_history] == ["a"]


def test_of_two_blobs_of_one_revision_the_later_one_is_read(legacy: str) -> None:
    if legacy != "chunks":
        pytest.skip("a host's table has one row for each conversation")
    save_state("c", state("a"))
    early = MemoryChunk.objects.get()
    # A greater id, an earlier time (old code reads by time first); and one that was set aside.
    for year, further in ((2001, {}), (2100, {QUARANTINE_MARK: "1"})):
        other = MemoryChunk.objects.create(
            content=json.dumps(state("not this").to_dict()),
            created_at=early.created_at.replace(year=year),
        )
        rows = {"conversation_id": "c", "type": "state", REVISION_MARK: "1", **further}
        for key, value in rows.items():
            MemoryMetadata.objects.create(chunk=other, key=key, value=value)
    assert told(at_once("c")) == told(in_steps("c"))
    assert [each["content"] for each in load_state("c").conversation_history] == ["a"]


def test_another_owners_reads_as_missing() -> None:
    mine, yours = UserFactory(), UserFactory()
    save_state("c", state("a"), mine.pk)
    assert load_state("c", user_id=yours.pk).conversation_history == []
    assert len(load_state("c", user_id=mine.pk).conversation_history) == 1


def test_inside_the_callers_transaction_it_sees_what_was_written_there() -> None:
    with transaction.atomic():
        save_state("c", state("a"))
        append_messages("c", [message("b")])
        assert len(load_state("c").conversation_history) == 2
        assert counted("c") == 1


class Sealed(models.TextField):  # type: ignore[type-arg]
    """A field of a host's own: only its model knows what the column holds."""


def test_a_field_of_a_hosts_own_is_read_by_its_model(
    legacy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if legacy != "text":
        pytest.skip("one kind of column is enough")
    store: Any = configured_store()
    field = Sealed()
    field.set_attributes_from_name("payload")
    field.model = store.model
    monkeypatch.setattr(store, "state_field", field)
    assert isinstance(store, HostTable)
    assert store.last_ours_sql() is None
    save_state("c", state("a"))
    assert [each["content"] for each in load_state("c").conversation_history] == ["a"]
    assert counted("c") > 1


@pytest.mark.parametrize("way", ["from_db", "__init__", "post_init"])
def test_a_load_reads_the_value_that_a_hosts_model_makes_of_its_column(
    way: str, legacy: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """It keeps other names, which its instances never show."""
    if legacy != "text":
        pytest.skip("one kind of column is enough")

    def named(instance: TextSession, **_: Any) -> TextSession:
        instance.payload = instance.payload.replace("kept_as", "conversation_history")
        return instance

    def made(instance: TextSession, *values: Any, **by_name: Any) -> None:
        models.Model.__init__(instance, *values, **by_name)
        named(instance)

    if way == "post_init":
        models.signals.post_init.connect(named, sender=TextSession)
        request.addfinalizer(lambda: models.signals.post_init.disconnect(named, TextSession))
    elif way == "__init__":
        monkeypatch.setattr(TextSession, way, made, raising=False)
    else:
        # Django 6.1 passes more by name.
        read = classmethod(
            lambda cls, *row, **by_name: named(models.Model.from_db.__func__(cls, *row, **by_name))
        )
        monkeypatch.setattr(TextSession, way, read, raising=False)
    save_state("c", state("a"))
    kept = json.dumps(state("a", "b").to_dict()).replace("conversation_history", "kept_as")
    TextSession.objects.update(payload=kept)
    for _ in range(2):
        assert [each["content"] for each in load_state("c").conversation_history] == ["a", "b"]


@pytest.mark.parametrize("phase", [Phase.LEGACY, Phase.DUAL_WRITE])
def test_messages_that_a_json_column_cannot_tell_apart_keep_their_places(phase: Phase) -> None:
    numbers = [1, 1.0, 1, True, 1.0, 10**16, 1e16]
    said = [{"role": "user", "content": "x", "n": n} for n in numbers]
    save_state("c", AgentState(conversation_history=said))

    def held() -> list[Any]:
        assert told(at_once("c")) == told(in_steps("c"))
        state = load_state("c").conversation_history
        return [json.dumps(each.get("n", each["content"])) for each in state]

    with forced_phase(phase):
        assert held() == list(map(json.dumps, numbers))
        edited = load_state("c")
        edited.conversation_history[0] = message("edited")
        edited.conversation_history.append(message("last"))
        save_state("c", edited)
        assert held() == ['"edited"', *map(json.dumps, numbers[1:]), '"last"']


def test_a_json_column_keeps_its_own_numbers(legacy: str) -> None:
    """10 ** 16 is what jsonb makes of 1e16: the tables know which of them it was."""
    said = {"role": "user", "content": "x", "n": 1e16, "zero": -0.0}
    save_state("c", AgentState(conversation_history=[said]))
    (held,) = load_state("c").conversation_history
    assert json.dumps(held["n"]) == "1e+16"
    assert json.dumps(held["zero"]) == "-0.0"
    assert counted("c") == 1
    assert told(at_once("c")) == told(in_steps("c"))
    if legacy == "json":
        assert isinstance(AssistantSession.objects.get().data, dict)
