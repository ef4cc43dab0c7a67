"""Where the rollout stands, by the settings in the database and the record of its transitions.

Everything here runs inside the transaction of whoever calls it; `flags.transitions` opens it.
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
from flags.switches import Settings, snapshot, stored_retirement, stored_settings

logger = logging.getLogger("flags")

Kind = Transition.Kind
# What changes nothing that the switches say.
STANDING = (Kind.REHEARSAL, Kind.RETIRED, Kind.RESTORED)


@dataclass(frozen=True, slots=True)
class Record:
    """One transition as it was recorded. `epoch` rises with each; `canary` is in percent."""

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

    `canary` says for how many percent of the conversations the phase is in force; the rest is
    one phase lower. Both are so since `since`. `retired`: legacy was given up; see
    `flags.retirement`.
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
    """Return where the rollout stands, after recording what others have changed."""
    fence.queue()
    found = stored()
    plan = routed(found)
    row = rows().order_by("-pk").first()
    last = None if row is None else record_of(row)
    if last is None or (dict(last.switches), last.canary) != (routing(found), found.canary):
        source = plan.phase if last is None else last.target
        last = recorded(Kind.NOTICED, source, plan.phase, found)
    return Status(
        plan.phase,
        plan.mixed,
        found.switches[Switch.EMERGENCY_ROLLBACK],
        found.switches,
        found.canary,
        last,
        _since(last),
        retired=bool(stored_retirement()),
    )


def _since(last: Record) -> datetime:
    """Return when the present phase began; some transitions change no phase."""
    if last.kind not in STANDING:
        return last.at
    row = rows().exclude(kind__in=STANDING).order_by("-pk").first()
    return last.at if row is None else row.at


def stored() -> Settings:
    """Return the settings in the database. Raises: SwitchesUnreadable."""
    found = stored_settings()
    if found is None:
        raise SwitchesUnreadable
    return found


def routed(settings: Settings) -> Plan:
    """Return what the routing switches mean, whether or not an emergency overrules them."""
    return plan_of({**settings.switches, Switch.EMERGENCY_ROLLBACK: False})


def routing(settings: Settings) -> dict[str, bool]:
    """Return the switches that say where writes and reads go: what is recorded."""
    return {
        str(name): active
        for name, active in settings.switches.items()
        if name != Switch.PERFORMANCE_MONITORING
    }


def change(switches: Mapping[str, bool], *, canary: float | None = None) -> None:
    """Set switches and canary; tell this process and waffle's cache when that is committed."""
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
    """Make a row of every switch that has none, with the value that holds without it."""
    rows = get_waffle_switch_model()._base_manager.using(database_alias())
    for name, active in default_switches(strict=False).items():
        defaults = {"active": active, "note": HELP_TEXTS[Switch(name)]}
        rows.get_or_create(name=name, defaults=defaults)


def _set(rows: Any, name: str, *, note: str, **values: Any) -> None:
    row, made = rows.get_or_create(name=name, defaults={**values, "note": note})
    if not made:
        rows.filter(pk=row.pk).update(**values, modified=timezone.now())
    # A cache that is down must not make a step that was made look refused.
    transaction.on_commit(row.flush, using=rows.db, robust=True)


def recorded(
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
        actor=actor[:255],
        reason=reason,
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
    """Return a transition's row as it crosses our boundary."""
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


def latest(*kinds: Transition.Kind) -> Record | None:
    """Return the latest transition of these kinds (none named: of any)."""
    chosen = rows().filter(kind__in=kinds) if kinds else rows()
    row = chosen.order_by("-pk").first()
    return None if row is None else record_of(row)
