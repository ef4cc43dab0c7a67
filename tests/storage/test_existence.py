"""Asking whether a conversation exists, and loading one that must: missing is never a guess."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from conversations.exceptions import ConversationNotFound, InvalidState, StorageUnavailable
from conversations.storage import (
    ANY_OWNER,
    claim_conversation,
    conversation_exists,
    create_new_conversation,
    delete_conversation,
    load_state,
    save_state,
)
from flags.phases import Phase
from flags.switches import forced_phase
from tests.faults.injection import (
    failing,
    mentions_either,
    mentions_tables,
    touches_legacy,
    touches_tables,
)
from tests.machine.oldcode import OldChunks, OldSession
from tests.storage.test_statements import statements
from tests.support.factories import UserFactory, state, texts
from tests.support.legacy_schema import old_save

pytestmark = pytest.mark.django_db


@pytest.fixture(params=[OldChunks, OldSession], ids=["chunks", "jsonfield"], autouse=True)
def old_code(request: pytest.FixtureRequest, settings: Any) -> Any:
    """Old code over either kind of legacy store, which is the one to migrate from."""
    settings.CONVERSATIONS = {"LEGACY": request.param.settings}
    return request.param()


def there(conversation_id: str, user: Any = None) -> bool:
    """Return whether it exists, after asserting that a load says the same."""
    found = conversation_exists(conversation_id, user_id=user)
    if found:
        assert load_state(conversation_id, user_id=user, missing="raise").load_info is not None
    else:
        with pytest.raises(ConversationNotFound) as refused:
            load_state(conversation_id, user_id=user, missing="raise")
        assert refused.type is ConversationNotFound
    return found


def test_a_saved_conversation_exists_in_every_later_phase() -> None:
    for writing in Phase:
        with forced_phase(writing):
            save_state(writing.label, state("a"))
    for phase in Phase:
        with forced_phase(phase):
            assert all(there(writing.label) for writing in Phase)
            assert not there("missing")


def test_missing_foreign_and_deleted_do_not_exist(phase: Phase) -> None:
    owner, other = UserFactory(), UserFactory()
    save_state("c", state("a"), owner)
    save_state("deleted", state("a"), other)
    save_state("nobody's", state("a"))
    delete_conversation("deleted", other)
    said = {name: there(name, other) for name in ("missing", "c", "deleted", "nobody's")}
    assert said == dict.fromkeys(said, False)
    for user in (owner, owner.pk, str(owner.pk), None, ANY_OWNER):
        assert there("c", user)
    assert there("nobody's")
    assert not there("deleted")


def test_a_conversation_of_old_code_exists(phase: Phase, old_code: Any) -> None:
    old_code.write("c", state("a").to_dict())
    assert there("c")
    assert not there("c", UserFactory())
    assert not there("missing")


def test_an_ownerless_conversation_exists_for_the_user_that_old_code_names(
    phase: Phase, settings: Any
) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    user, other = UserFactory(), UserFactory()
    save_state("c", state("a"))
    if phase == Phase.LEGACY:
        assert not there("c", user)
    old_save(connection, "c", user.pk, state("a", "b").to_dict())
    found = conversation_exists("c", user_id=user)
    assert found == there("c", user)
    assert found or phase == Phase.NEW_ONLY
    assert not there("c", other)


def test_a_write_of_old_code_does_not_make_a_deleted_conversation_exist(
    phase: Phase, old_code: Any
) -> None:
    save_state("c", state("a"))
    delete_conversation("c")
    old_code.write("c", state("late").to_dict())
    assert not there("c")


def test_a_conversation_that_was_claimed_or_is_empty_exists(phase: Phase) -> None:
    user = UserFactory()
    made = create_new_conversation()
    assert there(made)
    claim_conversation(made, user)
    assert there(made, user)


@pytest.mark.parametrize("down", [touches_legacy, touches_tables, mentions_either])
def test_no_failure_makes_a_conversation_missing(phase: Phase, down: Callable[[str], bool]) -> None:
    for writing in Phase:
        with forced_phase(writing):
            save_state(writing.label, state("a"))
    for writing in Phase:
        with failing(down):
            with suppress(StorageUnavailable):
                assert conversation_exists(writing.label)
            with suppress(StorageUnavailable):
                assert texts(load_state(writing.label, missing="raise")) == ["a"]
            for call in (conversation_exists, lambda name: load_state(name, missing="raise")):
                with pytest.raises(StorageUnavailable):
                    call("missing")


@pytest.mark.parametrize("reads_legacy", [Phase.LEGACY, Phase.DUAL_WRITE])
def test_a_conversation_of_legacy_exists_while_the_tables_are_down(reads_legacy: Phase) -> None:
    user, other = UserFactory(), UserFactory()
    with forced_phase(reads_legacy):
        save_state("c", state("a"), user)
        with failing(mentions_tables) as failed:
            assert there("c")
            assert there("c", user)
            # The tables may hold one of theirs under this id.
            with pytest.raises(StorageUnavailable):
                conversation_exists("c", user_id=other)
        assert failed


@pytest.mark.parametrize("reads_tables", [Phase.NEW_READS, Phase.NEW_PRIMARY, Phase.NEW_ONLY])
def test_a_conversation_of_legacy_may_be_deleted_where_loads_prefer_tables_that_are_down(
    reads_tables: Phase,
) -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("a"))
    with forced_phase(reads_tables), failing(mentions_tables) as failed:
        for call in (conversation_exists, lambda name: load_state(name, missing="raise")):
            with pytest.raises(StorageUnavailable):
                call("c")
    assert failed


def test_it_costs_one_statement_and_a_second_where_only_legacy_may_hold_it(
    new_only: None, settings: Any, old_code: Any
) -> None:
    user = UserFactory()
    save_state("c", state("a"), user)
    save_state("deleted", state("a"), user)
    delete_conversation("deleted", user)
    old_code.write("old", state("a").to_dict())

    def cost(name: str, owner: Any = None) -> int:
        return len(statements(lambda: conversation_exists(name, user_id=owner)))

    assert (cost("c"), cost("c", user), cost("c", UserFactory()), cost("deleted")) == (1, 1, 1, 1)
    assert (cost("old"), cost("missing")) == (2, 2)
    settings.CONVERSATIONS = {}
    assert (cost("c", user), cost("missing", user)) == (1, 1)


def test_a_load_that_must_find_costs_no_more_than_a_load(new_only: None) -> None:
    save_state("c", state("a"))
    assert statements(lambda: load_state("c", missing="raise")) == statements(
        lambda: load_state("c")
    )


def test_by_default_a_missing_conversation_loads_as_an_empty_one(phase: Phase) -> None:
    assert load_state("missing") == load_state("missing", missing="empty")
    assert load_state("missing").load_info is None


@pytest.mark.parametrize("missing", ["", "Raise", None, True, b"raise", ["raise"]])
def test_another_word_for_what_to_do_is_refused_before_any_sql(missing: Any) -> None:
    words = "missing: must be 'empty' or 'raise'"
    with CaptureQueriesContext(connection) as captured, pytest.raises(InvalidState, match=words):
        load_state("c", missing=missing)
    assert not captured.captured_queries


def test_without_a_legacy_store_the_tables_alone_tell(settings: Any) -> None:
    settings.CONVERSATIONS = {}
    owner, other = UserFactory(), UserFactory()
    save_state("c", state("a"), owner)
    assert there("c", owner)
    assert not there("c", other)
    assert not there("missing", owner)
    delete_conversation("c", owner)
    assert not there("c", owner)
    with failing(touches_tables), pytest.raises(StorageUnavailable):
        conversation_exists("c", user_id=owner)
