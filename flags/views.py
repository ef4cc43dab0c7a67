"""`health/`: for load balancers and uptime checks, without a login."""

from __future__ import annotations

from django.contrib.auth.decorators import login_not_required
from django.db import connections, transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from flags.health import report


@login_not_required
@never_cache
@require_safe
def health(request: HttpRequest) -> JsonResponse:
    """Answer 503 when no store can serve, else 200; `status` and the slugs of the reasons as JSON.

    A stranger may ask, so nothing else stands in it: no ids, numbers, hosts or versions. A load
    balancer must not take a process out of service because conversations conflict, so trouble
    that another process would have as well shows in `status` alone.
    """
    found = report()
    serves = any(found.can_serve.values())
    slugs = dict.fromkeys(reason.slug for reason in found.reasons)
    return JsonResponse(
        {"status": found.status, "reasons": list(slugs)}, status=200 if serves else 503
    )


# With ATOMIC_REQUESTS, a dead database would raise before the view is asked.
for _alias in connections:
    health = transaction.non_atomic_requests(using=_alias)(health)
