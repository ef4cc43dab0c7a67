"""A check for django-health-check, 4 or newer; see `flags.health`.

In a host's URLs, beside the other checks of its HealthCheckView:

    HealthCheckView.as_view(
        checks=[..., "conversations.integrations.health_check.ConversationStores"]
    )
"""

from __future__ import annotations

from dataclasses import dataclass, field

from asgiref.sync import sync_to_async

from flags.health import Level, recent_report

try:
    from health_check.base import HealthCheck
    from health_check.exceptions import ServiceUnavailable, ServiceWarning
except ImportError as error:
    raise ImportError(
        "conversations.integrations.health_check needs django-health-check 4 or newer:"
        " pip install 'django-conversation-store[health-check]'."
    ) from error


@dataclass
class ConversationStores(HealthCheck):  # type: ignore[misc]
    """Fail if no store works.

    HealthCheckView answers 500 to every failure, and a load balancer may then take the process out
    of service. So a merely critical state fails only with `strict`.
    """

    strict: bool = field(default=False, repr=False)

    async def run(self) -> None:
        """Look. Raises: ServiceUnavailable; ServiceWarning if it is critical and `strict`."""
        found = await sync_to_async(recent_report)()
        if not any(found.can_serve.values()):
            raise ServiceUnavailable("no store of conversations can serve")
        if self.strict and found.status == Level.CRITICAL:
            slugs = dict.fromkeys(reason.slug for reason in found.reasons)
            raise ServiceWarning(f"critical: {', '.join(slugs)}")
