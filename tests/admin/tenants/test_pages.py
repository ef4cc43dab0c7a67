"""A host that keeps tenants apart overrides one admin, and every page of ours keeps them apart.

What is hidden looks like what is not there: the pages of a tenant's staff are the same, byte for
byte, whatever other tenants have.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.messages import get_messages
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from conversations import models, storage
from conversations.content.document import Document
from conversations.models import ConversationState
from conversations.stores.chunks.store import ChunkStore
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk, MemoryMetadata
from tests.support.factories import state
from tests.support.tenant_rows import CONTENT, OWNERLESS, STATES, address, fill, save
from tests.support.tenants import TenantAdmin, url

pytestmark = pytest.mark.django_db

# What each list is asked for.
LISTS = ("", "?q=cobalt", "?o=1&version=current")


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


def test_a_viewer_without_delete_permission_is_refused_and_not_told_that_it_is_gone(
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
    # The switches are read anew once in half a second, on any page.
    with forced_phase(Phase.DUAL_WRITE):
        statements()
        few = statements()
        for number in range(2):
            fill(f"amber{number}", amira)
            fill(f"cobalt{number}", noor)
        assert statements() == few
    assert max(few.values()) <= 14
