"""The overrides that a host may leave out, wherever it puts them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.test import Client, RequestFactory

from conversations import models, storage
from conversations.admin import ConversationAdmin
from conversations.models import ConversationState
from flags.admin.rights import ConversationRights
from memory.models import MemoryChunk, MemoryContextItem
from tests.support import tenants
from tests.support.processes import ROOT
from tests.support.tenant_rows import (
    CONTENT,
    HIDDEN,
    OWN,
    OWNERLESS,
    STATES,
    address,
    fill,
    legacy_lines,
    save,
    words_of,
)
from tests.support.tenants import url

pytestmark = pytest.mark.django_db


class ListingOnly(tenants.ListsOne, ConversationAdmin):
    """A host that overrides the list alone."""


class AskingOnly(tenants.AsksForEach, ConversationAdmin):
    """A host that overrides the permissions alone."""


def test_a_policy_of_lists_alone_hides_conversations_without_a_row(
    staff: Client, amira: User, noor: User, policy: Callable[[Any], None]
) -> None:
    policy(ListingOnly)
    fill("amber", amira)
    fill("cobalt", noor)
    assert legacy_lines(staff)[0] == ["amber"]
    for model in (models.ConversationMessage, MemoryContextItem, models.ConversationMismatch):
        found = staff.get(address(model, "changelist")).content.decode()
        assert "amber" in found
        assert "cobalt" not in found
    for name in ("unmoved", "unmoved_delete"):
        response = staff.post if name == "unmoved_delete" else staff.get
        assert response(url(f"{STATES}_{name}") + "?id=amber-unmoved").status_code == 302
    assert storage.conversation_exists("amber-unmoved")
    staff.force_login(User.objects.create_superuser("root"))
    assert len(legacy_lines(staff)[0]) == 4


def test_a_policy_of_permissions_alone_hides_refused_rows_from_lists(
    staff: Client, amira: User, noor: User, policy: Callable[[Any], None]
) -> None:
    policy(AskingOnly)
    fill("amber", amira)
    fill("cobalt", noor)
    for model in CONTENT:
        found = words_of(staff.get(address(model, "changelist")))
        assert "cobalt" not in found, model
        assert ("amber" in found) == (model not in OWNERLESS), model
    assert legacy_lines(staff)[0] == ["amber-unmoved", "amber"]
    # What is searched for is the id of a hidden conversation as well.
    storage.update_state_partial("amber", {"new_context_items": [{"source": "cobalt"}]})
    found = staff.get(address(MemoryContextItem, "changelist") + "?q=cobalt").context["cl"]
    assert [item.source for item in found.result_list] == ["cobalt"]


def of_the_host(method: Callable[..., bool]) -> Callable[..., bool]:
    """Wrap a permission as a decorator does: the function says our module, not the host's."""

    @functools.wraps(method)
    def asked(self: Any, request: Any, obj: Any = None) -> bool:
        allowed = method(self, request, obj)
        return allowed and (obj is None or tenants.of_one_tenant(request.user, obj))

    return asked


class Decorated(ConversationAdmin):
    """A host that wraps the permission in a decorator of its own."""

    has_view_permission = of_the_host(ConversationAdmin.has_view_permission)  # type: ignore[assignment]


def put_on_our_class(monkeypatch: pytest.MonkeyPatch) -> type[ConversationAdmin]:
    monkeypatch.setattr(ConversationAdmin, "has_view_permission", tenants_alone)
    return ConversationAdmin


def wrapped_on_our_class(monkeypatch: pytest.MonkeyPatch) -> type[ConversationAdmin]:
    wrapped = Decorated.has_view_permission
    monkeypatch.setattr(ConversationAdmin, "has_view_permission", wrapped)
    return ConversationAdmin


def tenants_alone(self: Any, request: Any, obj: Any = None) -> bool:
    """Stand for a host's function that is put on a class of ours."""
    return bool(obj is None or tenants.of_one_tenant(request.user, obj))


class OnTheInstance(ConversationAdmin):
    """A host that replaces the permission on the admin that is registered."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.has_view_permission = functools.partial(Decorated.has_view_permission, self)  # type: ignore[method-assign]


@pytest.mark.parametrize("how", [Decorated, OnTheInstance, put_on_our_class, wrapped_on_our_class])
def test_a_permission_is_the_hosts_wherever_it_was_put(
    how: Any,
    staff: Client,
    amira: User,
    noor: User,
    policy: Callable[[Any], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy(how if isinstance(how, type) else how(monkeypatch))
    fill("amber", amira)
    fill("cobalt", noor)
    for model in CONTENT:
        assert "cobalt" not in words_of(staff.get(address(model, "changelist"))), model
    assert legacy_lines(staff)[0] == ["amber-unmoved", "amber"]


def test_a_host_that_overrides_nothing_is_asked_nothing(
    staff: Client, amira: User, policy: Callable[[Any], None]
) -> None:
    """Also where its admin has a class of its own: each row would cost a question."""
    policy(type("Bare", (ConversationAdmin,), {"__module__": "host.admin", "list_per_page": 7}))
    save("amber", amira)
    with mock.patch.object(ConversationRights, "viewable_rows") as asked:
        staff.get(address(models.ConversationMessage, "changelist"))
    asked.assert_not_called()


def test_asking_an_admin_for_a_row_asks_for_its_conversation(
    amira: User, noor: User, rf: RequestFactory
) -> None:
    """A host's own pages, and Django's that need no list: choices of a foreign key, say."""
    request = rf.get("/")
    request.user = User.objects.create_user("staff", last_name=OWN)
    with mock.patch.object(User, "has_perm", return_value=True):
        for model in (models.ConversationMessage, MemoryContextItem, MemoryChunk):
            rows = {}
            for name, user in (("amber", amira), ("cobalt", noor)):
                save(f"{name} of {model.__name__}", user)
                rows[name] = model._base_manager.order_by("-pk")[0]
            shown = tenants.site.get_model_admin(model)
            allowed = {name: shown.has_view_permission(request, row) for name, row in rows.items()}
            assert allowed == {"amber": True, "cobalt": False}


def test_without_an_admin_of_conversations_the_permissions_of_each_model_decide(
    client: Client, noor: User, policy: Callable[[Any], None]
) -> None:
    save("cobalt", noor)
    policy(None)
    user = User.objects.create_user("staff", last_name=OWN, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_conversationmessage"))
    client.force_login(user)
    assert "cobalt said" in words_of(client.get(address(models.ConversationMessage, "changelist")))
    assert client.get(address(MemoryContextItem, "changelist")).status_code == 403


def test_the_example_of_the_guide_is_such_a_policy(amira: User, noor: User, rf: Any) -> None:
    guide = (ROOT / "docs" / "admin.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", guide, re.S)
    registry = dict(admin.site._registry)
    try:
        exec(example, {})
        shown = admin.site.get_model_admin(ConversationState)
    finally:
        admin.site._registry = registry
    request = rf.get("/")
    request.user = User.objects.create_user("staff")
    owners = {OWN: amira, HIDDEN: noor, "nobody": None}
    for name, user in (*owners.items(), (OWN, request.user)):
        if user is not None:
            user.tenant = name
    with mock.patch.object(User, "has_perm", return_value=True):
        for asked_for in (shown.has_view_permission, shown.has_delete_permission):
            allowed = {
                name: asked_for(request, ConversationState(conversation_id="c", user=user))
                for name, user in owners.items()
            }
            assert allowed == {OWN: True, HIDDEN: False, "nobody": False}
            assert asked_for(request)
    assert {"get_queryset", "has_view_permission", "has_delete_permission"} <= vars(
        type(shown)
    ).keys()
