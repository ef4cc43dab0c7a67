"""The settings of `flags`, read lazily from `settings.CONVERSATIONS`.

They are read once a process, and again whenever `django.test.override_settings` (or whoever else
sends `setting_changed`) gives others: a load asks for them a dozen times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ParamSpec, TypeVar, cast

from django.conf import settings
from django.core.signals import setting_changed
from django.db import DEFAULT_DB_ALIAS
from django.dispatch import receiver

from flags.exceptions import UnknownSwitch
from flags.phases import Phase, Switch, switches_for

# A process may act on switches this old; a save under an old phase is safe (DESIGN section 5).
SNAPSHOT_SECONDS = 0.5


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
_read: list[Any] = []


def read_once(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Keep what a function makes of the settings until they change; none that raises is kept."""
    kept: Any = cache(function)
    _read.append(kept)
    return cast("Callable[Parameters, Result]", kept)


@receiver(setting_changed)
def _read_again(*, setting: str, **_others: Any) -> None:
    if setting == "CONVERSATIONS":
        for kept in _read:
            kept.cache_clear()


@read_once
def conversations_settings() -> Mapping[str, Any]:
    """Return `settings.CONVERSATIONS`, or an empty mapping when the host sets nothing."""
    return getattr(settings, "CONVERSATIONS", None) or {}


@read_once
def database_alias() -> str:
    """Return `CONVERSATIONS["DATABASE"]`: the one alias of every table, `default` by default."""
    return str(conversations_settings().get("DATABASE") or DEFAULT_DB_ALIAS)


def default_switches(*, strict: bool = True) -> dict[str, bool]:
    """Return the switch values that hold while waffle has no row for a switch.

    Without `LEGACY` there is nothing to migrate from: new_only, monitored if
    `CONVERSATIONS["SWITCHES"]` says so. With it,
    `CONVERSATIONS["SWITCHES"]`, where what is not named is off (phase legacy).

    Raises: UnknownSwitch for a name that is no switch; unless `strict`, it is passed over.
    """
    configured = conversations_settings()
    chosen = configured.get("SWITCHES") or {}
    if not configured.get("LEGACY"):
        monitoring = Switch.PERFORMANCE_MONITORING.value
        off = dict.fromkeys(map(str, Switch), False)
        on = {monitoring: bool(chosen.get(monitoring, False))}
        return {**off, **switches_for(Phase.NEW_ONLY), **on}
    unknown = set(chosen) - {switch.value for switch in Switch}
    if unknown and strict:
        raise UnknownSwitch(
            f"CONVERSATIONS['SWITCHES'] names {', '.join(sorted(map(str, unknown)))}:"
            f" use {', '.join(Switch)}."
        )
    return {switch.value: bool(chosen.get(switch.value, False)) for switch in Switch}


@dataclass(frozen=True, slots=True)
class Limits:
    """From which shares of failures on health warns, and is critical: `CONVERSATIONS["HEALTH"]`.

    Fewer operations than `minimum` in the window say nothing.
    """

    minimum: int = 20
    warning: float = 0.01
    critical: float = 0.05


@read_once
def limits() -> Limits:
    """Return the limits that the settings name, and the defaults of the others."""
    chosen = conversations_settings().get("HEALTH") or {}
    names = [each.name for each in fields(Limits)]
    return Limits(**{name: chosen[name.upper()] for name in names if name.upper() in chosen})


@read_once
def read_breaker() -> bool:
    """Return `CONVERSATIONS["READ_BREAKER"]`: whether reads may be moved; see flags.breaker."""
    return bool(conversations_settings().get("READ_BREAKER"))
