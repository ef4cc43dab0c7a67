"""Errors are never turned into empty states, and never into half of a write."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from conversations import aio, storage
from conversations.exceptions import (
    ConversationNotFound,
    DirectWriteRefused,
    InvalidOwner,
    InvalidState,
    StorageUnavailable,
    UnreadableState,
)
from conversations.models import ConversationMessage, ConversationState
from conversations.state import AgentState, Baseline
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryMetadata
from tests.factories import UserFactory, message, messages, state, texts
from tests.faults.injection import failing, touches_legacy, touches_messages, touches_tables
from tests.legacy_schema import old_save

pytestmark = pytest.mark.django_db(transaction=True)


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


class Strange:
    def to_dict(self) -> Any:
        return {1: "a number for a key"}


class NoMapping:
    def to_dict(self) -> Any:
        return ["a list"]


circular: list[Any] = []
circular.append(circular)

BAD_STATES: list[tuple[Any, str]] = [
    ({"user_input": "a mapping is no state"}, "state"),
    (AgentState, "state"),
    (None, "state"),
    (Strange(), "state"),
    (NoMapping(), "state"),
    (AgentState(user_input=5), "user_input"),  # type: ignore[arg-type]
    (AgentState(step_count="3"), "step_count"),  # type: ignore[arg-type]
    (AgentState(step_count=True), "step_count"),
    (AgentState(conversation_history="text"), "conversation_history"),  # type: ignore[arg-type]
    (AgentState(memory_context={}), "memory_context"),  # type: ignore[arg-type]
    (AgentState(extra={"user_input": "twice"}), "extra.user_input"),
    (
        AgentState(conversation_history=["fine", {"at": datetime(2026, 1, 1, tzinfo=UTC)}]),
        "conversation_history[1].at",
    ),
    (AgentState(last_tool_result={"a": [1, {2, 3}]}), "last_tool_result.a[1]"),
    (AgentState(history=[{("a",): 1}]), "history[0]"),
    (AgentState(focus=[circular]), "focus[0]"),
    (AgentState(conversation_history=[deep(500)]), "conversation_history[0]"),
    (AgentState(conversation_history=[deep(5000)]), "conversation_history[0]"),
    (AgentState(last_tool_result=10**5000), "last_tool_result"),
]


@pytest.mark.parametrize(("bad", "path"), BAD_STATES, ids=[path for _, path in BAD_STATES])
def test_a_bad_state_is_refused_by_its_place_before_any_sql(bad: Any, path: str) -> None:
    with CaptureQueriesContext(connection) as captured, pytest.raises(InvalidState) as refusal:
        storage.save_state("c", bad)
    assert refusal.value.path.startswith(path)
    assert str(refusal.value).startswith(path)
    assert len(captured) == 0


def test_what_is_too_big_is_refused_by_its_place() -> None:
    with override_settings(
        CONVERSATIONS={"MAX_MESSAGE_BYTES": 100, "MAX_STATE_BYTES": 300, "REQUIRE_OWNER": False}
    ):
        with pytest.raises(InvalidState, match=r"conversation_history\[1\]"):
            storage.save_state("c", state("small", "x" * 200))
        with pytest.raises(InvalidState, match="last_tool_result"):
            storage.save_state("c", state(last_tool_result="x" * 400))
        with pytest.raises(InvalidState, match="state: "):
            storage.save_state("c", state(*["x" * 50] * 5))


@pytest.mark.parametrize(
    "call",
    [
        lambda: storage.load_state(""),
        lambda: storage.load_state(5),
        lambda: storage.load_state("x" * 256),
        lambda: storage.load_state("nul\x00"),
        lambda: storage.load_state("c", "high"),
        lambda: storage.load_state("c", float("nan")),
        lambda: storage.load_state("c", max_messages=-1),
        lambda: storage.load_state("c", max_context_items=True),
        lambda: storage.append_messages("c", "text"),
        lambda: storage.append_messages("c", 5),
        lambda: storage.append_messages("c", [{1, 2}]),
        lambda: storage.append_messages("c", ["a"], keys="k"),
        lambda: storage.append_messages("c", ["a"], keys=[]),
        lambda: storage.append_messages("c", ["a"], keys=[5]),
        lambda: storage.append_messages("c", ["a"], keys=["~mine"]),
        lambda: storage.append_messages("c", ["a", "b"], keys=["k", "k"]),
        lambda: storage.update_state_partial("c", []),
        lambda: storage.update_state_partial("c", {"step_count": "3"}),
        lambda: storage.remove_messages("c"),
        lambda: storage.remove_messages("c", {1}),
        lambda: storage.remove_messages("c", [1.5]),
        lambda: storage.replace_message("c", None, "a"),
        lambda: storage.replace_message("c", True, "a"),
        lambda: storage.list_messages("c", before=-1),
        lambda: storage.list_conversations(None, before="nonsense"),
        lambda: storage.list_conversations(None, before="2026-01-01|c"),
    ],
)
def test_bad_arguments_are_refused_before_any_sql(call: Any) -> None:
    with CaptureQueriesContext(connection) as captured, pytest.raises(InvalidState):
        call()
    assert len(captured) == 0


def test_a_uuid_is_an_id() -> None:
    conversation_id = uuid.uuid4()
    storage.save_state(conversation_id, state("a"))
    assert texts(storage.load_state(str(conversation_id))) == ["a"]


def test_a_forged_baseline_is_refused() -> None:
    whole = storage.load_state("c").to_dict(with_baseline=True)
    good = whole["_baseline"]
    for forged in (5, {}, good | {"sequences": [1]}, good | {"message_digests": "?"}):
        with pytest.raises(InvalidState, match="_baseline"):
            AgentState.from_dict(whole | {"_baseline": forged})
    baseline = Baseline.from_json(good)
    with pytest.raises(AttributeError):
        baseline.revision = 5


def test_a_state_class_without_a_baseline_hands_it_over_in_its_mapping() -> None:
    class Bare:
        __slots__ = ("data", "load_info")

        def to_dict(self) -> Any:
            return self.data

        def __setattr__(self, name: str, value: Any) -> None:
            if name in self.__slots__:
                object.__setattr__(self, name, value)

    storage.save_state("c", state("a", "b"))
    bare = Bare()
    bare.data = storage.load_state("c", max_messages=1).to_dict()
    bare.data["conversation_history"] = messages("b", "c")
    storage.save_state("c", bare)
    assert texts(storage.load_state("c")) == ["a", "b", "c"]


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("down", [touches_tables, touches_legacy, lambda sql: True])
def test_a_store_that_is_down_never_reads_as_an_empty_state(phase: Phase, down: Any) -> None:
    with forced_phase(phase):
        storage.save_state("kept", state("a"))
        for conversation_id, expected in (("kept", ["a"]), ("missing", None)):
            with failing(down):
                try:
                    found = storage.load_state(conversation_id)
                except StorageUnavailable:
                    continue
            assert texts(found) == expected
        with failing(lambda sql: True), pytest.raises(StorageUnavailable):
            storage.save_state("kept", state("b"))
        assert texts(storage.load_state("kept")) == ["a"]


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.NEW_READS, Phase.NEW_PRIMARY])
@pytest.mark.parametrize("down", [touches_messages, touches_legacy], ids=["tables", "legacy"])
def test_with_two_legs_one_that_fails_does_not_fail_the_save(phase: Phase, down: Any) -> None:
    with forced_phase(phase):
        storage.save_state("c", state("a"))
        loaded = storage.load_state("c")
        loaded.conversation_history += messages("b")
        with failing(down) as failed:
            result = storage.save_state("c", loaded)
        assert failed
        survivor = "legacy" if down is touches_messages else "normalized"
        decides = "legacy" if phase == Phase.DUAL_WRITE else "normalized"
        assert result["stores"] == [survivor]
        assert result["fallback"] is (survivor != decides)
    for later in Phase:
        with forced_phase(later):
            found = storage.load_state("c")
            assert texts(found) == ["a", "b"]
            assert not found.load_info.stale


def test_in_new_only_a_failure_of_the_tables_is_an_error() -> None:
    with forced_phase(Phase.NEW_ONLY):
        storage.save_state("c", state("a"))
        with failing(touches_messages), pytest.raises(StorageUnavailable):
            storage.append_messages("c", messages("b"))
        assert texts(storage.load_state("c")) == ["a"]


def test_what_needs_rows_fails_when_the_tables_do() -> None:
    with forced_phase(Phase.LEGACY):
        storage.save_state("c", state("a"))
        with failing(touches_tables), pytest.raises(StorageUnavailable):
            storage.append_messages("c", messages("b"), keys=["k"])
        with failing(touches_legacy), pytest.raises(StorageUnavailable):
            storage.append_messages("c", messages("b"), keys=["k"])
        assert texts(storage.load_state("c")) == ["a"]


def test_while_legacy_decides_trouble_with_the_tables_stops_no_save() -> None:
    for phase in (Phase.LEGACY, Phase.DUAL_WRITE):
        conversation_id = str(uuid.uuid4())
        with forced_phase(phase):
            storage.append_messages(conversation_id, messages("a"), keys=["k"], create=True)
            with failing(touches_tables):
                storage.append_messages(conversation_id, messages("b"))
                stale = storage.load_state(conversation_id)
                assert stale.load_info.stale
                with pytest.raises(StorageUnavailable):
                    storage.load_state("missing")
                with pytest.raises(StorageUnavailable):
                    storage.append_messages("missing", messages("b"))
            assert texts(stale) == ["a", "b"]
            assert texts(storage.load_state(conversation_id)) == ["a", "b"]


def test_an_unreadable_blob_is_an_error_and_is_never_overwritten() -> None:
    old_save(connection, "c", None, state("a").to_dict())
    MemoryChunk.objects.update(content="{")
    for phase in Phase:
        with forced_phase(phase):
            with pytest.raises(UnreadableState):
                storage.load_state("c")
            with pytest.raises(UnreadableState):
                storage.append_messages("c", messages("b"))
    assert MemoryChunk.objects.get().content == "{"


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"conversation_history": 5}', None, '{"user_input": null}']
)
def test_an_unreadable_blob_of_old_code_never_replaces_good_data(content: Any) -> None:
    with forced_phase(Phase.DUAL_WRITE):
        storage.save_state("c", state("a"))
        chunk = old_save(connection, "c", None, state().to_dict())
        MemoryChunk.objects.filter(pk=chunk).update(content=content)
        assert texts(storage.load_state("c")) == ["a"]
        storage.append_messages("c", messages("b"))
        assert texts(storage.load_state("c")) == ["a", "b"]
    row = ConversationState.objects.get()
    assert [conflict.kind for conflict in row.conflicts.all()] == ["quarantined"]
    marks = MemoryMetadata.objects.filter(chunk_id=chunk, key="store.quarantined")
    assert marks.exists()


def test_an_empty_or_foreign_blob_never_replaces_good_data() -> None:
    other = UserFactory()
    with forced_phase(Phase.NEW_READS):
        storage.save_state("c", state("a"), UserFactory())
        old_save(connection, "c", other.pk, state("stolen").to_dict())
        old_save(connection, "c", None, AgentState().to_dict())
        assert texts(storage.load_state("c")) == ["a"]
    reasons = {conflict.reason for conflict in ConversationState.objects.get().conflicts.all()}
    assert reasons == {"written for another owner", "an empty state"}


# The caller's own transaction


@pytest.mark.parametrize("phase", Phase)
def test_a_save_in_a_transaction_that_is_rolled_back_is_made_again_by_the_next(
    phase: Phase,
) -> None:
    with forced_phase(phase):
        storage.save_state("c", state("a"))
        loaded = storage.load_state("c")
        loaded.conversation_history += messages("b")
        with pytest.raises(RuntimeError), transaction.atomic():
            assert storage.save_state("c", loaded)["committed"] is False
            loaded.conversation_history += messages("c")
            storage.save_state("c", loaded)
            assert texts(storage.load_state("c")) == ["a", "b", "c"]
            raise RuntimeError
        assert texts(storage.load_state("c")) == ["a"]
        with transaction.atomic():
            storage.save_state("c", loaded)
            storage.save_state("c", loaded)
        storage.save_state("c", loaded)
        assert texts(storage.load_state("c")) == ["a", "b", "c"]


@pytest.mark.parametrize("phase", Phase)
def test_an_error_of_ours_leaves_the_callers_transaction_usable(phase: Phase) -> None:
    with forced_phase(phase):
        with transaction.atomic():
            user = UserFactory()
            storage.save_state("c", state("a"), user)
            with failing(lambda sql: True), pytest.raises(StorageUnavailable):
                storage.load_state("c")
            with failing(touches_messages), pytest.raises((StorageUnavailable, AssertionError)):
                storage.append_messages("c", messages("b"), keys=["k"])
                raise AssertionError
            with pytest.raises(ConversationNotFound):
                storage.append_messages("missing", messages("b"))
            storage.append_messages("c", messages("c"))
        assert texts(storage.load_state("c", user_id=user)) == ["a", "c"]


def test_a_broken_transaction_of_the_caller_is_an_error_not_an_empty_state() -> None:
    storage.save_state("c", state("a"))
    with transaction.atomic():
        transaction.set_rollback(True)
        with pytest.raises(StorageUnavailable):
            storage.load_state("c")
        with pytest.raises(StorageUnavailable):
            storage.save_state("c", state("b"))
    assert texts(storage.load_state("c")) == ["a"]


def test_a_connection_that_dies_in_a_transaction_is_an_error() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no connection to lose")
    with forced_phase(Phase.DUAL_WRITE):
        storage.save_state("c", state("a"))
        pid = connection.connection.info.backend_pid
        other = connection.copy()
        try:
            with pytest.raises(Exception) as failure, transaction.atomic():
                with other.cursor() as cursor:
                    cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
                storage.append_messages("c", messages("b"))
        finally:
            other.close()
        assert isinstance(failure.value, StorageUnavailable)
        connection.close()
        assert texts(storage.load_state("c")) == ["a"]


# Models and coroutines


def test_writing_through_the_models_in_bulk_is_refused() -> None:
    storage.save_state("c", state("a"))
    for model in (ConversationState, ConversationMessage):
        for refused in (
            lambda model=model: model.objects.all().delete(),
            lambda model=model: model.objects.update(pk=5),
            lambda model=model: model.objects.bulk_create([]),
            lambda model=model: model.objects.create(),
        ):
            with pytest.raises(DirectWriteRefused, match=r"conversations\.storage"):
                refused()


def test_the_models_read_and_join() -> None:
    user = UserFactory()
    storage.save_state("c", state("a"), user)
    storage.append_messages("c", messages("b"), keys=["k"])
    storage.replace_message("c", "k", message("changed"))
    (conversation,) = ConversationState.objects.for_user(user)
    assert [row.content for row in conversation.messages.current()] == ["a", "changed"]
    assert [row.content for row in conversation.messages.as_of(2)] == ["a", "b"]
    assert list(ConversationState.objects.for_user(str(user.pk))) == [conversation]
    assert str(conversation) == "c"
    assert [str(row) for row in conversation.messages.current()] == ["user 1", "user 2"]


def test_the_coroutines_do_what_the_functions_do() -> None:
    async def talk() -> Any:
        await aio.save_state("c", state("a"))
        loaded = await storage.aload_state("c")
        loaded.conversation_history += messages("b")
        await aio.save_state("c", loaded)
        await asyncio.gather(*(aio.append_messages("c", messages(n)) for n in range(5)))
        found = await aio.load_state("c")
        await sync_to_async(connections.close_all)()
        return found

    found = texts(asyncio.run(talk()))
    assert found[:2] == ["a", "b"]
    assert sorted(found[2:]) == [0, 1, 2, 3, 4]


@override_settings(CONVERSATIONS={})
def test_a_fresh_team_must_name_the_user() -> None:
    with pytest.raises(InvalidOwner):
        storage.save_state("c", state("a"))
    user = UserFactory()
    assert storage.save_state("c", state("a"), user)["stores"] == ["normalized"]
    assert texts(storage.load_state("c", user_id=user)) == ["a"]
