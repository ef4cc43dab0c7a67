"""A rollout without a beginning: `migrate` made its switches before `LEGACY` was set.

`migrate` gives the switches their present defaults, and without `LEGACY` these spell new_only. A
`LEGACY` that is set later would begin the rollout at its end: no save writes legacy, and old code
reads old content. So no step is made before the operator chooses: back to legacy by recorded
steps, or new_only by `CONVERSATIONS["SWITCHES"]`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext

from django.db import connections, transaction

from flags.conf import conversations_settings, database_alias, default_switches
from flags.connections import managed, reopened
from flags.exceptions import TransitionRefused
from flags.models import Transition
from flags.phases import Phase, phase_of
from flags.switches import UNREADABLE, read_settings

logger = logging.getLogger("flags")

CHECK = "flags.E003"
QUESTION = (
    "LEGACY is set and holds conversations, but no step of a rollout was ever recorded, and the"
    " switches spell new_only: they were made before LEGACY was set, and saves do not write legacy."
)
ANSWER = (
    "To migrate from it, run `manage.py rollout rollback --to legacy`; where a step of it refuses,"
    " `manage.py conversations sync --to legacy`, and the same again. Nothing is lost by that. If"
    ' new_only is meant, say so: CONVERSATIONS["SWITCHES"] = {"use_new_storage": True,'
    ' "use_new_save": True, "use_new_load": True}.'
)
# Records that move the rollout nowhere.
_UNMOVED = (
    Transition.Kind.NOTICED,
    Transition.Kind.EMERGENCY,
    Transition.Kind.RESUME,
    Transition.Kind.REHEARSAL,
)
_legacy_holds: list[Callable[[], bool]] = []


def register(holds: Callable[[], bool]) -> None:
    """Register the function that says whether the legacy store holds any conversation."""
    _legacy_holds[:] = [holds]


def unanswered() -> bool:
    """Whether the rollout began in new_only without the operator's choice.

    Never raises: where a store does not answer, gates say so.
    """
    if not conversations_settings().get("LEGACY") or _said_by_the_settings():
        return False
    try:
        found = read_settings()
    except UNREADABLE:
        # The checks of the first migrate run before its tables exist.
        return False
    if phase_of(found.switches) != Phase.NEW_ONLY:
        return False
    connection = connections[database_alias()]

    def looked() -> bool:
        # Without a savepoint, a failure would break the caller's transaction.
        inside = managed(connection)
        with transaction.atomic(using=connection.alias) if inside else nullcontext():
            return not _moved() and any(holds() for holds in _legacy_holds)

    try:
        return reopened(connection, looked)
    except Exception as error:  # noqa: BLE001 - LEGACY names code of the host
        logger.warning("legacy could not be asked for conversations: %s", type(error).__name__)
        return False


def refuse_if_unanswered() -> None:
    """Raise TransitionRefused until the operator has chosen where the rollout begins."""
    if unanswered():
        raise TransitionRefused(f"{QUESTION} {ANSWER}")


def _said_by_the_settings() -> bool:
    return phase_of(default_switches(strict=False)) == Phase.NEW_ONLY


def _moved() -> bool:
    """Whether any step was recorded; an emergency and its end do not change the phase."""
    still = {"from_phase": Phase.NEW_ONLY, "to_phase": Phase.NEW_ONLY}
    rows = Transition.objects.using(database_alias())
    return bool(rows.exclude(kind__in=_UNMOVED, **still).exists())
