"""`health/`: for load balancers and uptime checks, without a login."""

from __future__ import annotations

from collections.abc import Callable

from django.contrib.auth.decorators import login_not_required
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from flags.health import recent_report

View = Callable[[HttpRequest], HttpResponse]


def for_machines(view: View) -> View:
    """Let a view be read without a login, never from a cache, and while databases are dead.

    With ATOMIC_REQUESTS, a dead database would raise before the view runs.
    """
    found = never_cache(require_safe(view))
    for alias in connections:
        found = transaction.non_atomic_requests(using=alias)(found)
    return login_not_required(found)


@for_machines
def health(request: HttpRequest) -> HttpResponse:
    """Answer 503 if no store can serve, else 200; `status` and the slugs of the reasons as JSON.

    A stranger may ask, so the answer has nothing else: no ids, numbers, hosts or versions. Trouble
    that every process shares shows in `status` alone. A load balancer must not take a process out
    of service because conversations conflict.
    """
    found = recent_report()
    serves = any(found.can_serve.values())
    slugs = dict.fromkeys(reason.slug for reason in found.reasons)
    return JsonResponse(
        {"status": found.status, "reasons": list(slugs)}, status=200 if serves else 503
    )
