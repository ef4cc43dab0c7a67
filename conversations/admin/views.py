"""The conversation admin's views beside Django's: reading, and the list of legacy."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.utils.http import urlencode
from django.views.decorators.http import require_safe

from conversations import conf
from conversations.admin import legacy
from conversations.admin.pages import (
    Asked,
    context_of,
    facts_of,
    records_of,
    transcript_of,
)
from conversations.exceptions import (
    ConversationNotFound,
    InvalidState,
    StorageUnavailable,
)
from conversations.models import ConversationConflict, ConversationMessage, ConversationState
from flags.admin.migrated import says_migrate
from flags.admin.rights import ConversationRights, rights_of
from flags.texts import shown
from memory.models import MemoryContextItem, MemoryMetadata

PREFIX = "conversations_conversationstate"


class ConversationViews:
    """The part of a ModelAdmin that shows conversations."""

    admin_site: Any
    opts: Any

    def get_urls(self) -> list[URLPattern]:
        """Put our pages before Django's, whose last pattern matches every address."""
        wrap = self.admin_site.admin_view
        own = [
            path("legacy/", wrap(self.legacy_view), name=f"{PREFIX}_legacy"),
            path("legacy/conversation/", wrap(self.unmoved_view), name=f"{PREFIX}_unmoved"),
            path("legacy/delete/", wrap(self.unmoved_delete_view), name=f"{PREFIX}_unmoved_delete"),
        ]
        return own + super().get_urls()  # type: ignore[misc,no-any-return]

    @says_migrate
    @method_decorator(require_safe)
    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show one conversation. There is nothing to change here."""
        row = self.get_object(request, unquote(object_id))  # type: ignore[attr-defined]
        self._check_view(request, row)
        if row is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined,no-any-return]
        return self._page(request, row, extra_context=extra_context)

    @says_migrate
    @method_decorator(require_safe)
    def unmoved_view(self, request: HttpRequest) -> HttpResponse:
        """Show a conversation of legacy, named in the address; one with a row has its own page."""
        self._check_view(request)
        conversation_id = self._asked_id(request)
        try:
            pk, found = self._unmoved(request, conversation_id)
        except StorageUnavailable as error:
            asked = ConversationState(conversation_id=conversation_id)
            return self._page(request, asked, problem=str(error))
        if pk is not None:
            return HttpResponseRedirect(self._url("change", pk))
        if found is None or not self._rights(request).may_view(found):
            return self._gone(request)
        return self._page(request, found)

    @method_decorator(require_safe)
    def legacy_view(self, request: HttpRequest) -> HttpResponse:
        """List legacy's conversations, also those that the tables do not know."""
        self._check_view(request)
        cursor = request.GET.get("before", "")
        shared = {"title": "Conversations in legacy", "original": "In legacy"}
        context: dict[str, Any] = {"status": 200}
        try:
            rights = self._rights(request)
            page = legacy.legacy_page(rights, cursor=cursor)
            context["most_asked"] = legacy.MOST_ASKED if rights.by_row else None
            context["lines"] = [(line, self._line_url(line)) for line in page.lines]
            context["next"] = f"?{urlencode({'before': page.next})}" if page.next else ""
            context["continued"] = bool(cursor)
        except StorageUnavailable as error:
            context |= {"problem": str(error), "status": 503}
        return self._answer(request, "legacy.html", shared | context)

    # Two stores and a log entry: all or nothing, and no success message before the commit.
    @transaction.non_atomic_requests(using=conf.alias())
    def unmoved_delete_view(self, request: HttpRequest) -> HttpResponse:
        """Confirm and delete a conversation without a row; others have pages of their own."""
        if not self.has_delete_permission(request):  # type: ignore[attr-defined]
            raise PermissionDenied
        conversation_id, rights = self._asked_id(request), self._rights(request)
        try:
            pk, found = self._unmoved(request, conversation_id)
        except StorageUnavailable as error:
            self._say(request, f"Nothing was deleted. {error}", messages.ERROR)
            return self._back(request, "legacy")
        if pk is not None:
            return HttpResponseRedirect(self._url("delete", pk))
        if found is None or not rights.may_delete(found):
            if found is not None and rights.may_view(found):
                raise PermissionDenied
            return self._gone(request)
        if request.method != "POST":
            context = {
                "title": "Delete",
                "original": conversation_id,
                "conversation_id": conversation_id,
                "status": 200,
            }
            return self._answer(request, "unmoved_delete.html", context)
        try:
            self.delete_and_log(request, found)  # type: ignore[attr-defined]
            self._say(request, f"{shown(conversation_id)} was deleted.", messages.SUCCESS)
        except ConversationNotFound:
            self._say(request, "This conversation was deleted already.", messages.ERROR)
        except StorageUnavailable as error:
            self._say(request, f"Nothing was deleted. {error}", messages.ERROR)
        return self._back(request, "legacy")

    def _unmoved(self, request: HttpRequest, conversation_id: str) -> tuple[Any, Any]:
        """Return the key of a conversation's row, or a stand-in for one that only legacy holds.

        Returns: neither if there is no such conversation; a hidden row looks the same. Raises:
        StorageUnavailable.
        """
        rows = ConversationState.rows.using(conf.alias()).filter(conversation_id=conversation_id)
        pk = rows.values_list("pk", flat=True).first()
        rights = self._rights(request)
        if pk is not None:
            return (pk if rights.lists(pk) else None), None
        return None, legacy.stand_in(rights, conversation_id)

    def _page(
        self,
        request: HttpRequest,
        conversation: ConversationState,
        *,
        problem: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show a conversation: a row, or its stand-in."""
        row = conversation if conversation.pk is not None else None
        conversation_id = conversation.conversation_id
        asked = Asked.of(request, page_id="" if row is not None else conversation_id)
        context: dict[str, Any] = {
            "title": "Conversation",
            "original": conversation_id,
            "conversation_id": conversation_id,
            "asked": asked,
            "facts": facts_of(row),
            "origin": self._origin(request, row),
            "delete_url": self._delete_url(request, conversation),
            "status": 200,
        }
        try:
            if not problem:
                context |= self._tab(request, conversation_id, row, asked)
        except ConversationNotFound:
            return self._gone(request)
        except (StorageUnavailable, InvalidState) as error:
            problem = str(error)
        if problem:
            context |= {"problem": problem, "status": 503}
        return self._answer(request, "conversation.html", context | (extra_context or {}))

    def _tab(
        self,
        request: HttpRequest,
        conversation_id: str,
        row: ConversationState | None,
        asked: Asked,
    ) -> dict[str, Any]:
        """Read the data of the chosen tab, as far as this reader may see them."""
        if asked.tab == "transcript":
            if not self._may_view(request, ConversationMessage):
                return {"forbidden": "messages"}
            return {"transcript": transcript_of(conversation_id, asked)}
        if asked.tab == "context":
            if not self._may_view(request, MemoryContextItem):
                return {"forbidden": "context items"}
            return {"context": context_of(conversation_id, row)}
        seen = {
            "metadata": self._may_view(request, MemoryMetadata),
            "conflicts": self._may_view(request, ConversationConflict),
        }
        return {"records": records_of(row, **seen), "seen": seen}

    # Shared by the views

    def _rights(self, request: HttpRequest) -> ConversationRights:
        return rights_of(self.admin_site, request)

    def _origin(self, request: HttpRequest, row: ConversationState | None) -> Any:
        """Return the key of the fork's origin, if the reader may see that."""
        if row is None or row.forked_from_id is None:
            return None
        return next(iter(self._rights(request).viewable_keys([row.forked_from_id])), None)

    def _gone(self, request: HttpRequest) -> HttpResponse:
        self._say(request, "There is no such conversation (any more).", messages.WARNING)
        return self._back(request, "changelist")

    def _back(self, request: HttpRequest, name: str) -> HttpResponse:
        """Redirect to one of our pages, or to the admin's index if the reader may view none."""
        if self.has_view_or_change_permission(request):  # type: ignore[attr-defined]
            return HttpResponseRedirect(self._url(name))
        return HttpResponseRedirect(reverse("admin:index", current_app=self.admin_site.name))

    def _check_view(self, request: HttpRequest, row: ConversationState | None = None) -> None:
        """Refuse readers who may not view: `admin_view` alone admits every member of staff."""
        if not self.has_view_or_change_permission(request, row):  # type: ignore[attr-defined]
            raise PermissionDenied

    def _may_view(self, request: HttpRequest, model: type[Model]) -> bool:
        if not self.admin_site.is_registered(model):
            return False
        shown: Any = self.admin_site.get_model_admin(model)
        return bool(shown.has_view_permission(request))

    def _asked_id(self, request: HttpRequest) -> str:
        conversation_id = request.GET.get("id", "")
        if not 0 < len(conversation_id) <= 255 or "\x00" in conversation_id:
            raise Http404("No conversation has this id.")
        return conversation_id

    def _answer(self, request: HttpRequest, name: str, context: dict[str, Any]) -> HttpResponse:
        request.current_app = self.admin_site.name
        shared = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,  # type: ignore[attr-defined]
            "has_view_permission": True,
        }
        template = f"admin/conversations/{name}"
        return TemplateResponse(request, template, shared | context, status=context["status"])

    def _url(self, name: str, *args: Any) -> str:
        return reverse(f"admin:{PREFIX}_{name}", args=args, current_app=self.admin_site.name)

    def _line_url(self, line: legacy.LegacyLine) -> str:
        if line.residence == "deleted":
            return ""
        if line.pk is not None:
            return self._url("change", line.pk)
        return f"{self._url('unmoved')}?{urlencode({'id': line.conversation_id})}"

    def _delete_url(self, request: HttpRequest, conversation: ConversationState) -> str:
        if conversation.pk is not None:
            allowed = self.has_delete_permission(request, conversation)  # type: ignore[attr-defined]
            return self._url("delete", conversation.pk) if allowed else ""
        if not self._rights(request).may_delete(conversation):
            return ""
        return f"{self._url('unmoved_delete')}?{urlencode({'id': conversation.conversation_id})}"

    def _say(self, request: HttpRequest, text: str, level: int) -> None:
        self.message_user(request, text, level)  # type: ignore[attr-defined]
