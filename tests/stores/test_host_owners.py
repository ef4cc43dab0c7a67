"""A legacy that names no owner: the conversations that it alone holds belong to no user."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import DatabaseError

from conversations import storage
from conversations.exceptions import ConversationNotFound, InvalidOwner, StorageUnavailable
from conversations.models import ConversationState
from conversations.rollout.sync import sync
from conversations.rollout.verification import verify
from conversations.storage import ANY_OWNER
from conversations.stores.registry import configured_store
from flags.phases import Phase
from flags.switches import forced_phase
from tests.faults.injection import failing
from tests.flags.test_emergency import set_emergency
from tests.support.factories import UserFactory, messages, state, texts
from tests.support.hostshapes.models import Visit
from tests.support.hostshapes.shapes import SHAPES

pytestmark = pytest.mark.django_db(transaction=True)

SHAPE = SHAPES["a visit of nobody"]
BESIDE = [Phase.DUAL_WRITE, Phase.NEW_READS, Phase.NEW_PRIMARY, Phase.NEW_ONLY]


@pytest.fixture(autouse=True)
def _ownerless(settings: Any) -> Iterator[None]:
    settings.CONVERSATIONS = {"LEGACY": SHAPE.mapping}
    yield
    set_emergency(on=False)


def tables_fail(sql: str) -> bool:
    return "conversation_" in sql


def test_a_conversation_that_legacy_alone_holds_has_no_owner(phase: Phase) -> None:
    user = UserFactory()
    name = SHAPE.make(user, "a")
    assert texts(storage.load_state(name, user_id=user)) == []
    assert texts(storage.load_state(name)) == ["a"]
    assert list(storage.list_conversations(user)) == []
    assert len(storage.list_conversations(ANY_OWNER)) == 1
    assert storage.get_conversation_id(user) is None
    assert storage.get_conversation_timestamp(user, name) is None
    assert not storage.delete_conversation(name, user)
    for call in (
        lambda: storage.save_state(name, state("b"), user),
        lambda: storage.append_messages(name, messages("b"), user_id=user),
        lambda: storage.update_state_partial(name, {"step_count": 1}, user),
        lambda: storage.fork_conversation(name, user_id=user),
    ):
        with pytest.raises(ConversationNotFound):
            call()
    user.delete()
    assert SHAPE.read(name) == ["a"]


def test_it_is_claimed_in_every_phase_and_the_tables_keep_its_owner(phase: Phase) -> None:
    user, other = UserFactory(), UserFactory()
    name = SHAPE.make(user, "a")
    storage.claim_conversation(name, user)
    assert texts(storage.load_state(name, user_id=user)) == ["a"]
    assert texts(storage.load_state(name, user_id=other)) == []
    with pytest.raises(ConversationNotFound):
        storage.claim_conversation(name, other)
    with pytest.raises(ConversationNotFound):
        storage.claim_conversation("nothing", user)
    loaded = storage.load_state(name, user_id=user)
    loaded.conversation_history += messages("b")
    storage.save_state(name, loaded, user)
    SHAPE.write(name, "a", "b", "c")
    if phase != Phase.LEGACY:
        assert texts(storage.load_state(name, user_id=user)) == ["a", "b", "c"]
    assert texts(storage.load_state(name, user_id=other)) == []
    list(sync("tables"))
    assert all(one.in_order for one in verify())


@pytest.mark.parametrize("phase", BESIDE)
def test_a_new_one_is_its_users_where_the_tables_are_written(phase: Phase) -> None:
    user, other = UserFactory(), UserFactory()
    with forced_phase(phase):
        name = storage.create_new_conversation(user)
        storage.append_messages(name, messages("a"), user_id=user)
    for later in Phase:
        with forced_phase(later):
            assert texts(storage.load_state(name, user_id=user)) == ["a"]
            assert texts(storage.load_state(name, user_id=other)) == []
            with pytest.raises(ConversationNotFound):
                storage.save_state(name, state("x"), other)
    user.delete()
    assert not ConversationState.rows.exists()
    assert not Visit.objects.exists()


def test_a_new_conversation_in_phase_legacy_has_no_owner() -> None:
    with forced_phase(Phase.LEGACY):
        with pytest.raises(InvalidOwner, match="names no owner column"):
            storage.create_new_conversation(UserFactory())
        name = storage.create_new_conversation()
        assert texts(storage.load_state(name)) == []
        # Only a row can hold a key, so there is one, and it names the owner.
        user = UserFactory()
        storage.append_messages("k", messages("a"), keys=["k"], user_id=user, create=True)
        assert texts(storage.load_state("k", user_id=user)) == ["a"]
    assert Visit.objects.count() == 2


def test_while_the_tables_are_down_no_user_is_shown_anything() -> None:
    """They alone know whose it is; who names no user sees what legacy has."""
    user = UserFactory()
    with forced_phase(Phase.DUAL_WRITE):
        storage.save_state("c", state("a"), user)
        with failing(tables_fail):
            for asked in (user, UserFactory()):
                with pytest.raises(StorageUnavailable):
                    storage.load_state("c", user_id=asked)
                with pytest.raises((StorageUnavailable, DatabaseError)):
                    storage.save_state("c", state("b"), asked)
                with pytest.raises(StorageUnavailable):
                    storage.save_state("new", state("b"), asked)
            assert texts(storage.load_state("c")) == ["a"]
        assert texts(storage.load_state("c", user_id=user)) == ["a"]
    assert SHAPE.read("c") == ["a"]
    assert not Visit.objects.filter(session_key="new").exists()


def test_where_the_tables_refuse_a_new_one_legacy_does_not_take_it_for_its_user() -> None:
    with (
        forced_phase(Phase.DUAL_WRITE),
        failing(lambda sql: sql.startswith('INSERT INTO "conversation_states"')),
        pytest.raises(StorageUnavailable),
    ):
        storage.save_state("c", state("a"), UserFactory())
    assert not Visit.objects.exists()


def test_the_store_says_that_it_names_none() -> None:
    legacy: Any = configured_store()
    name = SHAPE.make(None, "a")
    assert not legacy.names_owners
    assert legacy.takes_any_owner()
    assert legacy.owner(name) == (True, None)
    assert legacy.conversations_of("1") == []
    assert list(legacy.list(owner="1")) == []
    legacy.claim(name, "1")
    assert legacy.owner_by_id(name) is None
    stored = legacy.load(name)
    assert stored is not None
    assert stored.owner is None
