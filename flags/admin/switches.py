"""Waffle's switches in the admin, with what ours mean: alone, and in combination."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from waffle import get_waffle_switch_model
from waffle.admin import SwitchAdmin

from flags.conf import conversations_settings
from flags.phases import HELP_TEXTS, Plan, Switch, switches_for
from flags.switches import stored_settings


def phase_notice() -> dict[str, Any]:
    """Return what the stored switches mean together, for the top of the list and of the form.

    Returns: `phase` (its label), `plan`, `mixed`, `emergency`, and `turn`: what to flip so that
    the switches spell the phase as which they act. {} when they could not be read.
    """
    found = stored_settings()
    if found is None:
        return {}
    values, plan = found.switches, found.plan
    return {
        "phase": plan.phase.label,
        "plan": plan,
        "mixed": plan.mixed,
        "emergency": plan.emergency,
        "canary": found.canary,
        "turn": list(_differences(plan, values)),
        "ignored": not conversations_settings().get("LEGACY"),
    }


def _differences(plan: Plan, values: Mapping[str, bool]) -> Iterator[str]:
    for switch, wanted in switches_for(plan.phase).items():
        if values[switch] != wanted:
            yield f"{switch} {'on' if wanted else 'off'}"


def help_text(name: str) -> str:
    """Return what one of our switches does; "" for any other switch."""
    return HELP_TEXTS[Switch(name)] if name in [*Switch] else ""


class RoutingSwitchAdmin(SwitchAdmin):
    """Waffle's own admin, where our switches say what they do. Others look as before."""

    change_list_template = "admin/flags/switch_list.html"
    change_form_template = "admin/flags/switch_form.html"
    list_display = ("name", "active", "meaning", "created", "modified")

    class Media:
        css = {"all": ("flags/switches.css",)}

    @admin.display(description="what it does")
    def meaning(self, switch: Any) -> str:
        """Return our help text; for other switches their note."""
        return help_text(switch.name) or switch.note

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        """Leave out the bulk deletion, as waffle does: it flushes no cache.

        With the signature of Django 6.1, which waffle 5.0 has not.
        """
        where = {} if action_location is None else {"action_location": action_location}
        actions: dict[str, Any] = admin.ModelAdmin.get_actions(self, request, **where)
        actions.pop("delete_selected", None)
        return actions

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Keep the names of our switches: under another name the default would hold instead."""
        fields = tuple(super().get_readonly_fields(request, obj))
        return (*fields, "name") if obj is not None and help_text(obj.name) else fields

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Put the help text above the fields."""
        fieldsets = super().get_fieldsets(request, obj)
        text = help_text(obj.name) if obj is not None else ""
        if not text:
            return fieldsets
        (title, options), *rest = fieldsets
        fields = sorted(options["fields"], key=lambda name: name != "name")
        return [(title, {**options, "fields": fields, "description": text}), *rest]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the phase above the list."""
        context = {"switches": phase_notice(), **(extra_context or {})}
        return super().changelist_view(request, context)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show the phase above the form."""
        context = {"switches": phase_notice(), **(extra_context or {})}
        return super().change_view(request, object_id, form_url, context)


def register(site: admin.AdminSite) -> None:
    """Take waffle's place, unless the host has put its own admin there (or none)."""
    model = get_waffle_switch_model()
    if site.is_registered(model) and type(site.get_model_admin(model)) is SwitchAdmin:
        site.unregister(model)
        site.register(model, RoutingSwitchAdmin)


register(admin.site)
