"""A host that keeps tenants apart overrides one admin, and every page of ours keeps them apart.

What is hidden looks like what is not there: the pages of a tenant's staff are the same, byte for
byte, whatever other tenants have.
"""

from __future__ import annotations

import functools
import html
import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.db import connection
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import clear_url_caches
from django.utils import timezone

from conversations import models, storage
from conversations.admin import ConversationAdmin, legacy
from conversations.content.document import Document
from conversations.models import ConversationState
from conversations.stores.chunks.store import ChunkStore
from flags.admin.rights import ConversationRights
from flags.models import Transition
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryContextItem, MemoryMetadata
from tests.support import tenants
from tests.support.factories import state
from tests.support.processes import ROOT
from tests.support.tenants import TenantAdmin, url

pytestmark = pytest.mark.django_db
STATES = "conversations_conversationstate"
# The tenants, and the names of what is theirs.
OWN, HIDDEN = "amber", "cobalt"
# Of every model whose rows show a part of a conversation, or name one.
CONTENT = [
    models.ConversationConflict,
    models.ConversationMessage,
    models.ConversationMismatch,
    models.ConversationRedaction,
    models.ConversationState,
    models.ConversationTombstone,
    MemoryChunk,
    MemoryContextItem,
    MemoryMetadata,
]
# What each list is asked for.
LISTS = ("", "?q=cobalt", "?o=1&version=current")
# Nothing says whose these are, so this host hides them from every tenant.
OWNERLESS = [models.ConversationTombstone]


@pytest.fixture(autouse=True)
def site(settings: Any) -> Any:
    settings.ROOT_URLCONF = tenants.__name__
    return tenants.site


@pytest.fixture
def amira() -> User:
    return User.objects.create_user("amira", last_name=OWN)


@pytest.fixture
def noor() -> User:
    return User.objects.create_user("noor", last_name=HIDDEN)


@pytest.fixture
def staff(client: Client) -> Client:
    """Log in a member of the own tenant's staff, who may view everything, and delete."""
    user = User.objects.create_user("staff", last_name=OWN, is_staff=True)
    wanted = Permission.objects.filter(codename__startswith="view_")
    deleting = Permission.objects.filter(codename="delete_conversationstate")
    user.user_permissions.set(wanted | deleting)
    client.force_login(user)
    return client


def save(name: str, user: User | None, *, phase: Phase = Phase.DUAL_WRITE, lines: int = 2) -> Any:
    said = [f"{name} said {number}" for number in range(lines)]
    items = [{"content": f"{name} noted", "source": f"source of {name}"}]
    with forced_phase(phase):
        storage.save_state(name, state(*said, memory_context=items), user)
    return ConversationState.rows.filter(conversation_id=name).first()


def fill(name: str, user: User) -> None:
    """Save rows of every kind for one tenant: in both stores, in legacy alone, and deleted."""
    now = timezone.now()
    with forced_phase(Phase.DUAL_WRITE):
        row = save(name, user)
        storage.redact_message(name, 1, replacement=f"redacted of {name}", user_id=user)
    save(f"{name}-unmoved", user, phase=Phase.LEGACY)
    save(f"{name}-deleted", user)
    storage.delete_conversation(f"{name}-deleted", user)
    models.ConversationConflict.rows.create(
        conversation=row, kind="merged", reason=name, revision=1, detail="{}", created_at=now
    )
    for named in (name, f"{name}-unmoved"):
        models.ConversationMismatch.rows.create(
            conversation_id=named, seen_at=now, phase=1, revision=1, places="[]"
        )
    message, item = row.messages.first(), MemoryContextItem.objects.filter(conversation=row).first()
    for target in ({"conversation": row}, {"message": message}, {"context_item": item}):
        MemoryMetadata.objects.create(key=f"key of {name}", value=f"{name} value", **target)
    MemoryChunk.objects.create(user=user, content=f"{name} long-term", created_at=now)


def address(model: Any, name: str, *args: Any) -> str:
    return url(f"{model._meta.app_label}_{model._meta.model_name}_{name}", *args)


def every_row() -> dict[Any, list[int]]:
    return {model: list(model._base_manager.values_list("pk", flat=True)) for model in CONTENT}


def pages(rows: dict[Any, list[int]]) -> list[str]:
    """Return the addresses of pages of content: every list, and of each model a row or two."""
    found = [address(model, "changelist") + query for model in CONTENT for query in LISTS]
    for model, keys in rows.items():
        found += [address(model, "change", pk) for pk in {keys[0], keys[-1]}]
        found.append(address(model, "history", keys[0]))
    conversation = address(ConversationState, "change", rows[ConversationState][0])
    found += [f"{conversation}?tab={tab}" for tab in ("context", "records")]
    found.append(address(ConversationState, "delete", rows[ConversationState][0]))
    found.append(url(f"{STATES}_legacy"))
    for name in ("unmoved", "unmoved_delete"):
        for said in ("amber", "amber-unmoved", "amber-unmoved&tab=context"):
            found.append(url(f"{STATES}_{name}") + f"?id={said}")
    return found


def asked(client: Client, page: str, method: str = "get") -> tuple[int, str, list[str], str]:
    """Return an answer, without what differs from one request to the next.

    Returns: status, where it leads to, the messages, and the page.
    """
    client.cookies.pop("messages", None)
    response = getattr(client, method)(page)
    told = [str(message) for message in get_messages(response.wsgi_request)]
    tokens = re.compile(r'name="csrfmiddlewaretoken" value="\w+"')
    text = tokens.sub("", response.content.decode())
    return response.status_code, response.headers.get("Location", ""), told, text


def test_the_rows_of_other_tenants_change_no_page(staff: Client, amira: User, noor: User) -> None:
    """Lists, counts, choices of filters, searches, transcripts, records, previews."""
    fill("amber", amira)
    # A search for what is also the id of a hidden conversation.
    storage.update_state_partial("amber", {"new_context_items": [{"source": "cobalt"}]})
    rows = every_row()
    addresses = pages(rows)
    before = {page: asked(staff, page) for page in addresses}
    fill("cobalt", noor)
    for page in addresses:
        assert asked(staff, page) == before[page], page
    opened = {page for page, (status, *_) in before.items() if status == 200}
    for model, keys in rows.items():
        assert (address(model, "change", keys[0]) in opened) == (model not in OWNERLESS), model


def hidden_rows(user: User) -> dict[Any, list[int]]:
    before = every_row()
    fill("cobalt", user)
    return {
        model: [pk for pk in keys if pk not in before[model]] for model, keys in every_row().items()
    }


def unnumbered(answer: tuple[Any, ...]) -> str:
    return re.sub(r"\d+", "#", str(answer))


@pytest.mark.parametrize("method", ["get", "post"])
def test_a_hidden_row_answers_as_one_that_is_not_there(
    staff: Client, noor: User, method: str
) -> None:
    rows = hidden_rows(noor)
    for model, keys in rows.items():
        assert keys, model
        missing = max(keys) + 1000
        for name in ("change", "history", "delete"):
            nothing = asked(staff, address(model, name, missing), method)
            for pk in {keys[0], keys[-1]}:
                found = asked(staff, address(model, name, pk), method)
                assert unnumbered(found) == unnumbered(nothing), (model, name)
    assert every_row() == rows


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("name", ["unmoved", "unmoved_delete"])
def test_a_hidden_id_answers_as_one_that_is_not_there(
    staff: Client, noor: User, name: str, method: str
) -> None:
    rows = hidden_rows(noor)
    page = url(f"{STATES}_{name}")
    nothing = asked(staff, f"{page}?id=missing", method)
    for said in ("cobalt", "cobalt-unmoved", "cobalt-deleted"):
        assert asked(staff, f"{page}?id={said}", method) == nothing, said
    assert every_row() == rows


def test_legacys_delete_page_leads_to_the_page_of_a_row(staff: Client, amira: User) -> None:
    pk = save("amber", amira).pk
    page = f"{url(f'{STATES}_unmoved_delete')}?id=amber"
    for answer in (staff.get(page), staff.post(page)):
        assert answer.headers["Location"] == address(ConversationState, "delete", pk)
    assert ConversationState.objects.filter(pk=pk).exists()


def test_a_tenant_deletes_what_is_theirs(staff: Client, amira: User) -> None:
    fill("amber", amira)
    staff.post(f"{url(f'{STATES}_unmoved_delete')}?id=amber-unmoved")
    row = ConversationState.objects.get(conversation_id="amber")
    staff.post(address(ConversationState, "delete", row.pk), {"post": "yes"})
    assert storage.conversation_exists("amber-unmoved") is False
    assert storage.conversation_exists("amber") is False


def test_who_may_view_but_not_delete_is_refused_and_not_told_that_it_is_gone(
    staff: Client, amira: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("amber-unmoved", amira, phase=Phase.LEGACY)

    def refuse(self: Any, request: Any, obj: Any = None) -> bool:
        return obj is None

    monkeypatch.setattr(TenantAdmin, "has_delete_permission", refuse)
    page = f"{url(f'{STATES}_unmoved_delete')}?id=amber-unmoved"
    assert (staff.get(page).status_code, staff.post(page).status_code) == (403, 403)
    read = staff.get(f"{url(f'{STATES}_unmoved')}?id=amber-unmoved")
    assert (read.status_code, read.context["delete_url"]) == (200, "")
    assert storage.conversation_exists("amber-unmoved")


def test_the_bulk_deletion_takes_no_hidden_conversation(
    staff: Client, amira: User, noor: User
) -> None:
    own, hidden = save("amber", amira).pk, save("cobalt", noor).pk
    chosen = {"action": "delete_selected", "_selected_action": [own, hidden], "post": "yes"}
    for across in ("0", "1"):
        staff.post(address(ConversationState, "changelist"), chosen | {"select_across": across})
    assert list(ConversationState.objects.values_list("pk", flat=True)) == [hidden]


def test_a_fork_does_not_name_a_hidden_origin(staff: Client, amira: User, noor: User) -> None:
    own, hidden, other = save("amber", amira), save("cobalt", noor), save("other", amira)
    page = address(ConversationState, "change", own.pk)
    for origin, named in ((hidden, False), (other, True)):
        ConversationState.rows.filter(pk=own.pk).update(forked_from=origin)
        assert (
            address(ConversationState, "change", origin.pk) in staff.get(page).content.decode()
        ) is named


def test_rows_of_another_owner_under_one_id_stay_theirs(
    staff: Client, amira: User, noor: User
) -> None:
    """A blob of another tenant's user that names a conversation of this tenant."""
    save("amber", amira)
    ours = list(MemoryChunk.objects.values_list("pk", flat=True))
    with forced_phase(Phase.LEGACY):
        ChunkStore().save("amber", _document("cobalt text"), owner=str(noor.pk))
    listed = staff.get(address(MemoryChunk, "changelist")).context["cl"].result_list
    assert [row.pk for row in listed] == ours
    theirs = MemoryChunk.objects.exclude(pk__in=ours).get()
    assert staff.get(address(MemoryChunk, "change", theirs.pk)).status_code == 302
    described = staff.get(address(MemoryMetadata, "changelist")).context["cl"].result_list
    assert {row.chunk_id for row in described} == set(ours)
    lines = staff.get(url(f"{STATES}_legacy")).context["lines"]
    assert lines == []


def _document(text: str) -> Any:
    return Document.from_dict(state(text).to_dict())


# Records of runs and steps


def test_records_of_all_conversations_leave_out_hidden_ids(
    staff: Client, amira: User, noor: User
) -> None:
    now = timezone.now()
    save("amber", amira)
    save("cobalt", noor)
    run = models.SyncRun.rows.create(
        target="tables", cursor='"cobalt"', upper='"cobalt"', batch_size=1, started_at=now
    )
    notes = [[name, "failed", "why", "error"] for name in ("amber", "cobalt", "cobalt-unknown")]
    batch = models.SyncBatch.rows.create(
        run=run, low="7", high='"cobalt"', noted=json.dumps(notes), taken_at=now
    )
    gates = [
        _gate("2 conversations are not in order: amber, cobalt.", ids=["amber", "cobalt"]),
        _gate("1 conversations are not in order: amber.", ids=["amber"]),
        _gate("everything is in order.", waived={"cobalt": "known"}),
        _gate("somebody's own", ids=7),
    ]
    step = Transition.objects.create(
        at=now, kind="advance", from_phase=0, to_phase=1, switches="{}", gates=json.dumps(gates)
    )
    for row in (run, batch, step):
        for name in ("change", "history"):
            response = staff.get(address(type(row), name, row.pk))
            assert response.status_code == 200
            assert "cobalt" not in _text(response), (row, name)
    assert (
        "[[&quot;amber&quot;"
        in staff.get(address(models.SyncBatch, "change", batch.pk)).content.decode()
    )
    said = _text(staff.get(address(Transition, "change", step.pk)))
    assert "1 conversations are not in order: amber." in said
    assert "somebody's own" in said
    staff.force_login(User.objects.create_superuser("root"))
    for row in (run, batch, step):
        assert "cobalt" in _text(staff.get(address(type(row), "change", row.pk)))


def _gate(message: str, **evidence: Any) -> dict[str, Any]:
    return {"gate": "g", "passed": True, "message": message, "evidence": evidence, "waived": ""}


def _text(response: Any) -> str:
    words = re.sub(r"<[^>]+>", " ", response.content.decode())
    return html.unescape(" ".join(words.split()))


# The list of legacy


def legacy_lines(client: Client, query: str = "") -> tuple[list[str], str]:
    response = client.get(url(f"{STATES}_legacy") + query)
    return [line.conversation_id for line, _ in response.context["lines"]], response.context["next"]


def test_legacy_is_listed_past_what_is_hidden(
    staff: Client, amira: User, noor: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legacy, "PER_PAGE", 2)
    monkeypatch.setattr(legacy, "AT_ONCE", 3)
    for number in range(3):
        save(f"amber{number}", amira, phase=Phase.LEGACY, lines=1)
        for other in range(4):
            save(f"cobalt{number}-{other}", noor, phase=Phase.LEGACY, lines=1)
    first, following = legacy_lines(staff)
    assert (first, "cobalt" in following) == (["amber2", "amber1"], False)
    assert legacy_lines(staff, following) == (["amber0"], "")
    # Of six lines at most, which the first of a page may take it to.
    monkeypatch.setattr(legacy, "MOST_ASKED", 6)
    assert legacy_lines(staff) == (["amber2"], "")


def test_who_sees_all_sees_all_of_legacy(staff: Client, amira: User, noor: User) -> None:
    for name, user in (("amber", amira), ("cobalt", noor), ("nobodys", None)):
        save(name, user, phase=Phase.LEGACY)
    assert legacy_lines(staff)[0] == ["amber"]
    staff.force_login(User.objects.create_superuser("root"))
    assert legacy_lines(staff)[0] == ["nobodys", "cobalt", "amber"]


def test_a_filter_of_messages_looks_at_the_messages_of_all_conversations(
    staff: Client, amira: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook's own list looks at the latest conversations where it is filtered."""
    monkeypatch.setattr(TenantAdmin, "most_filtered", 1)
    for name in ("amber", "amber2"):
        save(name, amira, lines=1)
    page = address(models.ConversationMessage, "changelist")
    for query in ("", "?version=current"):
        assert staff.get(page + query).context["cl"].result_count == 2


# What a host may leave out


class ListingOnly(tenants.ListsOne, ConversationAdmin):
    """A host that overrides the list alone."""


class AskingOnly(tenants.AsksForEach, ConversationAdmin):
    """A host that overrides the permissions alone."""


def test_where_only_rows_are_listed_what_has_no_row_is_hidden(
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


def test_where_only_permissions_are_asked_no_list_shows_what_they_refuse(
    staff: Client, amira: User, noor: User, policy: Callable[[Any], None]
) -> None:
    policy(AskingOnly)
    fill("amber", amira)
    fill("cobalt", noor)
    for model in CONTENT:
        found = _text(staff.get(address(model, "changelist")))
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
        assert "cobalt" not in _text(staff.get(address(model, "changelist"))), model
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
    assert "cobalt said" in _text(client.get(address(models.ConversationMessage, "changelist")))
    assert client.get(address(MemoryContextItem, "changelist")).status_code == 403


@pytest.fixture
def policy(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Let the host register another admin of conversations."""

    def register(shown: Any) -> None:
        made = tenants.site_with(shown)
        monkeypatch.setattr(tenants, "urlpatterns", tenants.urls_of(made))
        clear_url_caches()

    return register


@pytest.fixture(autouse=True)
def _clear() -> Iterator[None]:
    yield
    clear_url_caches()


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


# Statements


def test_no_list_asks_a_statement_a_line(staff: Client, amira: User, noor: User) -> None:
    lists = {model: address(model, "changelist") for model in CONTENT}
    lists["legacy"] = url(f"{STATES}_legacy")

    def statements() -> dict[Any, int]:
        counts = {}
        for model, page in lists.items():
            with CaptureQueriesContext(connection) as caught:
                assert staff.get(page).status_code == 200
            counts[model] = len(caught)
        return counts

    fill("amber", amira)
    fill("cobalt", noor)
    # The switches are read anew once in half a second, whatever a page asks for.
    with forced_phase(Phase.DUAL_WRITE):
        statements()
        few = statements()
        for number in range(2):
            fill(f"amber{number}", amira)
            fill(f"cobalt{number}", noor)
        assert statements() == few
    assert max(few.values()) <= 14
