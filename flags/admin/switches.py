"""Waffle's switches in the admin, with the meaning of ours: alone, and in combination."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from waffle import get_waffle_switch_model
from waffle.admin import SwitchAdmin

from flags.admin.lookups import FilteredListMixin
from flags.admin.rights import AsksFirst
from flags.beginnings import ANSWER, QUESTION, unanswered
from flags.conf import conversations_settings
from flags.phases import HELP_TEXTS, Plan, Switch, switches_for
from flags.switches import try_read_settings


def phase_notice() -> dict[str, Any]:
    """Return the meaning of the stored switches, for the top of the list and of the form.

    Returns: `phase` (its label), `plan`, `mixed`, `emergency`; `turn`, the switches to flip so
    that they spell the phase in force; `unanswered`, the (question, answer) about where the
    rollout begins. {} if the switches could not be read.
    """
    found = try_read_settings()
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
        "unanswered": (QUESTION, ANSWER) if unanswered() else (),
    }


def _differences(plan: Plan, values: Mapping[str, bool]) -> Iterator[str]:
    for switch, wanted in switches_for(plan.phase).items():
        if values[switch] != wanted:
            yield f"{switch} {'on' if wanted else 'off'}"


def help_text(name: str) -> str:
    """Return the help text of one of our switches; "" for any other switch."""
    return HELP_TEXTS[Switch(name)] if name in [*Switch] else ""


class RoutingSwitchAdmin(AsksFirst, FilteredListMixin, SwitchAdmin):
    """Waffle's own admin, with help texts for our switches. Others look as before."""

    change_list_template = "admin/flags/switch_list.html"
    change_form_template = "admin/flags/switch_form.html"
    list_display = ("name", "active", "meaning", "created", "modified")

    class Media:
        css = {"all": ("flags/lists.css", "flags/switches.css")}

    @admin.display(description="what it does")
    def meaning(self, switch: Any) -> str:
        """Return our help text; for other switches their note."""
        return help_text(switch.name) or switch.note

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        """Leave out the bulk deletion, as waffle does: it flushes no cache.

        The signature is Django 6.1's, which waffle 5.0 lacks.
        """
        where = {} if action_location is None else {"action_location": action_location}
        actions: dict[str, Any] = admin.ModelAdmin.get_actions(self, request, **where)
        actions.pop("delete_selected", None)
        return actions

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Make the names of our switches read-only: a renamed switch would fall to its default."""
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
    """Replace waffle's admin, unless the host has its own there, or none."""
    model = get_waffle_switch_model()
    if site.is_registered(model) and type(site.get_model_admin(model)) is SwitchAdmin:
        site.unregister(model)
        site.register(model, RoutingSwitchAdmin)


register(admin.site)
