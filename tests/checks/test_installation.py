"""The installation: the error of a forgotten app names it, and each check fires on its mistake."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from conversations.checks import installation
from flags.installation import TOGETHER
from tests.support.checks import found

ROOT = Path(__file__).resolve().parents[2]
OURS = ("flags", "memory", "conversations")
START = """
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS={apps!r},
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}}},
)
django.setup()
{then}
"""


def errors_of(apps: Sequence[str], then: str = "") -> str:
    """Start Django with these apps in a process of its own. Returns: its last line of errors."""
    finished = subprocess.run(
        [sys.executable, "-c", START.format(apps=list(apps), then=then)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return (finished.stderr.strip().splitlines() or [""])[-1]


def refusal(*missing: str) -> str:
    return (
        "django.core.exceptions.ImproperlyConfigured: INSTALLED_APPS lacks"
        f" {', '.join(missing)}: add the missing apps. django-conversation-store needs"
        f" {', '.join(TOGETHER)} together, in any order."
    )


@pytest.mark.parametrize("order", [TOGETHER, TOGETHER[::-1]], ids=["ours last", "ours first"])
@pytest.mark.parametrize("forgotten", TOGETHER)
def test_the_error_names_the_app_that_is_missing(forgotten: str, order: Sequence[str]) -> None:
    apps = [name for name in order if name != forgotten]
    assert errors_of(apps) == refusal(forgotten)


@pytest.mark.parametrize("alone", OURS)
def test_the_error_names_all_that_is_missing(alone: str) -> None:
    """Before a model is imported: those of auth need content types, and Django would say so."""
    installed = ["django.contrib.auth", alone]
    assert errors_of(installed) == refusal(*(app for app in TOGETHER if app not in installed))


def test_an_import_without_any_of_our_apps_names_them() -> None:
    apps = [name for name in TOGETHER if name not in OURS]
    for module in ("conversations.storage", "memory.models", "flags.models"):
        assert errors_of(apps, f"import {module}") == refusal(*OURS)


def test_apps_may_be_named_by_their_configs_and_by_a_hosts_own() -> None:
    configs = {
        "django.contrib.contenttypes": "django.contrib.contenttypes.apps.ContentTypesConfig",
        "waffle": "tests.support.configs.HostsWaffle",
        "conversations": "conversations.apps.ConversationsConfig",
        "memory": "tests.support.configs.HostsMemory",
    }
    apps = [configs.get(name, name) for name in TOGETHER]
    assert errors_of(apps, "import conversations.storage") == ""
    without = [name for name in apps if name != "flags"]
    assert errors_of(without) == refusal("flags")


def test_each_app_registers_its_checks() -> None:
    """In a process that imports nothing of ours but by INSTALLED_APPS."""
    then = (
        "import sys; from django.core.checks.registry import registry;"
        " checks = registry.get_checks(include_deployment_checks=True);"
        " print(sorted({check.__module__ for check in checks}), file=sys.stderr)"
    )
    registering = set(ast.literal_eval(errors_of(TOGETHER, then)))
    for app in OURS:
        package = ROOT / app / "checks"
        modules = package.glob("*.py") if package.is_dir() else [package.with_suffix(".py")]
        for module in modules:
            if "@register" in module.read_text("utf-8"):
                dotted = ".".join(module.relative_to(ROOT).with_suffix("").parts)
                assert dotted in registering


def test_conversations_E017(settings: Any) -> None:
    assert installation.check_time_zones() == []
    settings.USE_TZ = False
    assert found(installation.check_time_zones(), "conversations.E017") == ["USE_TZ is False."]


def test_conversations_W004(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = "django-conversation-store"
    providers = {"flags": [ours, "django-flags", ours], "memory": [ours, ours], "conversations": []}
    monkeypatch.setattr(metadata, "packages_distributions", lambda: providers)
    assert found(installation.check_distributions(), "conversations.W004") == [
        "The package `flags` is provided by django-conversation-store, django-flags."
    ]
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"flags": [ours]})
    assert installation.check_distributions() == []
    monkeypatch.setattr(metadata, "packages_distributions", lambda: 1 / 0)
    assert installation.check_distributions() == []
