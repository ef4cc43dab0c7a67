"""Every list of the admin, and what can be asked of it: found in the admin, none named by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from django.contrib import admin
from django.contrib.admin.views.main import PAGE_VAR, SEARCH_VAR
from django.test import Client
from django.urls import reverse

from conversations.models import ConversationState

OURS = ("conversations", "memory", "flags")
# The pages that Django's own admin has for each model.
_DJANGOS = ("changelist", "add", "history", "delete", "change", "autocomplete")
# The link to the next page, as the first one gives it.
_NEXT = "next"
# What the pages that are ours alone are asked; behind a "@" stands what is looked at.
_ASKED: dict[str, tuple[str, ...]] = {
    "conversations_conversationstate_legacy": ("", _NEXT),
    "conversations_conversationstate_unmoved": ("?id=@unmoved",),
    "conversations_conversationstate_unmoved_delete": ("?id=@unmoved",),
    "flags_transition_health": ("",),
}
# And the parts of a conversation's own page.
_PARTS = {
    "transcript": "",
    "transcript, earlier": "?before=10",
    "transcript, later": "?after=3",
    "transcript, superseded": "?superseded=1",
    "transcript, a role": "?role=assistant",
    "context": "?tab=context",
    "records": "?tab=records",
}
# What is looked for in a list: what there is, and what there is not.
_TERMS = ("@name", "@user", "profile", "nothing-of-the-kind")


@dataclass(frozen=True, slots=True)
class Page:
    """What is asked for: `group` and `what` name it in the results, `address` is a template."""

    group: str
    what: str
    address: str

    @property
    def name(self) -> str:
        """Return how it is called in the results."""
        return f"admin: {self.group}" + (f", {self.what}" if self.what else "")

    def at(self, **names: str) -> str:
        """Return the address about a conversation."""
        return re.sub(r"@(\w+)", lambda found: quote(names[found[1]]), self.address)


def lists() -> Iterator[tuple[str, Any]]:
    """Yield the name and the admin of every list that is ours; waffle's switches are, too."""
    for model, shown in admin.site._registry.items():
        if type(shown).__module__.partition(".")[0] in OURS:
            yield f"{model._meta.app_label}/{model._meta.model_name}", shown


def pages_of(client: Client) -> list[Page]:
    """Return every page that lists something.

    Raises: LookupError for a page of ours that nobody has said how to ask for.
    """
    found: list[Page] = []
    for name, shown in lists():
        found += _of_list(client, name, shown)
        found += _of_own(client, shown)
    state = ConversationState._meta
    change = _address(state, "change", "@pk")
    for what, query in _PARTS.items():
        found.append(Page("a conversation", what, change + query))
    found.append(Page("a conversation", "delete", _address(state, "delete", "@pk")))
    return found


def _of_list(client: Client, name: str, shown: Any) -> Iterator[Page]:
    address = _address(shown.opts, "changelist")
    listed = _shown(client, address)["cl"]
    yield Page(name, "", address)
    if listed.paginator.num_pages > 1:
        yield Page(f"{name}, next", "", f"{address}?{PAGE_VAR}=2")
    for place, column in enumerate(listed.list_display):
        if listed.get_ordering_field(column):
            for sign in ("", "-"):
                query = urlencode({"o": f"{sign}{place}"})
                yield Page(f"{name}, sorted", f"{sign}{column}", f"{address}?{query}")
    for offered in listed.filter_specs:
        for choice in offered.choices(listed):
            if not choice["selected"]:
                what = f"{offered.title}: {choice['display']}"
                yield Page(f"{name}, filtered", what, address + choice["query_string"])
    if listed.search_fields:
        for term in _TERMS:
            yield Page(f"{name}, searched", term, f"{address}?{SEARCH_VAR}={term}")


def _of_own(client: Client, shown: Any) -> Iterator[Page]:
    known = {f"{shown.opts.app_label}_{shown.opts.model_name}_{name}" for name in _DJANGOS}
    for pattern in shown.get_urls():
        if not pattern.name or pattern.name in known:
            continue
        if pattern.name not in _ASKED:
            raise LookupError(f"nobody has said how {pattern.name} is asked for")
        address = reverse(f"admin:{pattern.name}")
        for query in _ASKED[pattern.name]:
            if query != _NEXT:
                yield Page(pattern.name, "", address + query)
            elif link := _shown(client, address)["next"]:
                yield Page(f"{pattern.name}, next", "", address + link)


def _shown(client: Client, address: str) -> dict[str, Any]:
    """Return what a page's template is given."""
    answer: Any = client.get(address)
    found: dict[str, Any] = answer.context_data
    return found


def _address(opts: Any, name: str, *args: str) -> str:
    return reverse(f"admin:{opts.app_label}_{opts.model_name}_{name}", args=args)
