"""The address of a list asks for what its filters name, and for nothing else about a row."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.db import models
from django.test import Client, RequestFactory
from django.urls import reverse

from conversations.models import ConversationMessage, ConversationState, SyncRun
from flags.admin import lookups
from flags.models import Transition
from memory.models import MemoryContextItem
from tests.support import admin_pages

pytestmark = pytest.mark.django_db
LOOKUPS = ("", "__startswith", "__contains", "__regex", "__iregex", "__in", "__gt", "__isnull")
BROKEN = ["(a+)+$", "\x00", "9" * 400, "9999-12-31T23:59:59-05:00", "0000-00-00", "nan", "مرحبا"]


@pytest.fixture
def operator(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("operator"))
    return client


def changelist(model: Any) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")


def columns(model: Any) -> list[str]:
    """Return the columns of a model, and those of rows that it leads to."""
    found = []
    for field in model._meta.get_fields():
        found.append(field.name)
        if field.related_model is not None:
            inner = field.related_model._meta.concrete_fields
            found += [f"{field.name}__{each.name}" for each in inner]
    return found


def refusing() -> list[Any]:
    return [pytest.param(shown, id=shown.opts.label_lower) for shown in admin_pages.admins()]


@pytest.mark.parametrize("shown", refusing())
def test_a_list_answers_no_question_but_those_of_its_filters(operator: Client, shown: Any) -> None:
    """No column, no row that this one leads to, no computed column, by no lookup."""
    request = RequestFactory().get("/")
    request.user = User.objects.get(username="operator")
    named = lookups.named_lookups(shown, request)
    request.resolver_match = None  # type: ignore[assignment]
    computed = ["beginning", "newest", "noted", "pk", "id"]
    asked = [name + lookup for name in [*columns(shown.model), *computed] for lookup in LOOKUPS]
    assert [name for name in asked if shown.lookup_allowed(name, "x", request)] == [
        name for name in asked if name in named
    ]
    refused = next(name for name in asked if name.endswith("__startswith"))
    assert operator.get(changelist(shown.model), {refused: "a"}).status_code == 400


@pytest.mark.parametrize("shown", refusing())
def test_a_broken_value_of_a_filter_is_refused_or_ignored(operator: Client, shown: Any) -> None:
    request = RequestFactory().get("/")
    for name in sorted(lookups.named_lookups(shown, request)):
        for value in BROKEN:
            response = operator.get(changelist(shown.model), {name: value})
            # A redirect to the list without the filter.
            assert response.status_code in (200, 302, 400), (name, value)
            if response.status_code == 302:
                assert response.headers["Location"].endswith("?e=1")


@pytest.mark.parametrize("value", BROKEN)
def test_a_broken_search_page_or_order_is_ignored(operator: Client, value: str) -> None:
    for model in (ConversationState, Transition):
        for name in ("q", "p", "o", "all", "nonsense", "e"):
            response = operator.get(changelist(model), {name: value}, follow=True)
            assert response.status_code == 200, name


@pytest.mark.parametrize("shown", refusing())
def test_too_many_values_are_refused(operator: Client, shown: Any) -> None:
    request = RequestFactory().get("/")
    for name in lookups.named_lookups(shown, request):
        many = urlencode([(name, "1")] * (lookups.MOST_VALUES + 1))
        assert operator.get(f"{changelist(shown.model)}?{many}").status_code == 400
        few = urlencode([(name, "1")] * 3)
        assert operator.get(f"{changelist(shown.model)}?{few}").status_code in (200, 302)


def test_a_hundred_thousand_values_are_refused(operator: Client) -> None:
    for name in ("user_input__in", "id__in", "pk__in"):
        address = f"{changelist(ConversationState)}?{name}={','.join(map(str, range(100_000)))}"
        assert operator.get(address).status_code == 400
    words = "a " * 30_000
    for model in (ConversationState, ConversationMessage, Transition):
        assert operator.get(changelist(model), {"q": words}).status_code == 200
    assert operator.get(reverse("admin:waffle_switch_changelist"), {"q": words}).status_code == 200
    assert (
        operator.get(reverse("admin:waffle_switch_changelist"), {"q": "a" * 60_000}).status_code
        == 200
    )


def test_a_reader_of_lists_cannot_ask_for_a_text_that_its_page_refuses(client: Client) -> None:
    admin_pages.fill()
    reader = User.objects.create_user("reader", is_staff=True)
    reader.user_permissions.set(Permission.objects.filter(codename="view_conversationstate"))
    client.force_login(reader)
    text = admin_pages.SECRET
    for name in ("user_input__startswith", "messages__content__contains", "user__password__regex"):
        right = client.get(changelist(ConversationState), {name: text})
        wrong = client.get(changelist(ConversationState), {name: "something else"})
        assert (right.status_code, wrong.status_code) == (400, 400)


@pytest.mark.parametrize(
    ("model", "query", "rows"),
    [
        (ConversationState, {"updated_at__gte": "2020-01-01T00:00:00Z", "lives": "both"}, 1),
        (ConversationState, {"updated_at__lt": "2020-01-01T00:00:00Z"}, 0),
        (SyncRun, {"state__exact": "finished"}, 0),
        (Transition, {"kind__exact": "advance"}, 1),
        (MemoryContextItem, {"source": "chat", "timestamp__isnull": "False"}, 1),
        (MemoryContextItem, {"source": "chat", "utm_source": "newsletter"}, 1),
    ],
)
def test_filters_find_as_before(
    operator: Client, model: Any, query: dict[str, str], rows: int
) -> None:
    admin_pages.fill()
    shown = operator.get(changelist(model), query).context["cl"]
    assert shown.result_count == rows
    assert "utm_source" not in shown.get_query_string()


class Named(admin.FieldListFilter):
    """A filter of a host's own, with parameters of its own."""

    def expected_parameters(self) -> list[str]:
        return ["user__username__istartswith"]

    def choices(self, changelist: Any) -> Any:
        return ()


def test_a_filter_that_a_host_adds_is_asked(operator: Client) -> None:
    class Wider(type(admin.site.get_model_admin(ConversationState))):  # type: ignore[misc]
        list_filter = (("user", Named), "user")

    shown = Wider(ConversationState, admin.site)
    request = RequestFactory().get("/")
    assert shown.lookup_allowed("user__username__istartswith", "a", request)
    assert shown.lookup_allowed("user__id__exact", "1", request)
    assert not shown.lookup_allowed("user__password__istartswith", "a", request)
    assert not shown.lookup_allowed("lives", "both", request)


def test_an_error_that_no_filter_caused_is_not_hidden(
    operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no filter's fault")

    monkeypatch.setattr("django.contrib.admin.views.main.ChangeList.get_results", fail)
    with pytest.raises(ValueError, match="no filter's fault"):
        operator.get(changelist(Transition))
    response = operator.get(changelist(Transition), {"kind__exact": "x"})
    assert response.headers["Location"].endswith("?e=1")


def test_every_admin_of_ours_has_the_rule() -> None:
    ours = admin_pages.admins()
    assert len(ours) >= 14
    assert [shown for shown in ours if not isinstance(shown, lookups.FilteredListMixin)] == []
    assert all(issubclass(shown.model, models.Model) for shown in ours)
