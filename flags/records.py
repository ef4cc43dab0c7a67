"""Where the rollout stands, by the switches in the database and the record of its transitions.

Everything here runs inside the transaction of its caller; `flags.transitions` opens it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils import timezone
from waffle import get_waffle_sample_model, get_waffle_switch_model

from flags import fence
from flags.conf import database_alias, default_switches
from flags.exceptions import SwitchesUnreadable
from flags.gates import GateResult
from flags.models import Transition
from flags.phases import CANARY, EVERYTHING, HELP_TEXTS, Phase, Plan, Switch, plan_of
from flags.schema import MIGRATE, not_migrated
from flags.switches import UNREADABLE, Settings, read_retirement, read_settings, snapshot
from flags.texts import storable

logger = logging.getLogger("flags")

Kind = Transition.Kind
# Records that change no switch.
STANDING = (Kind.REHEARSAL, Kind.RETIRED, Kind.RESTORED)


@dataclass(frozen=True, slots=True)
class Record:
    """One recorded transition. `epoch` rises with each; `canary` is in percent."""

    epoch: int
    at: datetime
    kind: str
    source: Phase
    target: Phase
    actor: str
    reason: str
    switches: Mapping[str, bool]
    canary: float
    gates: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Status:
    """Where the rollout stands, and the transition that brought it there.

    The phase is in force for `canary` percent of the conversations; the rest is one phase lower.
    Both have been so since `since`. `retired`: legacy was given up; see `flags.retirement`.
    """

    phase: Phase
    mixed: bool
    emergency: bool
    switches: Mapping[str, bool]
    canary: float
    last: Record
    since: datetime
    retired: bool = False


def current() -> Status:
    """Return where the rollout stands, after recording a change that was made in another way."""
    fence.queue()
    found = read_switches()
    plan = routing_plan(found)
    row = rows().order_by("-pk").first()
    last = None if row is None else record_of(row)
    if last is None or (dict(last.switches), last.canary) != (routing(found), found.canary):
        source = plan.phase if last is None else last.target
        last = record(Kind.NOTICED, source, plan.phase, found)
    return Status(
        plan.phase,
        plan.mixed,
        found.switches[Switch.EMERGENCY_ROLLBACK],
        found.switches,
        found.canary,
        last,
        _since(last),
        retired=bool(read_retirement()),
    )


def _since(last: Record) -> datetime:
    """Return when the present phase began; some transitions change no phase."""
    if last.kind not in STANDING:
        return last.at
    row = rows().exclude(kind__in=STANDING).order_by("-pk").first()
    return last.at if row is None else row.at


def read_switches() -> Settings:
    """Return the settings in the database. Raises: SwitchesUnreadable."""
    try:
        return read_settings()
    except UNREADABLE as error:
        raise unreadable(error) from error


def unreadable(error: Exception) -> SwitchesUnreadable:
    """Return the error for switches that do not answer, with its remedy."""
    if not_migrated(error):
        return SwitchesUnreadable(f"The table of the switches is missing: {MIGRATE}.")
    return SwitchesUnreadable()


def routing_plan(settings: Settings) -> Plan:
    """Return the plan of the routing switches, also while an emergency overrules them."""
    return plan_of({**settings.switches, Switch.EMERGENCY_ROLLBACK: False})


def routing(settings: Settings) -> dict[str, bool]:
    """Return the switches that route writes and reads; these are recorded."""
    return {
        str(name): active
        for name, active in settings.switches.items()
        if name != Switch.PERFORMANCE_MONITORING
    }


def change(switches: Mapping[str, bool], *, canary: float | None = None) -> None:
    """Set switches and canary; clear this process's snapshot and waffle's cache at the commit."""
    alias = database_alias()
    model = get_waffle_switch_model()
    for name, active in switches.items():
        note = HELP_TEXTS[Switch(name)]
        _set(model._base_manager.using(alias), name, active=active, note=note)
    samples = get_waffle_sample_model()._base_manager.using(alias)
    if canary is not None and (canary < EVERYTHING or samples.filter(name=CANARY).exists()):
        note = "For how many percent of the conversations the phase is in force."
        _set(samples, CANARY, percent=canary, note=note)
    transaction.on_commit(snapshot.clear, using=alias)


def complete() -> None:
    """Create a row for every switch without one, with the default value."""
    rows = get_waffle_switch_model()._base_manager.using(database_alias())
    for name, active in default_switches(strict=False).items():
        defaults = {"active": active, "note": HELP_TEXTS[Switch(name)]}
        rows.get_or_create(name=name, defaults=defaults)


def _set(rows: Any, name: str, *, note: str, **values: Any) -> None:
    row, made = rows.get_or_create(name=name, defaults={**values, "note": note})
    if not made:
        rows.filter(pk=row.pk).update(**values, modified=timezone.now())
    # If the cache is down, the step is made all the same, and must not look refused.
    transaction.on_commit(row.flush, using=rows.db, robust=True)


def record(
    kind: Transition.Kind,
    source: Phase,
    target: Phase,
    settings: Settings,
    *,
    results: Sequence[GateResult] = (),
    reason: str = "",
    actor: str = "",
) -> Record:
    """Write a transition, and return it."""
    row = Transition(
        at=timezone.now(),
        kind=kind,
        from_phase=source,
        to_phase=target,
        # Made storable, so that no text can prevent a step or the record of an emergency.
        actor=storable(actor)[:255],
        reason=storable(reason),
        switches=json.dumps(routing(settings)),
        canary=settings.canary,
        gates=json.dumps([_as_json(result) for result in results]),
    )
    row.save(using=database_alias())
    logger.info("rollout %s: %s to %s (epoch %s)", kind, source.label, target.label, row.pk)
    return record_of(row)


def _as_json(result: GateResult) -> dict[str, Any]:
    return {
        "gate": result.gate,
        "passed": result.passed,
        "message": result.message,
        "evidence": result.evidence,
        "waived": result.waived,
    }


def record_of(row: Transition) -> Record:
    """Return the record of a transition's row."""
    return Record(
        epoch=row.pk,
        at=row.at,
        kind=str(row.kind),
        source=Phase(row.from_phase),
        target=Phase(row.to_phase),
        actor=row.actor,
        reason=row.reason,
        switches=json.loads(row.switches),
        canary=row.canary,
        gates=json.loads(row.gates),
    )


def rows() -> Any:
    """Return the transitions."""
    return Transition.objects.using(database_alias())


def tables_written_since() -> datetime | None:
    """Return since when every save writes the tables too, by the recorded transitions.

    None while some saves write legacy alone: in phase legacy, in an emergency, and outside the
    canary of the first step.
    """
    since: datetime | None = None
    found = rows().order_by("-pk").values_list("at", "to_phase", "switches", "canary")
    for at, phase, switches, canary in found:
        whole = phase > Phase.DUAL_WRITE or (phase == Phase.DUAL_WRITE and canary >= EVERYTHING)
        if not whole or json.loads(switches).get(Switch.EMERGENCY_ROLLBACK):
            return since
        since = at
    return since


def latest(*kinds: Transition.Kind) -> Record | None:
    """Return the latest transition of these kinds, of any kind if none is named."""
    chosen = rows().filter(kind__in=kinds) if kinds else rows()
    row = chosen.order_by("-pk").first()
    return None if row is None else record_of(row)
