"""The record of the rollout in the admin: for reading. `manage.py rollout` makes the steps."""

from __future__ import annotations

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
from flags.health import Operation
from flags.models import ReportingProcess, Transition
from flags.phases import EVERYTHING, Phase

# How much of a reason a list shows: a few lines.
EXCERPT = 120


class ReadingAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """An admin that shows rows, and counts none of them only to say how many there are."""

    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Transition)
class TransitionAdmin(ReadingAdmin):
    """The history of the rollout, and how the stores are doing."""

    change_list_template = "admin/flags/transition_list.html"
    list_display = ("id", "at", "kind", "step", "actor", "why")
    list_filter = ("kind", "at")
    ordering = ("-id",)
    fields = ("at", "kind", "source", "target", "canary", "actor", "reason", "switches", "gates")
    readonly_fields = fields

    class Media:
        css = {"all": ("flags/health.css", "flags/transitions.css")}

    def get_urls(self) -> list[URLPattern]:
        """Put our page before Django's, whose last pattern takes everything."""
        view = self.admin_site.admin_view(self.health_view)
        return [path("health/", view, name="flags_transition_health"), *super().get_urls()]

    @method_decorator([require_safe, never_cache])
    def health_view(self, request: HttpRequest) -> HttpResponse:
        """Show what `rollout health` and `rollout status` say."""
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
        """Return the phases, and for how many percent of the conversations, in one column."""
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


def _milliseconds(operation: Operation) -> tuple[str, ...]:
    times = (operation.p50, operation.p95, operation.p99)
    return tuple("-" if seconds is None else f"{1000 * seconds:.1f}" for seconds in times)


@admin.register(ReportingProcess)
class ProcessAdmin(ReadingAdmin):
    """The processes that reported lately; those that ended or fell silent go by themselves."""

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
