"""Deleting conversations in the admin: a capped preview, then the public API, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from conversations import conf
from conversations.exceptions import ConversationNotFound, StorageUnavailable
from conversations.models import ConversationConflict, ConversationMessage, ConversationState
from conversations.storage import ANY_OWNER, delete_conversation
from flags.admin.base import MOST_COUNTED
from memory.models import MemoryContextItem, MemoryMetadata

# Each conversation is a transaction of its own: more would take longer than a request may.
MOST_AT_ONCE = 500
MOST_LISTED = 20


class DeletesConversations:
    """The part of a ModelAdmin that deletes conversations."""

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[str], dict[str, Any], set[str], list[str]]:
        """Count the rows that are deleted with the conversations, instead of listing them.

        Django's own preview of 100,000 messages takes 22 s and 14 MB.
        """
        chosen = list(objs)
        allowed = all(self.has_delete_permission(request, obj) for obj in chosen)  # type: ignore[attr-defined]
        lines = [f"Conversation {obj.conversation_id}" for obj in chosen[:MOST_LISTED]]
        if len(chosen) > MOST_LISTED:
            lines.append(f"… and {len(chosen) - MOST_LISTED:,} more conversations")
        lines.append("Everything that legacy holds under the same id")
        lacking = set() if allowed else {str(ConversationState._meta.verbose_name)}
        return lines, _counts(chosen), lacking, []

    def delete_model(self, request: HttpRequest, obj: ConversationState) -> None:
        """Delete a conversation from both stores.

        Raises: ConversationNotFound if another request was faster, StorageUnavailable.
        """
        if not delete_conversation(obj.conversation_id, ANY_OWNER):
            raise ConversationNotFound

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Delete each conversation through the API; see `delete_selected`."""
        for obj in queryset:
            self.delete_model(request, obj)

    # A host's ATOMIC_REQUESTS would roll back deletions that the messages have already reported.
    @transaction.non_atomic_requests(using=conf.alias())
    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Confirm and delete one conversation; on failure say so, and log nothing."""
        try:
            return super().delete_view(request, object_id, extra_context)  # type: ignore[misc,no-any-return]
        except ConversationNotFound:
            self._warn(request, "This conversation was deleted already.")
        except StorageUnavailable as error:
            self._warn(request, f"Nothing was deleted. {error}")
        return HttpResponseRedirect(self._changelist_url())

    @admin.action(permissions=["delete"], description="Delete selected conversations")
    def delete_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Confirm, then delete one after the other and report how many were deleted."""
        chosen = queryset[: MOST_AT_ONCE + 1]
        if len(chosen) > MOST_AT_ONCE:
            self._warn(request, f"Select {MOST_AT_ONCE} conversations at most.")
            return None
        if not request.POST.get("post"):
            return delete_selected(self, request, chosen)  # type: ignore[arg-type]
        if not all(self.has_delete_permission(request, obj) for obj in chosen):  # type: ignore[attr-defined]
            raise PermissionDenied
        self._delete_each(request, list(chosen))
        return None

    def _delete_each(self, request: HttpRequest, chosen: Sequence[ConversationState]) -> None:
        deleted = gone = 0
        for obj in chosen:
            try:
                self.delete_and_log(request, obj)
                deleted += 1
            except ConversationNotFound:
                gone += 1
            except StorageUnavailable as error:
                left = len(chosen) - deleted - gone
                self._warn(request, f"{_said(left)} not deleted. {error}")
                break
        if gone:
            self._warn(request, f"{_said(gone)} already deleted by another user.")
        if deleted:
            self.message_user(request, f"{_said(deleted)} deleted.", messages.SUCCESS)  # type: ignore[attr-defined]

    def delete_and_log(self, request: HttpRequest, obj: ConversationState) -> None:
        """Delete one conversation and write its log entry, with only its id, in one transaction."""
        with transaction.atomic(using=conf.alias()):
            self.log_deletions(request, [obj])  # type: ignore[attr-defined]
            self.delete_model(request, obj)

    def _warn(self, request: HttpRequest, text: str) -> None:
        self.message_user(request, text, messages.ERROR)  # type: ignore[attr-defined]

    def _changelist_url(self) -> str:
        site: Any = self.admin_site  # type: ignore[attr-defined]
        return reverse("admin:conversations_conversationstate_changelist", current_app=site.name)


def _said(count: int) -> str:
    return "1 conversation was" if count == 1 else f"{count:,} conversations were"


def _counts(chosen: Sequence[ConversationState]) -> dict[str, Any]:
    """Return how many rows of each kind are deleted, counted to 10,000."""
    pks = [obj.pk for obj in chosen]
    within = {"conversation_id__in": pks}
    alias = conf.alias()
    metadata = MemoryMetadata.objects.using(alias).order_by().values("pk")
    described = metadata.filter(**within).union(
        metadata.filter(message__conversation_id__in=pks),
        metadata.filter(context_item__conversation_id__in=pks),
        all=True,
    )
    found = {
        "conversations": len(pks),
        "messages, with superseded versions": _capped(
            ConversationMessage.rows.using(alias).filter(**within)
        ),
        "context items": _capped(MemoryContextItem.objects.using(alias).filter(**within)),
        "metadata": _capped(described),
        "conflicts": _capped(ConversationConflict.rows.using(alias).filter(**within)),
    }
    return {name: count for name, count in found.items() if count}


def _capped(rows: QuerySet[Any]) -> int | str:
    count = rows.order_by()[:MOST_COUNTED].count()
    return count if count < MOST_COUNTED else f"more than {MOST_COUNTED - 1:,}"
