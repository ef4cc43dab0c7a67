"""The shared base of our admins: nothing is editable, counts are capped, columns are few."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from django.contrib import admin
from django.contrib.admin.options import IS_FACETS_VAR, IS_POPUP_VAR, TO_FIELD_VAR
from django.contrib.admin.views.main import (
    ALL_VAR,
    ERROR_FLAG,
    ORDER_VAR,
    PAGE_VAR,
    SEARCH_VAR,
    ChangeList,
)
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.functional import cached_property
from django.utils.html import format_html, format_html_join

from flags.admin.lookups import FilteredChangeList, FilteredListMixin
from flags.admin.migrated import SaysMigrate
from flags.admin.rights import AsksFirst
from flags.admin.text import Shown, visible

# Counting 200,000 rows takes 239 ms, counting the first 10,001 of them 34 ms.
MOST_COUNTED = 10_001
# The parameters of a list that are no filters.
_NO_FILTERS = {
    *(ALL_VAR, ERROR_FLAG, ORDER_VAR, PAGE_VAR, SEARCH_VAR),
    *(IS_FACETS_VAR, IS_POPUP_VAR, TO_FIELD_VAR),
}
# Filters and searches without an index look among this many of the latest rows. A page without
# results takes 10 ms; looking through 10,000 rows takes up to 7 ms more.
MOST_FILTERED = 5_000
# For the help texts.
LATEST = f"among the latest {MOST_FILTERED:,}"
FILTERED = f"Filters choose {LATEST}."
# The number of choices of a filter, and of the latest rows whose values they are. Each page of the
# list reads them: 10,000 rows would take 5 ms for every such filter.
MOST_CHOICES = 30
MOST_OFFERED = 1_000


class CappedPaginator(Paginator):  # type: ignore[type-arg]
    """A paginator that stops counting at 10,001: search or filter to see more rows."""

    @cached_property
    def count(self) -> int:
        """Return the number of rows, 10,001 at most; without an order, which would cost a sort."""
        rows: Any = self.object_list
        return int(rows.order_by().values("pk")[:MOST_COUNTED].count())

    @property
    def is_capped(self) -> bool:
        """Whether there are more rows than were counted."""
        return self.count >= MOST_COUNTED

    @cached_property
    def num_pages(self) -> int:
        """Return the number of pages; if counting stopped, only of full pages."""
        return max((MOST_COUNTED - 1) // self.per_page, 1) if self.is_capped else super().num_pages


class SortedChangeList(FilteredChangeList):
    """A list that sorts only by the columns in `sortable_by`, for any address."""

    def get_ordering_field(self, field_name: Any) -> Any:
        """Return the field that sorts a column, None if the column is not sortable."""
        allowed = self.model_admin.sortable_by
        if allowed is not None and field_name not in allowed:
            return None
        return super().get_ordering_field(field_name)

    def get_results(self, request: HttpRequest) -> None:
        """Count, and read the rows of the page unless the count is 0."""
        super().get_results(request)
        if not self.result_count:
            self.result_list = self.queryset.none()
        self.result_list = self.model_admin.lines(request, self.result_list)
        if self.is_capped:
            # Templates would show both numbers if they differed.
            self.full_result_count = self.result_count

    @property
    def is_capped(self) -> bool:
        """Whether there are more rows than were counted."""
        # A host's own paginator may count all rows.
        return bool(getattr(self.paginator, "is_capped", False))

    @property
    def as_told(self) -> SortedChangeList:
        """Return a copy for templates that print its count: in words, because it is capped."""
        told = copy.copy(self)
        told.result_count = f"more than {MOST_COUNTED - 1:,}"  # type: ignore[assignment]
        return told


class ReadOnlyAdmin(SaysMigrate, AsksFirst, FilteredListMixin, admin.ModelAdmin):  # type: ignore[type-arg]
    """An admin that only shows rows, because a form would bypass the revisions of the writers.

    A list costs the same for any number of rows. It sorts only by columns with an index. A filter
    or search by a column without one looks among the latest rows.
    """

    paginator = CappedPaginator
    show_full_result_count = False
    # A facet counts every row once per choice.
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 100
    list_max_show_all = 500
    most_filtered = MOST_FILTERED
    # Shown on the page of one row only: they may hold megabytes.
    large_columns: tuple[str, ...] = ()

    class Media:
        css = {"all": ("flags/lists.css", "flags/reading.css")}

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse on our own pages only.

        Django asks this too before it deletes a user with all rows of the user. Without the
        permission, Django also leaves out its bulk deletion.
        """
        return not self._is_own_page(request) and super().has_delete_permission(request, obj)

    def _is_own_page(self, request: HttpRequest) -> bool:
        match = request.resolver_match
        name = "" if match is None else match.url_name or ""
        return name.startswith(f"{self.opts.app_label}_{self.opts.model_name}_")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return SortedChangeList

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request)
        match = request.resolver_match
        own = f"{self.opts.app_label}_{self.opts.model_name}_changelist"
        if match is None or match.url_name != own:
            # Another page may ask which of our rows its reader may see.
            return rows
        rows = rows.defer(*self.large_columns)
        searched = request.GET.get(SEARCH_VAR, "").strip()
        return rows if searched or set(request.GET) <= _NO_FILTERS else self.latest(request, rows)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Return the rows of `found`, each once; all rows without a term or a search."""
        term = search_term.strip()
        searched = bool(term and self.search_fields)
        return (self.found(request, queryset, term) if searched else queryset), False

    def lines(self, request: HttpRequest, rows: Iterable[Any]) -> Iterable[Any]:
        """Return the lines of a page of the list that the reader may see."""
        return rows

    def offered(self, request: HttpRequest, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Return the rows whose values a filter may offer to the reader."""
        return rows

    def found(self, request: HttpRequest, rows: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Return the rows of a search: those with this id of a conversation.

        Django's own search is not used: it splits a term at blanks, which an id may hold.
        """
        return rows.filter(conversation_id=term)

    def latest(self, request: HttpRequest, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Return the rows that are among the latest `most_filtered` of the table."""
        by = str(next(iter(self.ordering or ("-pk",)))).removeprefix("-")
        by = "pk" if by == "id" else by
        return latest(request, rows, by=by, most=self.most_filtered)

    def link(self, label: str, model_name: str, pk: Any, text: Any) -> Any:
        """Return a link to the page of a row, or the text alone if it has no page."""
        shown = one_line(text)
        try:
            url = reverse(f"admin:{label}_{model_name}_change", args=[pk], current_app=self.site)
        except NoReverseMatch:
            return shown
        return format_html('<a href="{}">{}</a>', url, shown)

    @property
    def site(self) -> str:
        """Return the name of the admin site, for links."""
        return str(self.admin_site.name)


def latest(
    request: HttpRequest, rows: QuerySet[Any], *, by: str = "pk", most: int = MOST_FILTERED
) -> QuerySet[Any]:
    """Return the rows that are among the latest `most` of their table.

    One query per request finds where the latest rows begin. With that plain value in the condition,
    the database knows how few rows it has to read.
    """
    known = vars(request).setdefault("reading_latest", {})
    key = (rows.model, by, most)
    if key not in known:
        table = rows.model._base_manager.using(rows.db).order_by(f"-{by}")
        known[key] = table.values_list(by, flat=True)[most - 1 : most].first()
    edge = known[key]
    return rows if edge is None else rows.filter(**{f"{by}__gte": edge})


def one_line(name: Any) -> Any:
    """Return a name or an id that does not wrap in a list; its title has the whole text."""
    text = visible(str(name))
    return format_html('<bdi class="reading-name" title="{}">{}</bdi>', text, text)


def lines(*names: str | None) -> Any:
    """Return names one below the other, each on one line; None if there is none."""
    shown = [one_line(name) for name in names if name]
    return (
        format_html_join("", '<span class="reading-line">{}</span>', ([n] for n in shown)) or None
    )


def preformatted(content: Shown | None) -> Any:
    """Return a text with its line breaks; its own first letters decide its direction."""
    if not content:
        return "-"
    kind = "reading-json" if content.is_json else "reading-text"
    return format_html(
        '<pre class="{}" dir="{}">{}</pre><p class="reading-more">{}</p>',
        kind,
        "ltr" if content.is_json else "auto",
        content.text,
        content.more,
    )


class RecentValuesFilter(admin.SimpleListFilter):
    """A filter whose choices are the values of a column among the latest rows."""

    column = ""

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        model: type[Model] = model_admin.model
        rows = latest(request, model._base_manager.all(), most=MOST_OFFERED)
        values = (
            model_admin.offered(request, rows)
            .filter(**{f"{self.column}__isnull": False})
            .order_by(self.column)
            .values_list(self.column, flat=True)
            .distinct()[:MOST_CHOICES]
        )
        found = [str(value) for value in values]
        chosen = self.value()
        if chosen and chosen not in found and "\x00" not in chosen:
            found.append(chosen)
        return [(value, value) for value in found]

    def has_output(self) -> bool:
        """Show the filter also for a single value, so that the reader sees it."""
        return bool(self.lookup_choices)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value is None:
            return queryset
        return queryset.none() if "\x00" in value else queryset.filter(**{self.column: value})


class ConditionFilter(admin.SimpleListFilter):
    """A filter whose choices are conditions: value, label, and a Q."""

    conditions: tuple[tuple[str, str, Any], ...] = ()

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterator[tuple[str, str]]:
        return ((value, label) for value, label, _ in self.conditions)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        for value, _, condition in self.conditions:
            if value == self.value():
                return queryset.filter(condition)
        return queryset
