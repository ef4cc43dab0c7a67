"""The conversations that a member of staff may see: one hook for every page of ours.

The hook is the admin that a site has for conversations. A host that separates rows, by tenant for
example, overrides its `get_queryset`, `has_view_permission` and `has_delete_permission`. Every
page that shows or names a conversation asks these. `flags` knows no store: it knows only the name
of the conversations' model, and the columns for the id and the owner.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from django.apps import apps
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet, prefetch_related_objects
from django.http import HttpRequest, HttpResponse

# The packages whose methods are not the host's own.
_OURS = ("django", "flags", "memory", "conversations")
# SQLite refuses a statement with too many parameters.
_PAGE = 500

# A conversation, as a row of legacy or of a record names it: its id, and the primary key of its
# owner as text, None if no owner is recorded.
Subject = tuple[str, str | None]


class ConversationRights:
    """The conversations that one request may see. The hook is asked once for each.

    If a host overrides nothing, the hook is not asked: the permission to view the model of a page
    decides alone.
    """

    def __init__(self, site: admin.AdminSite, request: HttpRequest) -> None:
        model = apps.get_model("conversations", "ConversationState")
        # Without an admin of conversations, the permissions of the model still hold.
        known = site.is_registered(model)
        self.hook: Any = site.get_model_admin(model) if known else admin.ModelAdmin(model, site)
        self._model, self._request = model, request
        self._keys: dict[Any, bool] = {}
        self._subjects: dict[Subject, bool] = {}

    @cached_property
    def rows(self) -> QuerySet[Any]:
        """Return the conversations that the hook lists, in no order."""
        rows: QuerySet[Any] = self.hook.get_queryset(self._request)
        return rows.order_by()

    @property
    def hides(self) -> bool:
        """Whether the hook leaves out some conversations of its list."""
        return bool(self.rows.query.where)

    @property
    def asks(self) -> bool:
        """Whether the hook has a view permission of its own for each conversation."""
        return self._is_hosts_own("has_view_permission")

    @property
    def by_row(self) -> bool:
        """Whether rights may differ from conversation to conversation."""
        return self.asks or self.hides

    def may_view_any(self) -> bool:
        """Whether conversations may be viewed at all."""
        return not self.asks or bool(self.hook.has_view_permission(self._request))

    def within(self, rows: QuerySet[Any], path: str) -> QuerySet[Any]:
        """Return the rows whose conversation, found by `path`, is in the hook's list."""
        return rows.filter(**{f"{path}__in": self.rows.values("pk")}) if self.hides else rows

    def lists(self, key: Any) -> bool:
        """Whether the hook lists the conversation with this primary key."""
        return not self.hides or self.rows.filter(pk=key).exists()

    def viewable_rows(self, conversations: Sequence[Any]) -> list[Any]:
        """Return the viewable ones of conversations that the hook has listed."""
        if not self.asks:
            return list(conversations)
        prefetch_related_objects(conversations, "user")
        found = []
        for row in conversations:
            if row.pk not in self._keys:
                self._keys[row.pk] = bool(self.hook.has_view_permission(self._request, row))
            if self._keys[row.pk]:
                found.append(row)
        return found

    def viewable_keys(self, keys: Iterable[Any]) -> set[Any]:
        """Return the primary keys of the viewable conversations among these."""
        wanted = set(keys)
        if not self.by_row:
            return wanted
        large = getattr(self.hook, "large_columns", ())
        for page in _pages(wanted - self._keys.keys()):
            rows = list(self.rows.filter(pk__in=page).defer(*large))
            seen = {row.pk for row in self.viewable_rows(rows)}
            self._keys |= {key: key in seen for key in page}
        return {key for key in wanted if self._keys[key]}

    def viewable_subjects(self, subjects: Iterable[Subject]) -> set[Subject]:
        """Return the viewable ones of the conversations, named by id and owner.

        The hook is asked about the row of a conversation. Without a row, or if the row has another
        owner, it is asked about an unsaved instance with that id and owner.
        """
        wanted = set(subjects)
        if not self.by_row:
            return wanted
        unknown = wanted - self._subjects.keys()
        rows = self._owners_of({name for name, _ in unknown})
        seen = self.viewable_keys(key for key, _ in rows.values())
        rest = []
        for name, owner in unknown:
            key, actual = rows.get(name, (None, None))
            self._subjects[name, owner] = key in seen
            if key is None or (key in seen and owner not in (None, actual)):
                rest.append((name, owner))
        for subject, conversation in self.stand_ins(rest).items():
            self._subjects[subject] = self.may_view(conversation)
        return {subject for subject in wanted if self._subjects[subject]}

    def viewable_names(self, names: Iterable[str]) -> set[str]:
        """Return the ids of the viewable conversations among these."""
        return {name for name, _ in self.viewable_subjects((name, None) for name in names)}

    def stand_ins(self, subjects: Sequence[Subject]) -> Mapping[Subject, Any]:
        """Return an unsaved instance for each, about which the hook can be asked."""
        named = {owner for _, owner in subjects if owner is not None}
        users = _users(named, using=self.rows.db)
        return {
            (name, owner): self._model(
                conversation_id=name,
                user=users.get(owner),
                legacy_user_id=None if owner in users else owner,
            )
            for name, owner in subjects
        }

    def may_view(self, stand_in: Any) -> bool:
        """Whether a conversation without a row may be viewed.

        If the hook only filters rows, it cannot decide, and the answer is no.
        """
        if not self.asks:
            return not self.hides
        return bool(self.hook.has_view_permission(self._request, stand_in))

    def may_delete(self, stand_in: Any) -> bool:
        """Whether a conversation without a row may be deleted.

        If the hook has no delete permission of its own, only viewable conversations may be.
        """
        own = self._is_hosts_own("has_delete_permission")
        if self.by_row and not own and not self.may_view(stand_in):
            return False
        return bool(self.hook.has_delete_permission(self._request, stand_in))

    def _is_hosts_own(self, method: str) -> bool:
        if method in vars(self.hook):
            return True
        kind = next(base for base in type(self.hook).__mro__ if method in vars(base))
        found = vars(kind)[method]
        # A decorator gives its function the module of the wrapped one; ours are not wrapped.
        return hasattr(found, "__wrapped__") or any(
            each.__module__.partition(".")[0] not in _OURS for each in (kind, found)
        )

    def _owners_of(self, names: set[str]) -> dict[str, tuple[Any, str | None]]:
        """Return primary key and owner of the rows of these ids, viewable or not."""
        found: dict[str, tuple[Any, str | None]] = {}
        rows = self._model._base_manager.using(self.rows.db)
        columns = ("conversation_id", "pk", "user_id", "legacy_user_id")
        for page in _pages(names):
            known = rows.filter(conversation_id__in=page).values_list(*columns)
            for name, key, user, legacy in known:
                found[name] = key, legacy if user is None else str(user)
        return found


def rights_of(site: admin.AdminSite, request: HttpRequest) -> ConversationRights:
    """Return the rights of a request to conversations on a site."""
    known = vars(request).setdefault("conversation_rights", {})
    if site not in known:
        known[site] = ConversationRights(site, request)
    return known[site]  # type: ignore[no-any-return]


def _users(keys: Iterable[str], *, using: str) -> dict[str | None, Any]:
    """Return the users with these primary keys."""
    model: Any = get_user_model()
    field = model._meta.pk
    wanted = {}
    for key in keys:
        # Legacy may name an owner that no user's key can be.
        with suppress(ValidationError, ValueError, TypeError, OverflowError):
            value = field.to_python(key)
            field.run_validators(value)
            wanted[key] = value
    found: dict[Any, Any] = {}
    for page in _pages(wanted.values()):
        found |= model._base_manager.using(using).in_bulk(page)
    return {key: found[value] for key, value in wanted.items() if value in found}


def _pages(values: Iterable[Any]) -> Iterator[list[Any]]:
    every = list(values)
    return (every[start : start + _PAGE] for start in range(0, len(every), _PAGE))


class AsksFirst:
    """The part of a ModelAdmin that asks for the permission before it looks for a row.

    Django's page of a row's history looks first. So it would reveal the existing rows to a user
    who may view nothing.
    """

    object_history_template: Any = "admin/flags/history.html"

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the history of a row to a user who may view it."""
        if not self.has_view_or_change_permission(request):  # type: ignore[attr-defined]
            raise PermissionDenied
        return super().history_view(request, object_id, extra_context)  # type: ignore[misc,no-any-return]
