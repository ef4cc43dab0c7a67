"""System checks of the switches, and the functions that the checks of all three apps share.

A check never raises for any settings, and is silent while the database is down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import DEFAULT_DB_ALIAS, Error as DatabaseFailure, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.module_loading import import_string

from flags.phases import Phase, Switch, plan_of, switches_for
from flags.texts import MOST, quoted, shown

Check = Callable[..., list[CheckMessage]]


def configured() -> Mapping[str, Any]:
    """Return `settings.CONVERSATIONS`; {} if it is no mapping (conversations.E007 says so)."""
    value = getattr(settings, "CONVERSATIONS", None)
    return value if isinstance(value, Mapping) else {}


def valid_alias() -> str | None:
    """Return the alias of our database; None when there is none (conversations.E009 says so)."""
    alias = configured().get("DATABASE") or DEFAULT_DB_ALIAS
    return alias if isinstance(alias, str) and alias in list(connections) else None


def try_import(path: Any) -> tuple[Any, str | None]:
    """Return the object of a dotted path, or None and why it names none."""
    if not isinstance(path, str):
        return None, f"is {quoted(path)}, no dotted path"
    try:
        return import_string(path), None
    except Exception as error:  # noqa: BLE001  (a host's module may fail in any way)
        # The error repeats the path, which is quoted already: skip it if it is long.
        said = f": {shown(str(error))}" if len(path) <= MOST else ""
        why = f"{type(error).__name__}{said}"
        return None, f"names {quoted(path)}, which cannot be imported ({why})"


def database_check(
    *, deploy: bool = False
) -> Callable[[Callable[[BaseDatabaseWrapper], Iterable[CheckMessage]]], Check]:
    """Register a check that takes the connection to our database."""

    def decorate(check: Callable[[BaseDatabaseWrapper], Iterable[CheckMessage]]) -> Check:
        @wraps(check)
        def run(databases: Iterable[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
            messages: list[CheckMessage] = []
            for alias in databases or ():
                if alias == valid_alias():
                    messages += _answer(check, connections[alias])
            return messages

        del run.__wrapped__  # Django would look for **kwargs there
        register(Tags.database, deploy=deploy)(run)
        return run

    return decorate


def _answer(
    check: Callable[[BaseDatabaseWrapper], Iterable[CheckMessage]],
    connection: BaseDatabaseWrapper,
) -> list[CheckMessage]:
    """Return the messages of a check, without breaking a transaction of the caller."""
    try:
        if not connection.in_atomic_block:
            return list(check(connection))
        with transaction.atomic(using=connection.alias):
            return list(check(connection))
    except DatabaseFailure:
        return []


@register("flags")
def check_switches(**kwargs: Any) -> list[CheckMessage]:
    """Check `CONVERSATIONS["SWITCHES"]`."""
    chosen = configured().get("SWITCHES")
    if chosen is None:
        return []
    if not isinstance(chosen, Mapping):
        return [
            Error(
                f'CONVERSATIONS["SWITCHES"] is a {type(chosen).__name__}, not a mapping.',
                hint="Map names of switches to True or False.",
                id="flags.E002",
            )
        ]
    return list(_switch_problems(chosen))


def _switch_problems(chosen: Mapping[Any, Any]) -> Iterator[CheckMessage]:
    known = [switch.value for switch in Switch]
    for name, value in chosen.items():
        if name not in known:
            yield Error(
                f'CONVERSATIONS["SWITCHES"] names {quoted(name)}, which is no switch.',
                hint=f"Use {', '.join(known)}.",
                id="flags.E001",
            )
        elif not isinstance(value, bool):
            yield Error(
                f'CONVERSATIONS["SWITCHES"]["{name}"] is {quoted(value)}, not True or False.',
                hint="Parse the environment to a boolean: the text 'False' is true.",
                id="flags.E002",
            )
    if chosen and not configured().get("LEGACY"):
        yield Warning(
            'CONVERSATIONS["SWITCHES"] is ignored, because LEGACY is not set.',
            hint='Set CONVERSATIONS["LEGACY"] to the store you migrate from, or remove SWITCHES.',
            id="flags.W001",
        )


@database_check(deploy=True)
def check_stored_switches(connection: BaseDatabaseWrapper) -> Iterator[CheckMessage]:
    """Check that waffle's rows spell a phase; silent before the rows exist."""
    if not apps.is_installed("waffle"):
        return
    from waffle import get_waffle_switch_model

    model = get_waffle_switch_model()
    if model._meta.db_table not in connection.introspection.table_names():
        return
    rows = model._base_manager.using(connection.alias).filter(name__in=[*Switch])
    stored = {str(name): bool(active) for name, active in rows.values_list("name", "active")}
    values = {**_default_values(), **stored}
    plan = plan_of(values)
    if stored and plan.mixed:
        phase = plan.phase
        wanted = ", ".join(
            f"{switch} {'on' if on else 'off'}"
            for switch, on in switches_for(phase).items()
            if values[switch] != on
        )
        yield Warning(
            f"The switches are mixed: they spell no phase, and act as {phase.label}.",
            hint=f"Turn {wanted}.",
            id="flags.W002",
        )


@database_check()
def check_beginning(connection: BaseDatabaseWrapper) -> Iterator[CheckMessage]:
    """Check that no rollout begins in new_only because LEGACY was set after the first migrate."""
    chosen = configured().get("SWITCHES") or {}
    if not configured().get("LEGACY") or not isinstance(chosen, Mapping):
        return
    from flags import beginnings

    if beginnings.unanswered():
        yield Error(beginnings.QUESTION, hint=beginnings.ANSWER, id=beginnings.CHECK)


def _default_values() -> dict[str, bool]:
    """Return the value of a switch without a row, also from wrong settings."""
    if not configured().get("LEGACY"):
        return {**dict.fromkeys(map(str, Switch), False), **switches_for(Phase.NEW_ONLY)}
    chosen = configured().get("SWITCHES")
    chosen = chosen if isinstance(chosen, Mapping) else {}
    return {switch.value: bool(chosen.get(switch.value, False)) for switch in Switch}
