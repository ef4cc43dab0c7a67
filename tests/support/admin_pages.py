"""Every page that our admins answer, found in their URLs, so that a new page is found by itself.

`report` is for a process of its own, whose settings name another theme.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import URLPattern, reverse
from django.utils import timezone
from waffle import get_waffle_switch_model

from conversations import models, storage
from conversations.rollout.sync import runs
from conversations.state import AgentState
from flags.models import ReportingProcess, Transition
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryMetadata

APPS = ("conversations", "memory", "flags")
STATES = "conversations_conversationstate"
SECRET = "a text that only pages of content show"
# What a step records beside its columns, as JSON.
RECORDED = {"switches": "{}", "gates": "[]"}
# What a page is asked for besides nothing, by the name of its URL. The id is one of legacy alone.
QUERIES: dict[str, tuple[str, ...]] = {
    f"{STATES}_change": (
        "",
        "?tab=context",
        "?tab=records",
        "?superseded=1&role=user",
        "?before=1",
    ),
    f"{STATES}_changelist": ("", "?q=c", "?lives=legacy", "?e=1", "?all=1&o=-1"),
    f"{STATES}_unmoved": (
        "?id=unmoved",
        "?id=unmoved&tab=context",
        "?id=unmoved&tab=records",
    ),
    f"{STATES}_unmoved_delete": ("?id=unmoved",),
}
# Only conversations and switches are deleted here, and only switches are added.
DELETED = (STATES, "waffle_switch")
ADDED = ("waffle_switch",)


@dataclass(frozen=True)
class Page:
    """The address of a page, and what a superuser and a viewer are answered."""

    address: str
    superuser: int
    viewer: int


def admins() -> list[Any]:
    """Return our ModelAdmins: those that our apps define, for models of any app."""
    return [
        shown
        for shown in admin.site._registry.values()
        if type(shown).__module__.split(".")[0] in APPS
    ]


def pages() -> list[Page]:
    """Return every page; there must be a row of every model."""
    return [page for shown in admins() for page in _pages_of(shown)]


def _pages_of(shown: Any) -> Iterator[Page]:
    model = f"{shown.opts.app_label}_{shown.opts.model_name}"
    row = shown.model._base_manager.order_by("-pk").first()
    assert row is not None, f"no {model} to open"
    for pattern in shown.get_urls():
        assert isinstance(pattern, URLPattern)
        named = pattern.pattern.converters
        assert set(named) <= {"object_id"}, f"what to open of {pattern} is not said"
        if pattern.name is None:
            # The last of Django's patterns leads from old addresses to the page of a row.
            address = reverse(f"admin:{model}_changelist") + f"{row.pk}/"
            yield Page(address, superuser=302, viewer=302)
            continue
        address = reverse(f"admin:{pattern.name}", args=[row.pk] if named else [])
        superuser, viewer = _answers(model, pattern.name.removeprefix(f"{model}_"))
        for query in QUERIES.get(pattern.name, ("",)):
            yield Page(address + query, superuser=superuser, viewer=viewer)


def _answers(model: str, name: str) -> tuple[int, int]:
    if name == "add":
        return 200 if model in ADDED else 403, 403
    if name in ("delete", "unmoved_delete"):
        return 200 if model in DELETED else 403, 403
    return 200, 200


def fill() -> None:
    """Save a row of every model that has an admin here, and a conversation of legacy alone."""
    now = timezone.now()
    user = User.objects.create_user("amira")
    state = AgentState(
        conversation_history=[{"role": "user", "content": f"{SECRET}, message"}],
        memory_context=[{"content": f"{SECRET}, item", "source": "chat"}],
    )
    with forced_phase(Phase.DUAL_WRITE):
        storage.save_state("c", state, user_id=user)
        storage.append_messages("c", [{"role": "user", "content": "redacted"}], user_id=user)
        storage.redact_message("c", 2, user_id=user)
        runs.begin("tables")
        next(runs.work(models.SyncRun.rows.get().pk))
    with forced_phase(Phase.LEGACY):
        storage.save_state("unmoved", state, user_id=user)
    row = models.ConversationState.rows.get(conversation_id="c")
    models.ConversationConflict.rows.create(
        conversation=row, kind="merged", reason="r", revision=1, detail='["x"]', created_at=now
    )
    models.ConversationTombstone.rows.create(conversation_id="gone", deleted_at=now, reason="r")
    models.ConversationMismatch.rows.create(
        conversation_id="c", seen_at=now, phase=1, revision=1, places='["user_input"]'
    )
    MemoryMetadata.objects.create(conversation=row, key="channel", value="web")
    Transition.objects.create(
        at=now, kind="advance", from_phase=0, to_phase=1, actor="amira", reason="r", **RECORDED
    )
    ReportingProcess.objects.create(
        token="t", host="web1", pid=7, version="1", phase=1, epoch=0, seen_at=now
    )
    get_waffle_switch_model().objects.get_or_create(name="use_new_save")
    User.objects.create_superuser("root")
    viewer = User.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))


def answers(client: Client, username: str) -> dict[str, tuple[int, bool]]:
    """Open every page as this user. Returns: its status, and whether it shows content."""
    client.force_login(User.objects.get(username=username))
    found = {}
    for page in pages():
        response = client.get(page.address)
        found[page.address] = (response.status_code, SECRET in response.content.decode())
    return found


def report(*usernames: str) -> None:
    """Print as JSON what each of these users is answered."""
    client = Client(raise_request_exception=False, SERVER_NAME="localhost")
    print(json.dumps({name: answers(client, name) for name in usernames}))
