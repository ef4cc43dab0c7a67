"""Checks of the packages and settings beside ours."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

PACKAGES = ("conversations", "memory", "flags")


@register("conversations")
def check_time_zones(**kwargs: Any) -> list[CheckMessage]:
    """Check that times have a zone: ours are compared with times that clients state."""
    if settings.USE_TZ:
        return []
    return [
        Error(
            "USE_TZ is False.",
            hint="Set USE_TZ = True, Django's default: without zones, the moments of messages and"
            " of blobs cannot be compared.",
            id="conversations.E017",
        )
    ]


@register("conversations", deploy=True)
def check_distributions(**kwargs: Any) -> list[CheckMessage]:
    """Check that no other distribution has a package of our names: they would merge on disk."""
    try:
        providers = metadata.packages_distributions()
    except Exception:  # noqa: BLE001  (broken metadata of anything installed)
        return []
    messages: list[CheckMessage] = []
    for package in PACKAGES:
        found = sorted(set(providers.get(package, ())))
        if len(found) > 1:
            messages.append(
                Warning(
                    f"The package `{package}` is provided by {', '.join(found)}.",
                    hint="Uninstall the one you do not need, then reinstall"
                    " django-conversation-store: its files may have been overwritten.",
                    id="conversations.W004",
                )
            )
    return messages
