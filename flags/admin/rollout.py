"""The record of the rollout in the admin: for reading. `manage.py rollout` makes the steps."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet, Subquery
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from flags import health
from flags.admin.base import ReadOnlyAdmin
from flags.admin.rights import ConversationRights, rights_of
from flags.health import Operation
from flags.models import ReportingProcess, Transition
from flags.phases import EVERYTHING, Phase

# A list shows this many characters of a reason: a few lines.
EXCERPT = 120
# The keys of a gate's evidence that name conversations.
NAMING = ("ids", "waived")


@admin.register(Transition)
class TransitionAdmin(ReadOnlyAdmin):
    """The history of the rollout, and the health of the stores."""

    change_list_template = "admin/flags/transition_list.html"
    list_display = ("id", "at", "kind", "step", "actor", "why")
    list_filter = ("kind", "at")
    ordering = ("-id",)
    fields = ("at", "kind", "source", "target", "canary", "actor", "reason", "switches", "gates")
    readonly_fields = fields

    class Media:
        css = {"all": ("flags/health.css", "flags/transitions.css")}

    def get_urls(self) -> list[URLPattern]:
        """Put our page before Django's, whose last pattern matches everything."""
        view = self.admin_site.admin_view(self.health_view)
        return [path("health/", view, name="flags_transition_health"), *super().get_urls()]

    def get_object(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Return a transition, without the ids of conversations that the reader may not view."""
        row = super().get_object(request, *args, **kwargs)
        rights = rights_of(self.admin_site, request)
        if row is not None and rights.by_row:
            row.gates = json.dumps([_seen(gate, rights) for gate in json.loads(row.gates)])
        return row

    @method_decorator([require_safe, never_cache])
    def health_view(self, request: HttpRequest) -> HttpResponse:
        """Show the content of `rollout health` and `rollout status`."""
        if not self.has_view_permission(request):
            # admin_view alone lets every member of staff in.
            raise PermissionDenied
        request.current_app = self.admin_site.name
        found = health.report()
        context = {
            **self.admin_site.each_context(request),
            "title": "Health",
            "original": "Health",
            "opts": self.opts,
            "media": self.media,
            "has_view_permission": True,
            "health": found,
            "operations": [(each, _milliseconds(each)) for each in found.operations],
        }
        return TemplateResponse(request, "admin/flags/health.html", context)

    @admin.display(description="step", ordering="to_phase")
    def step(self, row: Transition) -> str:
        """Return the phases, and the percentage of the conversations, in one column."""
        share = "" if row.canary >= EVERYTHING else f" for {row.canary:g} %"
        return f"{self.source(row)} to {self.target(row)}{share}"

    @admin.display(description="reason", ordering="reason", empty_value="-")
    def why(self, row: Transition) -> str:
        """Return the beginning of the reason; the row's own page has all of it."""
        return row.reason[:EXCERPT] + ("…" if len(row.reason) > EXCERPT else "")

    @admin.display(description="from", ordering="from_phase")
    def source(self, row: Transition) -> str:
        """Return the label of the phase that was left."""
        return Phase(row.from_phase).label

    @admin.display(description="to", ordering="to_phase")
    def target(self, row: Transition) -> str:
        """Return the label of the phase that was entered."""
        return Phase(row.to_phase).label


def _seen(gate: dict[str, Any], rights: ConversationRights) -> dict[str, Any]:
    """Return the answer of a gate, without ids if the reader may not view all of them."""
    found = [gate["evidence"].get(key) for key in NAMING]
    # A host's own gate may keep any value there.
    every = [name for names in found if isinstance(names, list | dict) for name in names]
    named = {name for name in every if isinstance(name, str)}
    if rights.viewable_names(named) == named:
        return gate
    left = {key: value for key, value in gate["evidence"].items() if key not in NAMING}
    # A message names some of the ids at its end.
    return {**gate, "message": gate["message"].partition(": ")[0], "evidence": left}


def _milliseconds(operation: Operation) -> tuple[str, ...]:
    times = (operation.p50, operation.p95, operation.p99)
    return tuple("-" if seconds is None else f"{1000 * seconds:.1f}" for seconds in times)


@admin.register(ReportingProcess)
class ProcessAdmin(ReadOnlyAdmin):
    """The processes that reported lately; rows of ended or silent ones are removed."""

    list_display = ("host", "pid", "version", "acts_as", "epoch", "is_up_to_date", "seen_at")
    ordering = ("host", "pid")
    fields = ("host", "pid", "version", "acts_as", "epoch", "seen_at")
    readonly_fields = fields

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the rows with the latest transition beside each."""
        newest = Transition.objects.order_by("-pk").values("pk")[:1]
        rows: QuerySet[Any] = super().get_queryset(request).annotate(newest=Subquery(newest))
        return rows

    @admin.display(description="phase", ordering="phase")
    def acts_as(self, row: ReportingProcess) -> str:
        """Return the label of the phase that the process acts on."""
        return Phase(row.phase).label

    @admin.display(description="latest transition", boolean=True)
    def is_up_to_date(self, row: Any) -> bool:
        """Whether the process acts on the latest transition; a young one takes a few seconds."""
        return row.newest is None or row.epoch >= row.newest
