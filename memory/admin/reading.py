"""What every admin here shares: nothing is editable, counts are capped, columns are few."""

from __future__ import annotations

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
from django.utils.html import format_html

from memory.admin.text import Shown

# Counting 200,000 rows takes 239 ms, counting the first 10,001 of them 34 ms.
MOST_COUNTED = 10_001
# What a list is asked for besides filters.
_NO_FILTERS = {
    *(ALL_VAR, ERROR_FLAG, ORDER_VAR, PAGE_VAR, SEARCH_VAR),
    *(IS_FACETS_VAR, IS_POPUP_VAR, TO_FIELD_VAR),
}
# Among how many of the latest rows filters and searches look that no index serves. A page that
# finds nothing takes 10 ms, and looking through 10,000 rows up to 7 ms more.
MOST_FILTERED = 5_000
# For the help texts.
LATEST = f"among the latest {MOST_FILTERED:,}"
FILTERED = f"Filters choose {LATEST}."
# What a filter offers, and of how many of the latest rows these are the values. Each page of the
# list looks for them: 10,000 rows take it 5 ms for every such filter.
MOST_CHOICES = 30
MOST_OFFERED = 1_000


class CappedPaginator(Paginator):  # type: ignore[type-arg]
    """A paginator that stops counting at 10,001: search or filter to see what is behind."""

    @cached_property
    def count(self) -> int:
        """Return the number of rows, 10,001 at most; without their order, which costs a sort."""
        rows: Any = self.object_list
        return int(rows.order_by().values("pk")[:MOST_COUNTED].count())


class SortedChangeList(ChangeList):
    """A list that is sorted by the columns in `sortable_by`, whatever its address says."""

    def get_ordering_field(self, field_name: Any) -> Any:
        """Return what a column is sorted by, None where it is not."""
        allowed = self.model_admin.sortable_by
        if allowed is not None and field_name not in allowed:
            return None
        return super().get_ordering_field(field_name)

    def get_results(self, request: HttpRequest) -> None:
        """Count, and read the rows of the page; what is counted to be none is not looked for."""
        super().get_results(request)
        if not self.result_count:
            self.result_list = self.queryset.none()


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """An admin that shows rows. What writes them keeps revisions, which a form would bypass.

    A list costs the same however many rows there are. It is sorted by what has an index; what has
    none is looked for, by a filter or a search, among the latest rows.
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
        css = {"all": ("memory/reading.css",)}

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse on our own pages only.

        Django asks this as well before it deletes a user with everything that is theirs. The
        bulk deletion that it offers by itself goes with the permission.
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
        if match is None or not (match.url_name or "").endswith("_changelist"):
            return rows
        rows = rows.defer(*self.large_columns)
        searched = request.GET.get(SEARCH_VAR, "").strip()
        return rows if searched or set(request.GET) <= _NO_FILTERS else self.latest(request, rows)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Return what `found` finds, each once; everything without a term or a search."""
        term = search_term.strip()
        searched = bool(term and self.search_fields)
        return (self.found(request, queryset, term) if searched else queryset), False

    def found(self, request: HttpRequest, rows: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Return those of the rows that a search is for: with this id of a conversation.

        Not as Django does: it takes a term apart at blanks, which an id may hold.
        """
        return rows.filter(conversation_id=term)

    def latest(self, request: HttpRequest, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Return those of the rows that are among the latest `most_filtered` of the table."""
        by = str(next(iter(self.ordering or ("-pk",)))).removeprefix("-")
        by = "pk" if by == "id" else by
        return latest(request, rows, by=by, most=self.most_filtered)

    def link(self, label: str, model_name: str, pk: Any, text: Any) -> Any:
        """Return a link to the page of a row, or the text alone where it has none."""
        try:
            url = reverse(f"admin:{label}_{model_name}_change", args=[pk], current_app=self.site)
        except NoReverseMatch:
            return text
        return format_html('<a href="{}">{}</a>', url, text)

    @property
    def site(self) -> str:
        """Return the name of the admin site, for links."""
        return self.admin_site.name


def latest(
    request: HttpRequest, rows: QuerySet[Any], *, by: str = "pk", most: int = MOST_FILTERED
) -> QuerySet[Any]:
    """Return those of the rows that are among the latest `most` of their table.

    The database is asked once per request where these begin: a plain number lets it know how few
    they are.
    """
    known = vars(request).setdefault("reading_latest", {})
    key = (rows.model, by, most)
    if key not in known:
        table = rows.model._base_manager.using(rows.db).order_by(f"-{by}")
        known[key] = table.values_list(by, flat=True)[most - 1 : most].first()
    edge = known[key]
    return rows if edge is None else rows.filter(**{f"{by}__gte": edge})


def preformatted(content: Shown | None) -> Any:
    """Return a text with its line breaks; its direction is that of its own first letters."""
    if not content:
        return "-"
    more = f"… {content.hidden:,} more characters" if content.hidden else ""
    kind = "reading-json" if content.is_json else "reading-text"
    return format_html(
        '<pre class="{}" dir="{}">{}</pre><p class="reading-more">{}</p>',
        kind,
        "ltr" if content.is_json else "auto",
        content.text,
        more,
    )


class RecentValuesFilter(admin.SimpleListFilter):
    """A filter whose choices are the values of a column among the latest rows."""

    column = ""

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        model: type[Model] = model_admin.model
        values = (
            latest(request, model._base_manager.all(), most=MOST_OFFERED)
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
        """Show the filter also when there is one value: it tells which."""
        return bool(self.lookup_choices)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value is None:
            return queryset
        return queryset.none() if "\x00" in value else queryset.filter(**{self.column: value})


class ConditionFilter(admin.SimpleListFilter):
    """A filter whose choices are conditions: value, what it is called, and a Q."""

    conditions: tuple[tuple[str, str, Any], ...] = ()

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterator[tuple[str, str]]:
        return ((value, label) for value, label, _ in self.conditions)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        for value, _, condition in self.conditions:
            if value == self.value():
                return queryset.filter(condition)
        return queryset
