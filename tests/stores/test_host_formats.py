"""A save keeps the shape of a host's own JSON: only what changed is written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import connection
from django.test import override_settings

from conversations import storage
from conversations.exceptions import InvalidState, UnreadableState
from conversations.rollout.sync import sync
from conversations.rollout.verification import Kind, verify
from conversations.state import AgentState
from conversations.stores.registry import configured_store
from flags.phases import Phase
from flags.switches import forced_phase
from tests.conformance.test_stores import JSON, TEXT
from tests.support.blobs.models import AssistantSession, TextSession
from tests.support.factories import message, messages, state, texts
from tests.support.hostshapes.models import Entry

pytestmark = pytest.mark.django_db(transaction=True)

STORES: dict[str, Any] = {
    "text": TEXT,
    "json": JSON,
    "appended": TEXT | {"model": "hostshapes.Entry", "newest_by": "id"},
}
DUAL = [Phase.DUAL_WRITE, Phase.NEW_READS, Phase.NEW_PRIMARY]


@pytest.fixture(params=STORES, autouse=True)
def legacy(request: pytest.FixtureRequest) -> Any:
    with override_settings(CONVERSATIONS={"LEGACY": STORES[request.param]}):
        yield request.param


def put(legacy: str, data: Any, name: str = "c") -> None:
    """Write as the host does."""
    if legacy == "json":
        row, _ = AssistantSession.objects.get_or_create(session_key=name, defaults={"data": data})
        AssistantSession.objects.filter(pk=row.pk).update(data=data, version=row.version + 1)
    elif legacy == "text":
        text = json.dumps(data)
        TextSession.objects.update_or_create(session_key=name, defaults={"payload": text})
    else:
        Entry.objects.create(session_key=name, payload=json.dumps(data))


def held(legacy: str, name: str = "c") -> Any:
    """Return the host's JSON as it stands there, with its order of keys."""
    if legacy == "json":
        return AssistantSession.objects.get(session_key=name).data
    model: Any = TextSession if legacy == "text" else Entry
    return json.loads(model.objects.filter(session_key=name).latest("pk").payload)


def in_order(legacy: str) -> bool:
    """Whether the column keeps the order of keys."""
    store: Any = configured_store()
    return bool(store.exact)


def check(legacy: str, expected: dict[str, Any]) -> None:
    found = held(legacy)
    assert found == expected
    if in_order(legacy):
        assert list(found) == list(expected)


def green() -> None:
    assert all(one.in_order for one in verify())


@pytest.mark.parametrize("phase", [Phase.LEGACY, *DUAL])
def test_an_appended_message_changes_the_messages_alone(phase: Phase, legacy: str) -> None:
    put(legacy, {"theme": "dark", "conversation_history": messages("a"), "focus": []})
    with forced_phase(phase):
        loaded = storage.load_state("c")
        loaded.conversation_history += messages("b")
        storage.save_state("c", loaded)
        check(legacy, {"theme": "dark", "conversation_history": messages("a", "b"), "focus": []})
        storage.append_messages("c", messages("c"))
        check(
            legacy, {"theme": "dark", "conversation_history": messages("a", "b", "c"), "focus": []}
        )
        assert texts(storage.load_state("c")) == ["a", "b", "c"]
        assert storage.load_state("c").user_input == ""
    list(sync("tables"))
    green()


def test_a_key_that_a_host_uses_otherwise_stays_its_own(legacy: str) -> None:
    put(legacy, {"messages": ["a"]})
    with forced_phase(Phase.LEGACY):
        loaded = storage.load_state("c")
        loaded.extra["messages"].append("b")
        storage.save_state("c", loaded)
    check(legacy, {"messages": ["a", "b"]})


@pytest.mark.parametrize("phase", [Phase.LEGACY, Phase.DUAL_WRITE])
def test_a_field_that_is_set_comes_behind_and_then_stays(phase: Phase, legacy: str) -> None:
    put(legacy, {"z": 1, "conversation_history": []})
    with forced_phase(phase):
        loaded = storage.load_state("c")
        loaded.step_count, loaded.user_input = 2, "hello"
        storage.save_state("c", loaded)
        check(legacy, {"z": 1, "conversation_history": [], "user_input": "hello", "step_count": 2})
        loaded.step_count = 0
        storage.save_state("c", loaded)
        # It was there: a default is what was said of it.
        check(legacy, {"z": 1, "conversation_history": [], "user_input": "hello", "step_count": 0})
        assert storage.load_state("c") == loaded
    list(sync("tables"))
    green()


@pytest.mark.parametrize("phase", [Phase.LEGACY, Phase.DUAL_WRITE])
def test_fields_of_the_hosts_own_keep_the_order_of_the_state(phase: Phase, legacy: str) -> None:
    put(legacy, {"b": 1, "conversation_history": [], "a": 2})
    with forced_phase(phase):
        loaded = storage.load_state("c")
        loaded.extra = {"a": 2, "b": 1, "focus_": 3}
        storage.save_state("c", loaded)
        assert storage.load_state("c").extra == loaded.extra
        if in_order(legacy):
            assert list(storage.load_state("c").extra) == ["a", "b", "focus_"]
        assert "user_input" not in held(legacy)
    list(sync("tables"))
    green()


@pytest.mark.parametrize("data", [{}, {"conversation_history": messages("a")}])
def test_a_host_may_have_made_an_object_ahead(data: dict[str, Any], legacy: str) -> None:
    put(legacy, data)
    with forced_phase(Phase.LEGACY):
        storage.save_state("c", state("a"))
        check(legacy, {"conversation_history": messages("a")})


@pytest.mark.parametrize("phase", [Phase.LEGACY, Phase.DUAL_WRITE])
@pytest.mark.parametrize("text", ["", None])
@pytest.mark.parametrize("legacy", ["appended"], indirect=True)
def test_a_host_may_have_made_a_row_with_nothing_in_it(
    phase: Phase, text: str | None, legacy: str
) -> None:
    with forced_phase(phase):
        Entry.objects.create(session_key="c", payload=text)
        assert storage.load_state("c") == AgentState()
        storage.append_messages("c", messages("a"))
        assert held(legacy) == state("a", user_input="").to_dict()
        list(sync("tables"))
        green()


def test_a_new_row_has_the_whole_state(legacy: str) -> None:
    """Its shape is not set: it is the format that old code of ours had."""
    with forced_phase(Phase.LEGACY):
        storage.save_state("c", state("a"))
    check(legacy, state("a").to_dict())


def test_json_that_is_no_object_is_replaced_by_the_whole_state(legacy: str) -> None:
    put(legacy, {"conversation_history": messages("a")})
    with forced_phase(Phase.DUAL_WRITE):
        storage.append_messages("c", messages("b"))
        put(legacy, [1])
        storage.append_messages("c", messages("c"))
        assert texts(storage.load_state("c")) == ["a", "b", "c"]
        list(sync("legacy"))
        check(legacy, state("a", "b", "c").to_dict())


def test_a_merge_a_redaction_and_the_way_back_keep_the_shape(legacy: str) -> None:
    put(legacy, {"conversation_history": messages("a"), "theme": "dark"})
    with forced_phase(Phase.DUAL_WRITE):
        storage.append_messages("c", messages("b"), keys=["b"])
        put(legacy, {"conversation_history": messages("a", "b", "secret"), "theme": "dark"})
        assert texts(storage.load_state("c")) == ["a", "b", "secret"]
        storage.redact_message("c", 3)
        redacted = [*messages("a", "b"), message("[redacted]")]
        check(legacy, {"conversation_history": redacted, "theme": "dark"})
        green()
    with forced_phase(Phase.NEW_ONLY):
        storage.append_messages("c", messages("d"))
    list(sync("legacy"))
    both = [*redacted, *messages("d")]
    check(legacy, {"conversation_history": both, "theme": "dark"})
    (found,) = verify()
    assert found.kinds == (Kind.EQUAL,)


@pytest.mark.parametrize("text", ["\0", "\ud800"])
@pytest.mark.parametrize("legacy", ["json"], indirect=True)
def test_a_text_that_jsonb_alone_cannot_hold_is_refused_there_alone(text: str, legacy: str) -> None:
    for whole in (AgentState(user_input=text), AgentState(extra={"a": [{text: 1}]})):
        with forced_phase(Phase.LEGACY):
            if connection.vendor != "postgresql":
                storage.save_state("c", whole)
                assert storage.load_state("c") == whole
                continue
            with pytest.raises(InvalidState, match="cannot hold NUL or lone surrogates"):
                storage.save_state("c", whole)


# A host's own functions


def only_messages(state: dict[str, Any]) -> dict[str, Any]:
    return {"said": state["conversation_history"]}


def from_said(data: dict[str, Any]) -> dict[str, Any]:
    return {"conversation_history": data["said"]}


def unserializable(state: dict[str, Any]) -> Any:
    return {"said": {1, 2}}


def turned_around(state: dict[str, Any]) -> dict[str, Any]:
    said = [dict(reversed(each.items())) for each in state["conversation_history"]]
    return {"said": said}


def refusing(state: dict[str, Any]) -> Any:
    raise KeyError("said")


def with_more(data: dict[str, Any]) -> dict[str, Any]:
    return {"conversation_history": data["said"], "theme": "dark"}


def upgraded(data: dict[str, Any]) -> dict[str, Any]:
    return {"conversation_history": data.get("said", data.get("conversation_history", []))}


def functions(legacy: str, **names: str) -> Any:
    paths = {key: f"{__name__}.{name}" for key, name in names.items()}
    return override_settings(CONVERSATIONS={"LEGACY": STORES[legacy] | paths})


@pytest.mark.parametrize("phase", [Phase.LEGACY, Phase.DUAL_WRITE])
def test_a_field_that_the_hosts_json_would_lose_is_refused_by_name(
    phase: Phase, legacy: str
) -> None:
    put(legacy, {"said": messages("a")})
    with functions(legacy, to_state="from_said", from_state="only_messages"), forced_phase(phase):
        storage.append_messages("c", messages("b"))
        assert held(legacy) == {"said": messages("a", "b")}
        for lost in ({"user_input": "hello"}, {"memory_context": ["i"]}, {"extra": {"x": 1}}):
            name = next(iter(lost)) if "extra" not in lost else "x"
            with pytest.raises(InvalidState, match=f"^{name}: changes when from_state and then"):
                storage.save_state("c", AgentState(conversation_history=messages("a"), **lost))
        assert held(legacy) == {"said": messages("a", "b")}
        assert texts(storage.load_state("c")) == ["a", "b"]


@pytest.mark.parametrize("to_state", [{}, {"to_state": "with_more"}])
def test_a_field_that_the_hosts_json_would_add_is_refused_by_name(
    to_state: dict[str, str], legacy: str
) -> None:
    """By `to_state`, or because nothing turns what `from_state` made back."""
    with (
        functions(legacy, **to_state, from_state="only_messages"),
        forced_phase(Phase.LEGACY),
        pytest.raises(InvalidState, match="changes when from_state and then"),
    ):
        storage.save_state("c", AgentState(conversation_history=messages("a")))


def test_another_order_of_keys_is_refused_where_the_column_would_keep_it(legacy: str) -> None:
    put(legacy, {"said": messages("a")})
    with (
        functions(legacy, to_state="from_said", from_state="turned_around"),
        forced_phase(Phase.LEGACY),
    ):
        if not in_order(legacy):
            storage.append_messages("c", messages("b"))
            assert texts(storage.load_state("c")) == ["a", "b"]
            return
        with pytest.raises(InvalidState, match="conversation_history: changes when from_state"):
            storage.append_messages("c", messages("b"))


@pytest.mark.parametrize("from_state", ["unserializable", "refusing"])
def test_the_result_of_from_state_must_be_json(legacy: str, from_state: str) -> None:
    put(legacy, {"said": messages("a")})
    with (
        functions(legacy, to_state="from_said", from_state=from_state),
        forced_phase(Phase.LEGACY),
        pytest.raises(InvalidState, match=r"from_state cannot turn it into the host's JSON"),
    ):
        storage.append_messages("c", messages("b"))


def test_an_upgrade_of_old_json_alone_writes_what_it_reads(legacy: str) -> None:
    put(legacy, {"said": messages("a")})
    with functions(legacy, to_state="upgraded"), forced_phase(Phase.LEGACY):
        storage.append_messages("c", messages("b"))
        check(legacy, {"conversation_history": messages("a", "b")})
        put(legacy, {"said": 5}, "d")
        with pytest.raises(UnreadableState):
            storage.load_state("d")


def with_focus(data: dict[str, Any]) -> dict[str, Any]:
    """Stand for an upgrade that gives a field which old JSON had not."""
    return {"focus": data.get("focus", []), **upgraded(data)}


def test_an_upgrade_of_old_json_says_which_fields_there_are(legacy: str) -> None:
    """What it gives stays, with its order, although it is a default; nothing else comes in."""
    put(legacy, {"said": messages("a")})
    with functions(legacy, to_state="with_focus"), forced_phase(Phase.LEGACY):
        storage.append_messages("c", messages("b"))
        check(legacy, {"focus": [], "conversation_history": messages("a", "b")})


def test_a_to_state_that_cannot_read_the_written_json_is_refused(legacy: str) -> None:
    put(legacy, {"said": messages("a")})
    with (
        functions(legacy, to_state="from_said"),
        forced_phase(Phase.LEGACY),
        pytest.raises(InvalidState),
    ):
        storage.append_messages("c", messages("b"))
    assert held(legacy) == {"said": messages("a")}
