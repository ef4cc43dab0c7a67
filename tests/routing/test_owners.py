"""The owner of a conversation, and the users that see it."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import AnonymousUser, Group, User
from django.contrib.contenttypes.models import ContentType
from django.db import connection, models
from django.utils.functional import SimpleLazyObject

from conversations import storage
from conversations.exceptions import ConversationNotFound, InvalidOwner
from conversations.models import ConversationState
from conversations.routing import owners
from conversations.storage import (
    ANY_OWNER,
    append_messages,
    claim_conversation,
    create_new_conversation,
    delete_conversation,
    get_conversation_id,
    get_conversation_timestamp,
    list_conversations,
    load_state,
    save_state,
)
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk
from tests import api
from tests.support.factories import UserFactory, messages, state, texts
from tests.support.legacy_schema import old_save

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("call", api.REFUSING.values(), ids=api.REFUSING)
def test_missing_foreign_and_deleted_are_the_same(phase: Phase, call: api.Call) -> None:
    owner, other = UserFactory(), UserFactory()
    save_state("foreign", state("a"), owner)
    save_state("deleted", state("a"), other)
    delete_conversation("deleted", other)
    for conversation_id in ("missing", "foreign", "deleted"):
        with pytest.raises(ConversationNotFound):
            call(storage, conversation_id, other)
    assert texts(load_state("foreign", user_id=owner)) == ["a"]


def test_a_foreign_conversation_reads_as_missing(phase: Phase) -> None:
    owner, other = UserFactory(), UserFactory()
    save_state("c", state("secret", user_input="secret"), owner)
    found = load_state("c", user_id=other)
    assert found == load_state("missing", user_id=other)
    assert found.load_info is None
    assert get_conversation_timestamp(other, "c") is None
    assert list(list_conversations(other)) == []
    assert get_conversation_id(other) is None


def test_delete_answers_false_for_missing_foreign_and_deleted(phase: Phase) -> None:
    owner, other = UserFactory(), UserFactory()
    save_state("c", state("a"), owner)
    assert delete_conversation("missing", other) is False
    assert delete_conversation("c", other) is False
    assert texts(load_state("c", user_id=owner)) == ["a"]
    assert delete_conversation("c", owner) is True
    assert delete_conversation("c", owner) is False


def test_a_save_on_another_users_id_is_refused_and_changes_nothing(phase: Phase) -> None:
    owner, other = UserFactory(), UserFactory()
    save_state("c", state("a"), owner)
    with pytest.raises(ConversationNotFound):
        save_state("c", state("b"), other)
    # A state that was loaded, as missing, for another user is no way in either.
    with pytest.raises(ConversationNotFound):
        save_state("c", load_state("c", user_id=other), other)
    assert texts(load_state("c", user_id=owner)) == ["a"]


def test_a_conversation_that_old_code_wrote_has_the_owner_it_named(phase: Phase) -> None:
    owner, other = UserFactory(), UserFactory()
    old_save(connection, "c", owner.pk, state("a").to_dict())
    assert texts(load_state("c", user_id=other)) == []
    with pytest.raises(ConversationNotFound):
        append_messages("c", messages("x"), user_id=other)
    append_messages("c", messages("b"), user_id=owner)
    assert texts(load_state("c", user_id=owner)) == ["a", "b"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.NEW_READS, Phase.NEW_PRIMARY])
def test_an_owner_that_legacys_foreign_key_refuses_fails_no_save(phase: Phase) -> None:
    """The foreign key is checked when the transaction ends: too late to leave legacy out."""
    with forced_phase(Phase.NEW_ONLY):
        save_state("c", state("a"))
    ConversationState.rows.update(legacy_user_id="424242")
    with forced_phase(phase):
        result = append_messages("c", messages("b"))
        assert result["stores"] == ["tables"]
        assert result["committed"]
        assert texts(load_state("c")) == ["a", "b"]
    UserFactory(pk=424242)
    with forced_phase(phase):
        assert append_messages("c", messages("c"))["stores"] == ["tables", "legacy"]


def test_a_conversation_without_owner_is_readable_only_without_user(phase: Phase) -> None:
    user = UserFactory()
    save_state("c", state("a"))
    assert texts(load_state("c")) == ["a"]
    assert texts(load_state("c", user_id=user)) == []
    with pytest.raises(ConversationNotFound):
        append_messages("c", messages("x"), user_id=user)


def test_a_call_without_user_sees_every_conversation(phase: Phase) -> None:
    save_state("c", state("a"), UserFactory())
    assert texts(load_state("c")) == ["a"]


# Claiming


def test_a_claimed_conversation_is_its_new_owners(phase: Phase) -> None:
    user, other = UserFactory(), UserFactory()
    save_state("c", state("a"))
    claim_conversation("c", user)
    assert texts(load_state("c", user_id=user)) == ["a"]
    assert texts(load_state("c", user_id=other)) == []
    for later in Phase:
        with forced_phase(later):
            append_messages("c", messages("x"), user_id=user)
            assert [s.conversation_id for s in list_conversations(user)] == ["c"]


@pytest.mark.parametrize("merged_by", ["load", "claim", "delete"])
def test_a_blob_of_old_code_for_a_user_keeps_others_from_claiming(
    phase: Phase, merged_by: str
) -> None:
    """The conversation has no owner until old code writes it in a user's name."""
    user, other = UserFactory(), UserFactory()
    with forced_phase(Phase.NEW_PRIMARY):
        save_state("c", state("a"))
    old_save(connection, "c", user.pk, state("a", "private").to_dict())
    if merged_by == "load":
        load_state("c")
    if merged_by == "delete":
        assert not delete_conversation("c", other)
        assert delete_conversation("c", user)
        return
    with pytest.raises(ConversationNotFound):
        claim_conversation("c", other)
    assert texts(load_state("c", user_id=other)) == []
    assert texts(load_state("c", user_id=user)) == ["a", "private"]
    for later in Phase:
        with forced_phase(later):
            assert texts(load_state("c", user_id=user)) == ["a", "private"]


def test_a_claim_leaves_others_the_blobs_that_name_them() -> None:
    user, other = UserFactory(), UserFactory()
    with forced_phase(Phase.LEGACY):
        old_save(connection, "c", other.pk, state("theirs").to_dict())
        old_save(connection, "c", None, state("a").to_dict())
        claim_conversation("c", user)
    owners = MemoryChunk.objects.order_by("pk").values_list("user_id", flat=True)
    assert list(owners) == [other.pk, user.pk]


def test_claiming_ones_own_conversation_changes_nothing(phase: Phase) -> None:
    user = UserFactory()
    save_state("c", state("a"), user)
    claim_conversation("c", user)
    assert texts(load_state("c", user_id=user)) == ["a"]


def test_a_missing_foreign_or_deleted_conversation_is_not_claimed(phase: Phase) -> None:
    owner, other = UserFactory(), UserFactory()
    save_state("foreign", state("a"), owner)
    save_state("deleted", state("a"))
    delete_conversation("deleted")
    for conversation_id in ("missing", "foreign", "deleted"):
        with pytest.raises(ConversationNotFound):
            claim_conversation(conversation_id, other)
    assert texts(load_state("foreign", user_id=owner)) == ["a"]


def test_a_claim_needs_an_existing_user(phase: Phase) -> None:
    save_state("c", state("a"))
    for user in (None, 10**6):
        with pytest.raises(InvalidOwner):
            claim_conversation("c", user)
    assert texts(load_state("c")) == ["a"]


# Naming a user


def test_a_user_is_named_by_any_form_of_its_key(phase: Phase) -> None:
    user = UserFactory()
    save_state("c", state("a"), str(user.pk))
    for form in (user, user.pk, str(user.pk), SimpleLazyObject(lambda: user)):
        assert texts(load_state("c", user_id=form)) == ["a"]
        assert get_conversation_id(form) == "c"


def test_an_unsaved_user_is_refused_instead_of_seeing_every_conversation(phase: Phase) -> None:
    """None as the user means every conversation; an anonymous visitor must not see them."""
    save_state("c", state("a"), UserFactory())
    for visitor in (
        AnonymousUser(),
        UserFactory.build(),
        SimpleLazyObject(lambda: AnonymousUser()),
    ):
        with pytest.raises(InvalidOwner, match="is not a saved user"):
            load_state("c", user_id=visitor)
        with pytest.raises(InvalidOwner, match="is not a saved user"):
            save_state("c", state("b"), visitor)


@pytest.mark.parametrize(
    "user_id", [True, 1.5, "ann", "", b"1", [1], ({},), object(), float("inf"), 2**70]
)
def test_a_value_that_is_no_users_key_is_refused(user_id: Any) -> None:
    with pytest.raises(InvalidOwner):
        load_state("c", user_id=user_id)


class ProxyUser(User):
    """The user model under another name."""

    class Meta:
        proxy = True
        app_label = "tests"


class Member(ProxyUser):
    """A user that says another number for its primary key, as a child of the user model may."""

    class Meta:
        proxy = True
        app_label = "tests"

    @property
    def pk(self) -> int:
        return self.id + 1


def test_a_user_is_an_instance_of_the_user_model_in_any_form(phase: Phase) -> None:
    user = UserFactory()
    save_state("c", state("a"), user)
    for form in (
        user,
        ProxyUser.objects.get(pk=user.pk),
        Member.objects.get(id=user.pk),
        User.objects.only("pk").get(pk=user.pk),
        User.objects.defer("username").get(pk=user.pk),
        SimpleLazyObject(lambda: user),
        SimpleLazyObject(lambda: ProxyUser.objects.get(pk=user.pk)),
        copy.copy(user),
        pickle.loads(pickle.dumps(user)),
    ):
        assert texts(load_state("c", user_id=form)) == ["a"]
        assert get_conversation_id(form) == "c"


def no_users(pk: int) -> list[Any]:
    """Return objects with the primary key of a user, none of which is a user."""
    return [
        Group(pk=pk, name="s3cret"),
        ContentType(pk=pk),
        ConversationState(pk=pk),
        LogEntry(pk=pk, user_id=pk),
        SimpleNamespace(pk=pk),
        SimpleNamespace(pk=pk, id=pk, is_authenticated=True),
        SimpleLazyObject(lambda: Group(pk=pk)),
        AnonymousUser(),
        SimpleLazyObject(AnonymousUser),
        User,
        User(username="s3cret"),
        ProxyUser(),
    ]


@pytest.mark.parametrize("name", api.EVERYTHING)
def test_an_object_with_a_users_number_is_not_that_user(no_sql: None, name: str) -> None:
    for other in no_users(1):
        with pytest.raises(InvalidOwner) as refused:
            api.EVERYTHING[name](storage, "c", other)
        assert "s3cret" not in str(refused.value)


def test_a_column_of_texts_takes_no_object_by_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """str() of any object is a text, and so was a user's key."""

    class Named:
        def __str__(self) -> str:
            return "ann"

    owners._key.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(User._meta, "pk", models.CharField(max_length=30))
        assert owners.owner_key("ann") == "ann"
        assert owners.owner_key(5) == "5"
        with pytest.raises(InvalidOwner, match="A Named is no user's primary key"):
            owners.owner_key(Named())
    owners._key.cache_clear()


def test_joins_find_conversations_of_users_alone() -> None:
    user = UserFactory()
    save_state("c", state("a"), user)
    save_state("nobodys", state("a"))
    found = ConversationState.objects
    for form in (user, SimpleLazyObject(lambda: user), user.pk, str(user.pk)):
        with forced_phase(Phase.NEW_ONLY):
            load_state("c", user_id=user)
            append_messages("c", messages("b"), user_id=user)
        assert [row.conversation_id for row in found.for_user(form)] == ["c"]
    for nobody in (None, AnonymousUser(), SimpleLazyObject(AnonymousUser), User()):
        with pytest.raises(InvalidOwner):
            found.for_user(nobody)
    with pytest.raises(ValueError, match="Must be"):
        found.for_user(Group(pk=user.pk))


@pytest.mark.parametrize("user_id", [10**6, -1])
def test_a_conversation_is_not_made_for_a_user_who_does_not_exist(
    phase: Phase, user_id: int
) -> None:
    with pytest.raises(InvalidOwner):
        save_state("c", state("a"), user_id)
    with pytest.raises(InvalidOwner):
        create_new_conversation(user_id)
    assert load_state("c").load_info is None


@pytest.mark.parametrize("user_id", [10**6, -1])
def test_a_user_who_does_not_exist_has_nothing(phase: Phase, user_id: int) -> None:
    save_state("c", state("a"), UserFactory())
    assert texts(load_state("c", user_id=user_id)) == []
    assert list(list_conversations(user_id)) == []
    assert get_conversation_id(user_id) is None
    assert delete_conversation("c", user_id) is False


def test_an_operators_tool_says_that_it_means_any_owner(settings: Any) -> None:
    settings.CONVERSATIONS = {}
    save_state("c", state("a"), UserFactory())
    append_messages("c", messages("b"), user_id=ANY_OWNER)
    assert texts(load_state("c", user_id=ANY_OWNER)) == ["a", "b"]
    assert [found.conversation_id for found in list_conversations(ANY_OWNER)] == ["c"]
    for call in (
        lambda: get_conversation_id(ANY_OWNER),
        lambda: claim_conversation("c", ANY_OWNER),
    ):
        with pytest.raises(InvalidOwner, match="ANY_OWNER is no user"):
            call()
    assert delete_conversation("c", ANY_OWNER)


def test_a_fresh_team_must_name_the_user(settings: Any) -> None:
    settings.CONVERSATIONS = {}
    for call in (
        lambda: load_state("c"),
        lambda: save_state("c", state("a")),
        lambda: append_messages("c", messages("a"), create=True),
        lambda: list_conversations(None),
        lambda: create_new_conversation(None),
        lambda: delete_conversation("c"),
    ):
        with pytest.raises(InvalidOwner, match="REQUIRE_OWNER"):
            call()
    user = UserFactory()
    save_state("c", state("a"), user)
    assert texts(load_state("c", user_id=user)) == ["a"]


@pytest.mark.parametrize(
    ("configured", "required"),
    [
        ({}, True),
        ({"LEGACY": "memory_chunks"}, False),
        ({"REQUIRE_OWNER": False}, False),
        ({"LEGACY": "memory_chunks", "REQUIRE_OWNER": True}, True),
    ],
)
def test_the_owner_is_required_by_default_without_legacy_alone(
    settings: Any, configured: dict[str, Any], required: bool
) -> None:
    settings.CONVERSATIONS = configured
    if required:
        with pytest.raises(InvalidOwner):
            load_state("c")
    else:
        assert load_state("c").load_info is None


def test_get_conversation_id_always_needs_a_user() -> None:
    with pytest.raises(InvalidOwner):
        get_conversation_id(None)


def test_conversations_are_found_by_their_user_for_joins(new_only: None) -> None:
    owner, other = UserFactory(), UserFactory()
    save_state("c", state("a"), owner)
    save_state("d", state("a"), other)
    assert [row.conversation_id for row in ConversationState.objects.for_user(owner)] == ["c"]
    assert [row.conversation_id for row in ConversationState.objects.for_user(other.pk)] == ["d"]


def test_a_new_conversation_is_its_users_and_empty(phase: Phase) -> None:
    user = UserFactory()
    conversation_id = create_new_conversation(user)
    found = load_state(conversation_id, user_id=user)
    assert found.load_info is not None
    assert found.to_dict() == load_state("missing").to_dict()
    assert load_state(conversation_id, user_id=UserFactory()).load_info is None
    assert get_conversation_id(user) == conversation_id
