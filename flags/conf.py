"""The settings of `flags`, read lazily from `settings.CONVERSATIONS`.

A process reads them once, because a load asks for them a dozen times. The signal
`setting_changed` lets it read them again, as `django.test.override_settings` sends it.
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
from flags.texts import shown

# A process may act on switches this old; a save under an old phase is safe: docs/design.md, G4.
SNAPSHOT_SECONDS = 0.5


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
_read: list[Any] = []


def read_once(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Keep a function's result until the settings change; an exception is not kept."""
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

    Without `LEGACY` they spell new_only; `CONVERSATIONS["SWITCHES"]` decides only about the
    monitoring. With `LEGACY` they are `CONVERSATIONS["SWITCHES"]`; a switch that it does not name
    is off, so without it the phase is legacy.

    Raises: UnknownSwitch for a name that is no switch; unless `strict`, the name is ignored.
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
            f"CONVERSATIONS['SWITCHES'] names {shown(', '.join(sorted(map(str, unknown))))}:"
            f" use {', '.join(Switch)}."
        )
    return {switch.value: bool(chosen.get(switch.value, False)) for switch in Switch}


@dataclass(frozen=True, slots=True)
class Limits:
    """The shares of failures at which health warns and is critical: `CONVERSATIONS["HEALTH"]`.

    Fewer operations than `minimum` say nothing. The gates that look at traffic hold a step back
    from `warning` on.
    """

    minimum: int = 20
    warning: float = 0.01
    critical: float = 0.05


@read_once
def limits() -> Limits:
    """Return the limits of the settings, with defaults for the others."""
    chosen = conversations_settings().get("HEALTH") or {}
    names = [each.name for each in fields(Limits)]
    return Limits(**{name: chosen[name.upper()] for name in names if name.upper() in chosen})


@read_once
def read_breaker() -> bool:
    """Return `CONVERSATIONS["READ_BREAKER"]`: whether reads may be moved; see flags.breaker."""
    return bool(conversations_settings().get("READ_BREAKER"))
