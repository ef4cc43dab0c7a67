"""What is public is small, and changes on purpose only."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction

import conversations.state
from conversations import aio, exceptions, owners, storage
from flags import health
from tests.api import FUNCTIONS

OWNERS = {"ANY_OWNER", "UserKey", "UserRef"}
CLASSES = {"ConversationPage", "ConversationSummary", "MessagePage", "StoredMessage"}
ERRORS = {
    "ConversationDeleted": "ConversationNotFound",
    "ConversationNotFound": "ConversationStoreError",
    "ConversationStoreError": "OwnError",
    "DirectWriteRefused": "ConversationStoreError",
    "InvalidOwner": "ConversationStoreError",
    "InvalidState": "ConversationStoreError",
    "KeyReused": "ConversationStoreError",
    "MessageNotFound": "ConversationStoreError",
    "StorageUnavailable": "ConversationStoreError",
    "SyncRefused": "ConversationStoreError",
    "ArchiveRefused": "ConversationStoreError",
    "UnreadableState": "StorageUnavailable",
}


def signature(function: Any) -> str:
    """Return the names and defaults of a function's parameters."""
    found = inspect.signature(function)
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in found.parameters.values()
    ]
    return str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def test_the_storage_api_is_exactly_this() -> None:
    twins = {f"a{name}" for name in FUNCTIONS}
    assert set(storage.__all__) == {*FUNCTIONS, *twins, *CLASSES, *OWNERS}
    assert {name: signature(getattr(storage, name)) for name in FUNCTIONS} == FUNCTIONS


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_has_a_coroutine_with_the_same_signature(name: str) -> None:
    twin = getattr(storage, f"a{name}")
    assert iscoroutinefunction(twin)
    assert signature(twin) == FUNCTIONS[name]
    assert inspect.getdoc(twin) == inspect.getdoc(getattr(storage, name))


def test_legacy_callers_find_the_coroutines_under_the_plain_names() -> None:
    assert set(aio.__all__) == set(FUNCTIONS)
    for name in FUNCTIONS:
        assert getattr(aio, name) is getattr(storage, f"a{name}")


@pytest.mark.parametrize("name", [*FUNCTIONS, *sorted(CLASSES)])
def test_everything_public_says_what_it_does(name: str) -> None:
    doc = inspect.getdoc(getattr(storage, name)) or ""
    first = doc.splitlines()[0]
    assert first.endswith((".", ",", ":")) or "." in doc
    if name in FUNCTIONS and name != "should_resume_conversation":
        assert "Raises: " in doc


def test_the_errors_are_exactly_these() -> None:
    found = {
        name: error.__mro__[1].__name__
        for name, error in vars(exceptions).items()
        if inspect.isclass(error) and error.__module__ == exceptions.__name__
    }
    assert found == ERRORS


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_an_error_says_by_itself_what_to_do(name: str) -> None:
    text = str(getattr(exceptions, name)())
    assert text[0].isupper()
    assert text.endswith(".")
    assert any(mark in text for mark in (":", ";", ","))


def test_the_states_public_names_are_these() -> None:
    module = conversations.state
    found = {
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__
    }
    protocols = {"LoadableState", "StateLike"}
    assert found == {"AgentState", "Baseline", "LoadInfo", "SaveResult"} | protocols
    assert list(module.SaveResult.__annotations__) == [
        "success",
        "conversation_id",
        "revision",
        "stores",
        "fallback",
        "committed",
    ]


def test_the_health_api_is_exactly_this() -> None:
    assert health.__all__ == [
        "Health",
        "Level",
        "Operation",
        "Probe",
        "Reason",
        "Window",
        "recent_report",
        "register",
        "report",
    ]
    assert signature(health.report) == "(window=datetime.timedelta(seconds=300))"
    assert signature(health.register) == "(name, probe)"
    assert list(health.Level) == ["healthy", "unknown", "warning", "critical"]
    assert list(health.Health.__dataclass_fields__) == [
        "status",
        "can_serve",
        "reasons",
        "operations",
        "processes",
        "outdated",
        "measured",
        "since",
        "at",
    ]
    for name in health.__all__:
        assert (inspect.getdoc(getattr(health, name)) or "").splitlines()[0].endswith(".")


def test_owners_are_named_where_they_always_were() -> None:
    assert set(owners.__all__) == OWNERS
    assert owners.ANY_OWNER is storage.ANY_OWNER
