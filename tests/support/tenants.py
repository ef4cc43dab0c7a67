"""A host that keeps its tenants' conversations apart in the admin: its policy, site and URLs.

A user's last name is their tenant.
"""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.urls import path, reverse

from conversations.admin import ConversationAdmin
from conversations.models import ConversationState

NAME = "tenants"


def of_one_tenant(user: Any, conversation: Any) -> bool:
    """Whether a conversation, saved or not, belongs to the tenant of a member of staff."""
    owner = conversation.user
    return user.is_superuser or (owner is not None and owner.last_name == user.last_name)


class ListsOne:
    """Lists the conversations of the reader's tenant."""

    def get_queryset(self, request: Any) -> Any:
        rows = super().get_queryset(request)  # type: ignore[misc]
        if request.user.is_superuser:
            return rows
        return rows.filter(user__last_name=request.user.last_name)


class AsksForEach:
    """Refuses the conversations of other tenants."""

    def has_view_permission(self, request: Any, obj: Any = None) -> bool:
        allowed = super().has_view_permission(request, obj)  # type: ignore[misc]
        return allowed and (obj is None or of_one_tenant(request.user, obj))

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:
        allowed = super().has_delete_permission(request, obj)  # type: ignore[misc]
        return allowed and (obj is None or of_one_tenant(request.user, obj))


class TenantAdmin(ListsOne, AsksForEach, ConversationAdmin):
    """What docs/admin.md tells a host to override, and nothing else."""


def site_with(policy: type[admin.ModelAdmin[Any]] | None) -> admin.AdminSite:
    """Return a site with every admin of the default one, but for that of conversations."""
    site = admin.AdminSite(NAME)
    for model, shown in admin.site._registry.items():
        chosen = policy if model is ConversationState else type(shown)
        if chosen is not None:
            site.register(model, chosen)
    return site


def urls_of(site: admin.AdminSite) -> list[Any]:
    """Return the URLs of such a site, beside the default one."""
    return [path(f"{NAME}/", site.urls), path("admin/", admin.site.urls)]


def url(name: str, *args: Any) -> str:
    """Return the address of a page of the tenants' site."""
    return reverse(f"admin:{name}", args=args, current_app=NAME)


site = site_with(TenantAdmin)
urlpatterns = urls_of(site)
