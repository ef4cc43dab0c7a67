"""A write that only adds does in few statements, row for row, what the long way does."""

from __future__ import annotations

import copy
import json
import pickle
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import override_settings
from hypothesis import HealthCheck, given, settings, strategies as st

from conversations import storage
from conversations.exceptions import ConversationNotFound, KeyReused
from conversations.models import ConversationMessage, ConversationState
from conversations.state import AgentState
from conversations.stores.normalized import Bumped
from conversations.writing import write
from flags import fence
from flags.phases import Phase
from flags.switches import forced_phase
from tests.faults.injection import failing, touches_legacy
from tests.support.factories import UserFactory, message, messages, state, texts
from tests.support.legacy_schema import old_save
from tests.support.scale import examples
from tests.support.strategies import states

pytestmark = pytest.mark.django_db(transaction=True)
added = write.try_append


@pytest.fixture(params=["fresh", "chunks"], autouse=True)
def legacy(request: pytest.FixtureRequest) -> Iterator[None]:
    chosen = {"fresh": {"REQUIRE_OWNER": False}, "chunks": {"LEGACY": "memory_chunks"}}
    with override_settings(CONVERSATIONS=chosen[request.param]), forced_phase(Phase.NEW_ONLY):
        yield


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each write that could go the short way went it."""
    ways: list[bool] = []

    def spy(*args: Any, **kwargs: Any) -> Bumped | None:
        bumped = added(*args, **kwargs)
        ways.append(bumped is not None)
        return bumped

    monkeypatch.setattr(write, "try_append", spy)
    return ways


def rows_of(conversation_id: str) -> list[Any]:
    """Return everything that the tables hold, but for ids, clocks and the random part of keys."""
    row = ConversationState.rows.get(conversation_id=conversation_id)
    own = {f.attname: getattr(row, f.attname) for f in row._meta.concrete_fields}
    for name in ("id", "conversation_id", "created_at", "updated_at"):
        del own[name]
    found = [own]
    for version in ConversationMessage.rows.filter(conversation=row).order_by("id"):
        columns = {f.attname: getattr(version, f.attname) for f in version._meta.concrete_fields}
        for name in ("id", "conversation_id"):
            del columns[name]
        columns["key"] = columns["key"].rpartition(":")[2] if columns["key"] else None
        if columns["timestamp"] is not None and columns["timestamp"] >= row.created_at:
            columns["timestamp"] = "now"
        found.append({k: bytes(v) if isinstance(v, memoryview) else v for k, v in columns.items()})
    return found


def turn_of(loaded: AgentState, new: AgentState, fields: frozenset[str]) -> None:
    """Add a turn, and change some of the fields."""
    loaded.conversation_history = [*loaded.conversation_history, *new.conversation_history]
    for name in fields:
        setattr(loaded, name, copy.deepcopy(getattr(new, name)))


FIELDS = ("user_input", "history", "step_count", "focus", "last_tool_result", "extra")


@given(first=states(), turns=st.lists(st.tuples(states(), st.frozensets(st.sampled_from(FIELDS)))))
@settings(
    max_examples=examples(60),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_turns_leave_the_same_rows_either_way(
    first: AgentState, turns: list[tuple[AgentState, frozenset[str]]]
) -> None:
    kept = []
    for short in (True, False):
        conversation_id = str(uuid.uuid4())
        with pytest.MonkeyPatch.context() as patch:
            if not short:
                patch.setattr(write, "try_append", lambda *args, **kwargs: None)
            storage.save_state(conversation_id, copy.deepcopy(first))
            loaded = storage.load_state(conversation_id)
            for new, fields in turns:
                turn_of(loaded, new, fields)
                storage.save_state(conversation_id, loaded)
                storage.append_messages(conversation_id, new.conversation_history[:1])
                if not fields:
                    loaded = storage.load_state(conversation_id)
        kept.append(
            (rows_of(conversation_id), json.dumps(storage.load_state(conversation_id).to_dict()))
        )
    assert kept[0] == kept[1]


# When the short way is taken, and when it is not


def test_turn_by_turn_every_save_is_short(taken: list[bool]) -> None:
    user = UserFactory()
    conversation_id = storage.create_new_conversation(user)
    for number in range(3):
        loaded = storage.load_state(conversation_id, user_id=user)
        loaded.conversation_history += messages(number)
        loaded.step_count, loaded.user_input = number, f"turn {number}"
        loaded.history = [*loaded.history, number]
        storage.save_state(conversation_id, loaded, user)
        storage.append_messages(
            conversation_id, messages("reply"), user_id=user, keys=[f"{number}"]
        )
    assert taken == [False, *[True] * 6]
    # The same state again and again, as a worker keeps it.
    for number in range(2):
        loaded = storage.load_state(conversation_id, user_id=user) if not number else loaded
        loaded.conversation_history += messages(number)
        storage.save_state(conversation_id, loaded, user)
    assert taken[-2:] == [True, True]


def test_fields_alone_are_changed_without_a_message(taken: list[bool]) -> None:
    storage.save_state("c", state("a", last_tool_result={"a": 1}))
    loaded = storage.load_state("c")
    loaded.focus = ["b"]
    assert storage.save_state("c", loaded)["revision"] == 2
    found = storage.load_state("c")
    assert (found.focus, found.last_tool_result, texts(found)) == (["b"], {"a": 1}, ["a"])
    assert taken == [False, True]


def not_taken(taken: list[bool]) -> None:
    assert taken[-1] is False


def test_a_foreign_change_since_the_load_sends_a_save_the_long_way(taken: list[bool]) -> None:
    storage.save_state("c", state("a", focus=["a"]))
    for other in (
        lambda: storage.append_messages("c", messages("b")),
        lambda: storage.update_state_partial("c", {"focus_areas": ["theirs"]}),
        lambda: storage.remove_messages("c", last=1),
        lambda: storage.redact_message("c", 1, replacement="gone"),
    ):
        loaded = storage.load_state("c")
        other()
        loaded.conversation_history += messages("mine")
        storage.save_state("c", loaded)
        not_taken(taken)
    found = storage.load_state("c")
    # One of the four was removed.
    assert (texts(found).count("mine"), found.focus) == (3, ["theirs"])


def test_fields_that_others_changed_stay_in_the_save_after(taken: list[bool]) -> None:
    """Its baseline is of the row, but of other fields than the row has."""
    storage.save_state("c", state("a", focus=["a"], history=[1]))
    loaded = storage.load_state("c")
    storage.update_state_partial("c", {"focus_areas": ["theirs"]})
    for text in ("b", "c"):
        loaded.conversation_history += messages(text)
        storage.save_state("c", loaded)
        not_taken(taken)
    assert storage.load_state("c").focus == ["theirs"]


def test_a_text_that_was_redacted_is_redacted_when_it_is_appended(taken: list[bool]) -> None:
    storage.save_state("c", state("secret"))
    storage.redact_message("c", 1, replacement="gone")
    storage.append_messages("c", messages("secret"))
    not_taken(taken)
    assert texts(storage.load_state("c")) == ["gone", "gone"]


def test_another_users_conversation_takes_no_message(taken: list[bool]) -> None:
    owner, other = UserFactory(), UserFactory()
    storage.save_state("c", state("a"), owner)
    with pytest.raises(ConversationNotFound):
        storage.append_messages("c", messages("b"), user_id=other)
    loaded = storage.load_state("c", user_id=owner)
    loaded.conversation_history += messages("b")
    with pytest.raises(ConversationNotFound):
        storage.save_state("c", loaded, other)
    not_taken(taken)
    assert texts(storage.load_state("c", user_id=owner)) == ["a"]
    storage.append_messages("c", messages("b"), user_id=owner)
    assert taken[-1] is True


def test_an_escaped_text_that_is_no_more_is_not_unescaped(taken: list[bool]) -> None:
    r"""`extra` says how user_input is to be read: what changes one must not leave the other."""
    storage.save_state("c", state(user_input="nul \x00", step_count=2**70))
    for changed in (r"a \\ b \u0041", "\x00 \\", "plain"):
        loaded = storage.load_state("c")
        loaded.user_input = changed
        storage.save_state("c", loaded)
        found = storage.load_state("c")
        assert (found.user_input, found.step_count) == (changed, 2**70)
    loaded.step_count = 7
    storage.save_state("c", loaded)
    assert storage.load_state("c").step_count == 7


def test_a_key_stays_known_after_its_message_was_edited_or_removed() -> None:
    storage.save_state("c", state("a"))
    for key in ("current", "edited", "removed"):
        storage.append_messages("c", messages(key), keys=[key])
    storage.replace_message("c", "edited", message("other"))
    storage.remove_messages("c", ["removed"])
    before = rows_of("c")
    for key in ("current", "edited", "removed"):
        storage.append_messages("c", messages(key), keys=[key])
        with pytest.raises(KeyReused):
            storage.append_messages("c", messages("something else"), keys=[key])
    assert rows_of("c") == before


def test_a_key_that_came_and_went_while_the_append_waited_is_known() -> None:
    """The statement sees the keys as they were before it waited for the row."""
    if connection.vendor != "postgresql":
        pytest.skip("SQLite waits before it reads")
    storage.save_state("c", state("a"))
    failures: list[BaseException] = []

    def append() -> None:
        try:
            with forced_phase(Phase.NEW_ONLY):
                storage.append_messages("c", messages("again"), keys=["k"])
        except BaseException as error:
            failures.append(error)
        finally:
            connection.close()

    waiting = threading.Thread(target=append)
    with transaction.atomic():
        storage.append_messages("c", messages("again"), keys=["k"])
        storage.remove_messages("c", ["k"])
        waiting.start()
        wait_for_a_lock(waiting)
    waiting.join()
    assert failures == []
    assert texts(storage.load_state("c")) == ["a"]


def wait_for_a_lock(waiting: threading.Thread) -> None:
    """Wait until another thread's session waits for ours."""
    with connection.cursor() as cursor:
        while waiting.is_alive():
            cursor.execute(
                "SELECT 1 FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
            )
            if cursor.fetchone():
                return
            cursor.execute("SELECT pg_stat_clear_snapshot()")
    raise AssertionError("it did not wait")


def test_more_messages_than_one_statement_takes(taken: list[bool]) -> None:
    storage.save_state("c", state("a"))
    many = messages(*range(100))
    storage.append_messages("c", many)
    not_taken(taken)
    storage.append_messages("c", many[:16])
    assert taken[-1] is True
    assert texts(storage.load_state("c")) == ["a", *range(100), *range(16)]


def test_an_addition_rolled_back_with_its_callers_transaction_is_not_there(
    taken: list[bool],
) -> None:
    storage.save_state("c", state("a"))
    with transaction.atomic():
        result = storage.append_messages("c", messages("b"))
        assert result["committed"] is False
        transaction.set_rollback(True)
    assert taken[-1] is True
    assert texts(storage.load_state("c")) == ["a"]


# Beside a legacy store


migrating = pytest.mark.parametrize("legacy", ["chunks"], indirect=True)


@migrating
def test_messages_that_only_legacy_holds_are_taken_in_first(taken: list[bool]) -> None:
    storage.save_state("c", state("a"))
    with forced_phase(Phase.LEGACY):
        storage.append_messages("c", messages("b"))
    storage.append_messages("c", messages("c"))
    not_taken(taken)
    assert texts(storage.load_state("c")) == ["a", "b", "c"]
    storage.append_messages("c", messages("d"))
    assert taken[-1] is True


@migrating
def test_a_blob_of_old_code_is_merged_first(taken: list[bool]) -> None:
    with forced_phase(Phase.NEW_PRIMARY):
        storage.save_state("c", state("a"))
    old_save(connection, "c", None, state("a", "old").to_dict())
    storage.append_messages("c", messages("b"))
    not_taken(taken)
    assert texts(storage.load_state("c")) == ["a", "old", "b"]
    storage.append_messages("c", messages("d"))
    assert taken[-1] is True


@migrating
def test_legacy_that_does_not_answer_stops_no_addition(taken: list[bool]) -> None:
    storage.save_state("c", state("a"))
    with failing(touches_legacy):
        storage.append_messages("c", messages("b"))
    not_taken(taken)
    assert texts(storage.load_state("c")) == ["a", "b"]


@migrating
@pytest.mark.parametrize("phase", [p for p in Phase if p != Phase.NEW_ONLY], ids=lambda p: p.label)
def test_where_legacy_is_written_as_well_nothing_is_short(taken: list[bool], phase: Phase) -> None:
    with forced_phase(phase):
        storage.save_state("c", state("a"))
        storage.append_messages("c", messages("b"))
        assert texts(storage.load_state("c")) == ["a", "b"]
    assert taken == [False, False]


def test_an_addition_waits_for_a_flip_that_holds_the_fence() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite's lock is its fence")
    storage.save_state("c", state("a"))
    done: list[Any] = []

    def append() -> None:
        try:
            with forced_phase(Phase.NEW_ONLY):
                done.append(storage.append_messages("c", messages("b")))
        finally:
            connection.close()

    waiting = threading.Thread(target=append)
    with transaction.atomic():
        fence.close()
        waiting.start()
        wait_for_a_lock(waiting)
        assert done == []
    waiting.join()
    assert len(done) == 1


CHANGES: dict[str, Callable[[AgentState], object]] = {
    "none": lambda loaded: None,
    "one less": lambda loaded: loaded.memory_context.pop(),
    "one more": lambda loaded: loaded.memory_context.append("new"),
    "another": lambda loaded: loaded.memory_context.__setitem__(0, "new"),
}


@pytest.mark.parametrize("carried", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_state_goes_on_with_its_context_items_after_a_short_save(
    change: Callable[[AgentState], object],
    carried: Callable[[AgentState], AgentState],
    taken: list[bool],
) -> None:
    storage.save_state("c", state("a", memory_context=["i", "j"]))
    loaded = storage.load_state("c")
    loaded.conversation_history += messages("b")
    storage.save_state("c", loaded)
    assert taken == [False, True]
    assert (loaded.load_info.hidden_items, "_baseline" in loaded.to_dict()) == (0, False)
    loaded = carried(loaded)
    change(loaded)
    storage.save_state("c", loaded)
    assert storage.load_state("c") == loaded


def test_a_baseline_that_names_no_list_of_messages_goes_the_long_way(taken: list[bool]) -> None:
    storage.save_state("c", state("a"))
    data = storage.load_state("c").to_dict(with_baseline=True)
    for version in ("no digest", "00", ""):
        data["_baseline"]["version"] = version
        data["conversation_history"] = messages("a", version)
        storage.save_state("c", AgentState.from_dict(data))
        not_taken(taken)
