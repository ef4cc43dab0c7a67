"""The matrix of rights: every public function, for each kind of conversation and of caller."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import AnonymousUser, Group
from django.db import transaction
from django.utils.functional import SimpleLazyObject

from conversations import storage
from conversations.exceptions import ConversationStoreError, InvalidOwner
from conversations.models import ConversationState
from conversations.storage import ANY_OWNER
from flags.phases import Phase
from flags.switches import forced_phase
from tests import api
from tests.api import FUNCTIONS, NOT_FOUND, ROWS, SECRET
from tests.support.factories import UserFactory, state, texts
from tests.support.shared import written_once

pytestmark = pytest.mark.django_db
# The ids of the conversations, by what they are to the user who calls.
KINDS = ("mine", "foreign", "nobodys", "missing", "deleted")


# Takes no caller who sees all: its test stands below, as those of functions of users.
APART = {"claim_conversation"}


class Asynchronous:
    """The coroutine twins, each awaited from synchronous code."""

    def __getattr__(self, name: str) -> Any:
        return async_to_sync(getattr(storage, f"a{name}"))


APIS: dict[str, Any] = {"sync": storage, "async": Asynchronous()}
MATRIX_PHASES = (Phase.LEGACY, Phase.DUAL_WRITE, Phase.NEW_ONLY)


@dataclass
class World:
    """One conversation of each kind, and the users."""

    user: Any
    stranger: Any

    @classmethod
    def made(cls) -> World:
        user, stranger = UserFactory(), UserFactory()
        storage.save_state("mine", state(SECRET), user)
        storage.save_state("foreign", state(SECRET), stranger)
        storage.save_state("nobodys", state(SECRET))
        storage.save_state("deleted", state(SECRET), stranger)
        storage.delete_conversation("deleted", stranger)
        return cls(user, stranger)

    @property
    def named(self) -> dict[str, Any]:
        """Return the forms in which a caller names the user."""
        user = self.user
        return {
            "instance": user,
            "lazy": SimpleLazyObject(lambda: user),
            "key": user.pk,
            "text": str(user.pk),
        }

    @property
    def impostors(self) -> dict[str, Any]:
        """Return what has the user's number, or none, and is no user."""
        return {
            "group": Group(pk=self.user.pk, name="editors"),
            "conversation": ConversationState(pk=self.user.pk),
            "anonymous": AnonymousUser(),
            "unsaved": type(self.user)(username="unsaved"),
            "fraction": self.user.pk + 0.5,
        }


@pytest.fixture(scope="module", params=MATRIX_PHASES, ids=lambda phase: phase.label)
def made(
    request: pytest.FixtureRequest, django_db_setup: None, django_db_blocker: Any
) -> Iterator[tuple[Phase, World]]:
    """One world for all tests of a phase: what a test writes is undone."""

    def make() -> World:
        with forced_phase(request.param):
            return World.made()

    with written_once(django_db_blocker, make) as world:
        yield request.param, world


@pytest.fixture
def world(made: tuple[Phase, World]) -> Iterator[World]:
    """The world, in the phase that it was made in."""
    phase, world = made
    with forced_phase(phase):
        yield world


@contextmanager
def undone() -> Iterator[None]:
    """Undo what a cell of the matrix does."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def called(name: str, functions: Any, conversation_id: str, user: Any) -> Any:
    return ROWS[name].given(api.CALLS[name](functions, conversation_id, user))


def outcome(call: Callable[[], Any]) -> Any:
    """Return what a call gives, or the name of the error; that repeats no content."""
    refused: Exception | None = None
    try:
        return call()
    except ConversationStoreError as error:
        refused = error
    assert SECRET not in "".join(traceback.format_exception(refused))
    return type(refused).__name__


def kept() -> dict[str, list[Any]]:
    return {c: texts(storage.load_state(c)) for c in ("mine", "foreign", "nobodys", "deleted")}


def test_every_public_function_has_its_row() -> None:
    assert set(ROWS) | APART == set(api.CALLS)
    assert {api.function_of(name) for name in api.EVERYTHING} | api.PURE == set(FUNCTIONS)


@pytest.mark.parametrize("functions", APIS.values(), ids=APIS)
@pytest.mark.parametrize("name", ROWS)
def test_a_named_user_reaches_their_own_conversations_alone(
    world: World, name: str, functions: Any, caplog: pytest.LogCaptureFixture
) -> None:
    row = ROWS[name]
    caplog.set_level(logging.DEBUG, "conversations")
    before = kept()
    for form, user in world.named.items():
        with undone():
            assert outcome(lambda: called(name, functions, "mine", user)) == row.mine, form  # noqa: B023
    for kind in KINDS[1:]:
        with undone():
            for form, user in world.named.items():
                found = outcome(lambda: called(name, functions, kind, user))  # noqa: B023
                assert found == row.expected(kind), (kind, form)
            assert kept() == before, kind
    assert SECRET not in caplog.text


@pytest.mark.parametrize("functions", APIS.values(), ids=APIS)
@pytest.mark.parametrize("name", ROWS)
def test_an_operators_tool_reaches_every_conversation(
    world: World, name: str, functions: Any
) -> None:
    row = ROWS[name]
    for kind in KINDS:
        for caller in (ANY_OWNER, None):
            with undone():
                found = outcome(lambda: called(name, functions, kind, caller))  # noqa: B023
                assert found == row.seen(kind), (kind, caller)


@pytest.mark.parametrize("name", ROWS)
def test_a_value_that_is_no_user_reaches_no_conversation(world: World, name: str) -> None:
    for kind in KINDS:
        for form, impostor in world.impostors.items():
            with undone(), pytest.raises(InvalidOwner) as refused:
                called(name, storage, kind, impostor)
            assert SECRET not in str(refused.value), (kind, form)


@pytest.mark.parametrize("functions", APIS.values(), ids=APIS)
def test_only_ownerless_conversations_can_be_claimed(world: World, functions: Any) -> None:
    expected = {"mine": None, "foreign": NOT_FOUND, "nobodys": None}
    for kind in KINDS:
        for form, user in world.named.items():
            with undone():
                found = outcome(lambda: functions.claim_conversation(kind, user))  # noqa: B023
                assert found == expected.get(kind, NOT_FOUND), (kind, form)
                owned = [one.conversation_id for one in storage.list_conversations(user)]
                assert (kind in owned) is (found is None), (kind, form)
    for caller in (ANY_OWNER, None, *world.impostors.values()):
        with pytest.raises(InvalidOwner):
            functions.claim_conversation("nobodys", caller)


@pytest.mark.parametrize("functions", APIS.values(), ids=APIS)
def test_lists_and_new_conversations_are_a_users_own(world: World, functions: Any) -> None:
    for user in world.named.values():
        assert [one.conversation_id for one in functions.list_conversations(user)] == ["mine"]
        assert functions.get_conversation_id(user) == "mine"
    everybody = [one.conversation_id for one in functions.list_conversations(None)]
    assert sorted(everybody) == ["foreign", "mine", "nobodys"]
    for impostor in world.impostors.values():
        for call in api.OF_USERS.values():
            with pytest.raises(InvalidOwner):
                call(functions, None, impostor)
    made = functions.create_new_conversation(world.user)
    assert storage.load_state(made, user_id=world.user).load_info is not None
    assert storage.load_state(made, user_id=world.stranger).load_info is None
