"""The lookups that the address of a list may use: those of its filters, and no others.

Django lets a reader of a list filter by every column of its model, and by computed columns too.
So `?content__startswith=`, letter by letter, would reveal a text whose page is refused. A nested
`__regex` would keep a SQLite worker busy for hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.contrib import admin
from django.contrib.admin.exceptions import DisallowedModelAdminLookup
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import get_fields_from_path
from django.contrib.admin.views.main import ChangeList
from django.db.models.constants import LOOKUP_SEP
from django.http import HttpRequest

# A filter asks for one value, seldom for a few. SQLite refuses a condition of 1,000 values.
MOST_VALUES = 20
# SQLite refuses a LIKE pattern of 50,000 bytes, and a condition with 1,000 words.
LONGEST_TERM = 1_000
MOST_WORDS = 50


class FilteredChangeList(ChangeList):
    """A list that takes from its address only the lookups of its filters.

    Another lookup on a column answers 400; a name that is no column is ignored.
    """

    model_admin: Any
    filter_params: dict[str, list[str]]

    def get_filters(self, request: HttpRequest) -> Any:
        """Return the filters.

        Raises: DisallowedModelAdminLookup, which answers 400; IncorrectLookupParameters, which
        leads to the list without filters.
        """
        known = {*self.root_queryset.query.annotations, "pk"}
        known |= {field.name for field in self.opts.get_fields()}
        known |= {getattr(field, "attname", field.name) for field in self.opts.get_fields()}
        for name, values in self.get_filters_params().items():
            if name in named_lookups(self.model_admin, request):
                if len(values) > MOST_VALUES:
                    raise DisallowedModelAdminLookup(f"More than {MOST_VALUES} values for {name}")
                if any("\x00" in value for value in values):
                    # PostgreSQL's texts cannot hold NUL.
                    raise IncorrectLookupParameters(name)
            elif name.split(LOOKUP_SEP)[0] not in known:
                del self.filter_params[name]
        return super().get_filters(request)

    def get_results(self, request: HttpRequest) -> None:
        """Read the rows of the page.

        Raises: IncorrectLookupParameters if a filter's value cannot be sent to the database.
        """
        try:
            super().get_results(request)
        except (ValueError, OverflowError) as error:
            # One example is a time at the end of the calendar on SQLite.
            if not self.get_filters_params():
                raise
            raise IncorrectLookupParameters(error) from error


class FilteredListMixin:
    """The part of a ModelAdmin that answers only the lookups of its filters."""

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return FilteredChangeList

    def lookup_allowed(self, lookup: str, value: Any, request: Any = None) -> bool:
        """Whether a filter in `list_filter` uses exactly this lookup."""
        return lookup in named_lookups(self, request)

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> Any:
        """Return Django's results; a term that is too long for a database finds nothing."""
        if len(search_term) > LONGEST_TERM or len(search_term.split()) > MOST_WORDS:
            return queryset.none(), False
        return super().get_search_results(request, queryset, search_term)  # type: ignore[misc]


def named_lookups(model_admin: Any, request: HttpRequest) -> frozenset[str]:
    """Return the parameters that the filters of a list read. Computed once per request."""
    known: dict[Any, frozenset[str]] = {}
    if request is not None:
        known = vars(request).setdefault("named_lookups", known)
    if model_admin not in known:
        known[model_admin] = frozenset(_expected(model_admin, request))
    return known[model_admin]


def _expected(model_admin: Any, request: HttpRequest) -> Iterator[Any]:
    for entry in model_admin.get_list_filter(request):
        if isinstance(entry, type) and issubclass(entry, admin.SimpleListFilter):
            # Not created: that would ask the database for the choices.
            yield entry.parameter_name or ""
        elif callable(entry):
            yield from entry(request, {}, model_admin.model, model_admin).expected_parameters()
        else:
            path, kind = entry if isinstance(entry, tuple | list) else (entry, None)
            kind = kind or admin.FieldListFilter.create
            field = get_fields_from_path(model_admin.model, path)[-1]
            made = kind(field, request, {}, model_admin.model, model_admin, field_path=path)
            yield from made.expected_parameters()
