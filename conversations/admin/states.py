"""Conversations in the admin: the list, and the pages behind it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.text import slugify

from conversations import conf
from conversations.admin import legacy
from conversations.admin.deletions import DeletesConversations
from conversations.admin.residence import CONDITIONS, residence_of
from conversations.admin.views import ConversationViews
from conversations.models import ConversationState
from flags.admin.base import FILTERED, ConditionFilter, ReadOnlyAdmin, one_line
from flags.admin.rights import rights_of


class ResidenceFilter(ConditionFilter):
    title, parameter_name = "where it lives", "lives"
    conditions = tuple(
        (name.value.replace(" ", "-"), name.value, condition)
        for name, condition in CONDITIONS.items()
    )


@admin.register(ConversationState)
class ConversationAdmin(ConversationViews, DeletesConversations, ReadOnlyAdmin):
    """Conversations: found by id and user, read as a transcript, deleted through the API."""

    change_list_template = "admin/conversations/conversation_list.html"
    list_display = ("shown_id", "owner", "message_count", "last_activity", "lives")
    list_filter = (ResidenceFilter, "updated_at", "created_at")
    list_select_related = ("user",)
    search_fields = ("conversation_id",)
    search_help_text = (
        f"The exact id of a conversation, or a user: user name or primary key. {FILTERED}"
    )
    # state_by_activity, state_conversation_id and state_by_user
    ordering = ("-updated_at", "-conversation_id")
    sortable_by = ("shown_id", "owner", "last_activity")
    actions = ("delete_selected",)
    large_columns = ("user_input", "focus_areas", "last_tool_result", "extra")

    class Media:
        css = {"all": ("conversations/conversation.css",)}

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return admin.ModelAdmin.has_delete_permission(self, request, obj)

    def lines(self, request: HttpRequest, rows: Iterable[Any]) -> Iterable[Any]:
        """Return the lines of a page of the list that the reader may see."""
        rights = rights_of(self.admin_site, request)
        return rights.viewable_rows(list(rows)) if rights.asks else rows

    def found(self, request: HttpRequest, rows: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by the id of the conversation, or by its user; all of these have an index."""
        wanted = Q(conversation_id=term) | Q(legacy_user_id=term)
        return rows.filter(wanted | Q(user_id__in=_users(term)))

    @transaction.non_atomic_requests(using=conf.alias())
    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """List conversations. The bulk deletion commits each one by itself."""
        context = {"has_legacy": legacy.has_legacy(), "title": "Conversations"}
        return super().changelist_view(request, context | (extra_context or {}))

    @admin.display(description="conversation id", ordering="conversation_id")
    def shown_id(self, row: ConversationState) -> Any:
        """Return the id on one line."""
        return one_line(row.conversation_id)

    @admin.display(description="user", ordering="user_id")
    def owner(self, row: ConversationState) -> Any:
        """Return the user, or the owner that only legacy knows."""
        if row.user_id is None:
            owner = row.legacy_user_id
            return one_line(f"{owner} (in legacy only)") if owner else "-"
        user: Any = get_user_model()._meta
        return self.link(user.app_label, user.model_name, row.user_id, row.user)

    @admin.display(description="last activity", ordering="updated_at")
    def last_activity(self, row: ConversationState) -> Any:
        """Return the time of the conversation's last write."""
        return row.updated_at

    @admin.display(description="lives in")
    def lives(self, row: ConversationState) -> Any:
        """Return the store, or stores, that hold it."""
        residence = residence_of(row.revision, row.legacy_revision)
        return format_html(
            '<span class="cs-badge cs-lives-{}" title="{}">{}</span>',
            slugify(residence),
            residence.explanation,
            residence,
        )


def _users(term: str) -> list[Any]:
    """Return the primary keys of the users with that name or primary key."""
    model: Any = get_user_model()
    wanted = Q(**{model.USERNAME_FIELD: term})
    with suppress(ValidationError, ValueError, TypeError, OverflowError):
        wanted |= Q(pk=model._meta.pk.to_python(term))
    users = model._default_manager.using(conf.alias()).filter(wanted)
    return list(users.values_list("pk", flat=True)[:100])
