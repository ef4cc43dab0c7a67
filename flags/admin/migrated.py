"""Pages of the admin with a missing table or column: they say to run `migrate`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.db import Error
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from flags.schema import not_migrated

View = Callable[..., HttpResponse]


def says_migrate(view: View) -> View:
    """Let a view of an admin answer 503 if `migrate` has to run."""

    @wraps(view)
    def answered(self: Any, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return view(self, request, *args, **kwargs)
        except Error as error:
            if not not_migrated(error):
                raise
        context = {**self.admin_site.each_context(request), "title": "Not migrated"}
        return TemplateResponse(request, "admin/flags/not_migrated.html", context, status=503)

    return answered


class SaysMigrate:
    """A mixin for admins: the list and the page of a row say to run `migrate`."""

    @says_migrate
    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Show the list. Read its rows here, where an error can still become an answer."""
        response: Any = super().changelist_view(request, *args, **kwargs)  # type: ignore[misc]
        found = (getattr(response, "context_data", None) or {}).get("cl")
        if found is not None:
            len(found.result_list)
        return response  # type: ignore[no-any-return]

    @says_migrate
    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Show the page of a row."""
        return super().changeform_view(request, *args, **kwargs)  # type: ignore[misc,no-any-return]
