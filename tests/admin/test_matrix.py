"""The matrix of rights in the admin: every page, for each kind of user, by each method.

A page without its rows in the table fails. No GET changes anything, no POST without its token does.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import django
import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection, transaction
from django.test import Client, override_settings
from django.urls import reverse

from conversations.models import ConversationState
from tests.support import admin_pages, tenants

pytestmark = pytest.mark.django_db
# `editor` may add, change and delete too. `tenant` and `stranger` may as much, and work for a host
# that keeps tenants apart: every conversation is the tenant's.
KINDS = ("anonymous", "nobody", "viewer", "editor", "root", "tenant", "stranger")
BY_TENANT = ("tenant", "stranger")
# Who may not read a word of what is said.
OUTSIDERS = ("anonymous", "nobody", "stranger")


@dataclass(frozen=True)
class Row:
    """What each kind is answered, in the order of KINDS; `writes`: whose POST changes something."""

    get: str
    post: str
    writes: tuple[str, ...] = ()

    def expected(self, method: str) -> dict[str, int]:
        return dict(zip(KINDS, map(int, getattr(self, method).split()), strict=True))


REFUSED = "302 403 403 403 403 403 403"
OPEN = "302 403 200 200 200 200 200"
OWN = "302 403 200 200 200 200 302"
# From 6.1 on Django says first that a row is not there, and then that nothing may be changed.
AWAY = 302 if django.VERSION >= (6, 1) else 403
UNCHANGED = f"302 403 403 403 403 403 {AWAY}"
# Django leads from old addresses to the page of a row, whether there is one or not.
ELSEWHERE = Row("302 302 302 302 302 302 302", "302 302 302 302 302 302 302")
READ_ALONE = "302 405 405 405 405 405 405"


def of_content(model: str) -> dict[str, Row]:
    """Return the rows of a model of conversations: read by whose they are."""
    return of_operators(model) | {
        f"{model}_change": Row(OWN, UNCHANGED),
        f"{model}_history": Row(OWN, OWN),
    }


def of_operators(model: str) -> dict[str, Row]:
    """Return the rows of a model of the rollout: read by users with the permission."""
    return {
        f"{model}_changelist": Row(OPEN, OPEN),
        f"{model}_add": Row(REFUSED, REFUSED),
        f"{model}_change": Row(OPEN, REFUSED),
        f"{model}_delete": Row(REFUSED, REFUSED),
        f"{model}_history": Row(OPEN, OPEN),
        f"{model}_": ELSEWHERE,
    }


DELETED = "302 403 403 302 302 302 302"
CHOSEN = "302 403 200 302 302 302 302"
DELETERS = ("editor", "root", "tenant")
STATES = "conversations_conversationstate"
TABLE: dict[str, Row] = {
    **of_content("conversations_conversationmessage"),
    **of_content("conversations_conversationconflict"),
    **of_content("conversations_conversationmismatch"),
    **of_content("conversations_conversationredaction"),
    **of_content("conversations_conversationstate"),
    **of_content("conversations_conversationtombstone"),
    **of_content("memory_memorychunk"),
    **of_content("memory_memorycontextitem"),
    **of_content("memory_memorymetadata"),
    **of_operators("conversations_syncrun"),
    **of_operators("conversations_syncbatch"),
    **of_operators("flags_transition"),
    **of_operators("flags_reportingprocess"),
    **of_operators("waffle_switch"),
    f"{STATES}_changelist": Row(OPEN, CHOSEN, DELETERS),
    f"{STATES}_change": Row(OWN, READ_ALONE),
    f"{STATES}_delete": Row("302 403 403 200 200 200 302", DELETED, DELETERS),
    f"{STATES}_legacy": Row(OPEN, READ_ALONE),
    f"{STATES}_unmoved": Row(OWN, READ_ALONE),
    f"{STATES}_unmoved_delete": Row("302 403 403 200 200 200 302", DELETED, DELETERS),
    # Nothing says whose a deleted conversation was.
    "conversations_conversationtombstone_change": Row(
        "302 403 200 200 200 302 302", f"302 403 403 403 403 {AWAY} {AWAY}"
    ),
    "conversations_conversationtombstone_history": Row(
        "302 403 200 200 200 302 302", "302 403 200 200 200 302 302"
    ),
    "flags_transition_health": Row(OPEN, READ_ALONE),
    "waffle_switch_changelist": Row(OPEN, CHOSEN),
    # Waffle's own, where anybody may who has the permission.
    "waffle_switch_add": Row("302 403 403 200 200 200 200", "302 403 403 200 200 200 200"),
    "waffle_switch_change": Row(OPEN, "302 403 403 200 200 200 200"),
    "waffle_switch_delete": Row(
        "302 403 403 200 200 200 200", DELETED, ("editor", "root", *BY_TENANT)
    ),
}
WRITING = re.compile(r"\s*(INSERT INTO|UPDATE|DELETE FROM|REPLACE INTO|WITH)\s+\"?(\w+)", re.I)


@dataclass
class World:
    """The pages by name, and a client of each kind; `bare` sends no token."""

    pages: dict[str, str]
    clients: dict[str, Client]
    bare: dict[str, Client]
    # What every page is sent: what confirms a deletion, and chooses one in a list.
    data: dict[str, Any]

    def page(self, name: str, kind: str) -> str:
        """Return the address of a page on the site of this kind of user."""
        own = f"/{tenants.NAME}/" if kind in BY_TENANT else "/admin/"
        return self.pages[name].replace("/admin/", own, 1)


@contextmanager
def unlogged() -> Iterator[None]:
    """Log no refusal: their tracebacks take a third of the time."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def world(django_db_setup: None, django_db_blocker: Any) -> Iterator[World]:
    """Fill the database once: each cell of the matrix is undone."""
    with (
        django_db_blocker.unblock(),
        unlogged(),
        override_settings(ROOT_URLCONF=tenants.__name__),
        transaction.atomic(),
    ):
        admin_pages.fill()
        User.objects.filter(username="amira").update(last_name="tenant")
        chosen = ConversationState.objects.get().pk
        action = {"action": "delete_selected", "_selected_action": [chosen]}
        yield World(addresses(), *logged_in(), {"post": "yes", **action})
        transaction.set_rollback(True)


def addresses() -> dict[str, str]:
    found = {}
    for shown in admin_pages.admins():
        model = f"{shown.opts.app_label}_{shown.opts.model_name}"
        pk = shown.model._base_manager.order_by("-pk").values_list("pk", flat=True)[0]
        for pattern in shown.get_urls():
            name = pattern.name or f"{model}_"
            keys = [pk] if pattern.pattern.converters and pattern.name else []
            address = reverse(f"admin:{pattern.name or f'{model}_changelist'}", args=keys)
            more = "" if pattern.name else f"{pk}/"
            found[name] = address + more + admin_pages.QUERIES.get(name, ("",))[0]
    return found


def logged_in() -> tuple[dict[str, Client], dict[str, Client]]:
    every = Permission.objects.all()
    permissions = {"nobody": every.none(), "viewer": every.filter(codename__startswith="view_")}
    clients, bare = {}, {}
    for kind in KINDS:
        clients[kind], bare[kind] = Client(), Client(enforce_csrf_checks=True)
        if kind == "anonymous":
            continue
        user = User.objects.filter(username=kind).first()
        user = user or User.objects.create_user(kind, is_staff=True)
        if not user.is_superuser:
            user.user_permissions.set(permissions.get(kind, every))
        User.objects.filter(pk=user.pk).update(last_name=kind)
        clients[kind].force_login(user)
        bare[kind].cookies = clients[kind].cookies
    return clients, bare


@contextmanager
def undone() -> Iterator[list[str]]:
    """Undo what happens inside. Returns: the tables that were written, but for sessions."""
    written: list[str] = []

    def note(execute: Any, sql: str, *rest: Any) -> Any:
        found = WRITING.match(sql)
        if found is not None and found[2] != "django_session":
            written.append(found[2])
        return execute(sql, *rest)

    with transaction.atomic(), connection.execute_wrapper(note):
        yield written
        transaction.set_rollback(True)


def test_every_page_has_its_row() -> None:
    patterns = [(shown, each) for shown in admin_pages.admins() for each in shown.get_urls()]
    names = {
        each.name or f"{shown.opts.app_label}_{shown.opts.model_name}_" for shown, each in patterns
    }
    assert names == set(TABLE)


def test_a_user_without_permission_cannot_tell_a_row_from_a_missing_one(world: World) -> None:
    """Of any model, by any page: a row that is there and one that is not answer alike."""
    for name, page in world.pages.items():
        if name.endswith(("_change", "_history", "_delete")):
            for method in ("get", "post"):
                ask = getattr(world.clients["nobody"], method)
                answers = [ask(each) for each in (page, re.sub(r"/\d+/", "/987654321/", page))]
                assert len({found.status_code for found in answers}) == 1, (name, method)
                assert "Location" not in answers[1].headers


@pytest.mark.parametrize("name", TABLE)
def test_a_page_answers_each_kind_of_user_as_the_table_says(world: World, name: str) -> None:
    row = TABLE[name]
    found: dict[str, dict[str, int]] = {"get": {}, "post": {}}
    for kind in KINDS:
        page, client, changes = world.page(name, kind), world.clients[kind], kind in row.writes
        for method, data in (("get", None), ("post", world.data)):
            with undone() as written:
                response = getattr(client, method)(page, data)
            found[method][kind] = response.status_code
            assert bool(written) is (changes and method == "post"), (kind, method, written)
            if kind in OUTSIDERS:
                assert admin_pages.SECRET not in response.content.decode(), (kind, method)
        with undone() as written:
            # Of every logged-in user; for an anonymous one there is nothing to forge.
            assert world.bare[kind].post(page, world.data).status_code in (403, 405), kind
        assert written == []
    assert found == {method: row.expected(method) for method in found}
