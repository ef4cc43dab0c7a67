"""The apps that must be installed together, and the error that names a missing one.

Without it, a project would first see Django's own error about a model of ours.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

# Permissions of users have content types, and switches of waffle may be for users.
TOGETHER = (
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "waffle",
    "flags",
    "memory",
    "conversations",
)

_looking = False


class OneOfTogether(AppConfig):
    """The config of an app of ours: raises if one of the other apps is missing."""

    # Django looks through the module of an app for its config, and finds this base as well.
    default = False

    def __init__(self, app_name: str, app_module: Any) -> None:
        require_listed()
        super().__init__(app_name, app_module)


def require_listed() -> None:
    """Raise ImproperlyConfigured if `INSTALLED_APPS` lacks one of the apps.

    It runs before any model is imported. If all apps are there, it reads only their names.
    """
    global _looking
    entries = settings.INSTALLED_APPS
    plain = {name for name in TOGETHER for entry in entries if _is_of(name, entry)}
    if _looking or len(plain) == len(TOGETHER):
        return
    _looking = True
    try:
        # An entry may be the path of a host's own config for one of them.
        others = [entry for entry in entries if not any(_is_of(name, entry) for name in TOGETHER)]
        _require(plain | {AppConfig.create(entry).name for entry in others})
    finally:
        _looking = False


def require_installed() -> None:
    """Raise ImproperlyConfigured if one of the apps is not installed, before a model is made.

    This is for a project that installed none of our apps, and imports one.
    """
    apps.check_apps_ready()
    _require({config.name for config in apps.get_app_configs()})


def _is_of(name: str, entry: str) -> bool:
    return entry == name or entry.startswith(f"{name}.apps.")


def _require(installed: Collection[str]) -> None:
    missing = [name for name in TOGETHER if name not in installed]
    if missing:
        raise ImproperlyConfigured(
            f"INSTALLED_APPS lacks {', '.join(missing)}: add the missing apps."
            f" django-conversation-store needs {', '.join(TOGETHER)} together, in any order."
        )
