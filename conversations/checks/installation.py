"""Checks of what is installed beside us."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

APPS = ("waffle", "flags", "memory", "conversations")
PACKAGES = ("conversations", "memory", "flags")


@register("conversations")
def check_apps(**kwargs: Any) -> list[CheckMessage]:
    """Check that all apps that belong together are installed, in any order."""
    missing = [name for name in APPS if not apps.is_installed(name)]
    if not missing:
        return []
    return [
        Error(
            f"INSTALLED_APPS lacks {', '.join(missing)}.",
            hint=f"Install {', '.join(APPS)} together; their order does not matter.",
            id="conversations.E001",
        )
    ]


@register("conversations")
def check_time_zones(**kwargs: Any) -> list[CheckMessage]:
    """Check that times have a zone: ours are compared with those that clients state."""
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
    """Check that nobody else installed a package of our names: they would merge on disk."""
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
