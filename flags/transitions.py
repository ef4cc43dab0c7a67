"""Moving the rollout from phase to phase: one step at a time, gated, fenced and recorded.

Switches may be flipped in other ways (waffle's admin, its command, SQL): that loses nothing
either, and is recorded as noticed the next time anybody asks.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from django.db import Error, connections, transaction
from django.utils import timezone
from waffle import get_waffle_switch_model

from flags import fence
from flags.conf import conversations_settings, database_alias
from flags.exceptions import SwitchesUnreadable, TransitionRefused, UnknownGate
from flags.gates import GateResult, Step, guarding
from flags.models import Transition
from flags.phases import HELP_TEXTS, Phase, Plan, Switch, plan_of, switches_for
from flags.switches import snapshot, stored_switches

logger = logging.getLogger("flags")

Kind = Transition.Kind


@dataclass(frozen=True, slots=True)
class Record:
    """One transition as it was recorded. `epoch` rises with each."""

    epoch: int
    at: datetime
    kind: str
    source: Phase
    target: Phase
    actor: str
    reason: str
    switches: Mapping[str, bool]
    gates: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Status:
    """Where the rollout stands, and the transition that brought it there."""

    phase: Phase
    mixed: bool
    emergency: bool
    switches: Mapping[str, bool]
    last: Record


def status() -> Status:
    """Return where the rollout stands, after recording switches that others have changed.

    Raises: SwitchesUnreadable.
    """
    with transaction.atomic(using=database_alias()):
        return _status()


def history(*, limit: int = 50) -> list[Record]:
    """Return the latest transitions, newest first."""
    return [_record(row) for row in _rows().order_by("-pk")[:limit]]


def check(to: Phase | None = None, *, waive: Mapping[str, str] | None = None) -> list[GateResult]:
    """Return what the gates of a step say, the next one forwards unless `to` names another.

    Nothing is changed. `waive` maps names of gates to why somebody answers for them.
    Raises: TransitionRefused when there is no such step.
    """
    step = _step(status(), to)
    _check_waivers(waive, [step])
    return [_waived(gate.look(step), waive) for gate in guarding(step)]


def advance(*, reason: str = "", actor: str = "", waive: Mapping[str, str] | None = None) -> Record:
    """Make the next step towards new_only, if every gate of it holds.

    Raises: TransitionRefused (`results` says which gate, and what to do), FenceBusy.
    """
    _not_in_a_transaction()
    step = _step(status(), None)
    _check_waivers(waive, [step])
    return _make(step, Kind.ADVANCE, reason=reason, actor=actor, waive=waive)


def rollback(
    to: Phase | None = None,
    *,
    reason: str = "",
    actor: str = "",
    waive: Mapping[str, str] | None = None,
) -> list[Record]:
    """Go back step by step, to the phase before unless `to` names an earlier one.

    Each step is made and recorded by itself; a refusal leaves the rollout at the last one made.
    A waiver holds for every step that has the gate.

    Raises: TransitionRefused, FenceBusy.
    """
    _not_in_a_transaction()
    now = status()
    goal = Phase(max(now.phase - 1, 0)) if to is None else to
    if goal >= now.phase:
        raise TransitionRefused(f"{goal.label} is not before {now.phase.label}.")
    targets = [Phase(target) for target in range(now.phase - 1, goal - 1, -1)]
    sources = [now.phase, *targets]
    planned = (
        Step(source, target, began=now.last.at, since=now.last.at)
        for source, target in zip(sources, targets, strict=False)
    )
    _check_waivers(waive, planned)
    made = []
    for target in targets:
        step = _step(status(), target)
        made.append(_make(step, Kind.ROLLBACK, reason=reason, actor=actor, waive=waive))
    return made


def emergency(*, reason: str = "", actor: str = "") -> Status | None:
    """Let legacy alone be written, and be preferred for reading, in every process within a second.

    No gate is asked and no lock is waited for, and nothing but waffle's table has to answer: it
    works while the tables are dropped, locked or failing. Then it cannot be recorded, and is
    noticed later.

    Returns: where the rollout stands, None when it could not be recorded.
    Raises: SwitchesUnreadable when waffle's table does not answer.
    """
    _not_in_a_transaction()
    if not conversations_settings().get("LEGACY"):
        raise TransitionRefused(
            "CONVERSATIONS['LEGACY'] is not set: there is nothing to go back to."
        )
    _switch_emergency(on=True)
    try:
        with transaction.atomic(using=database_alias()):
            fence.hurry()
            return _overruled(Kind.EMERGENCY, reason=reason, actor=actor)
    except Error as error:
        logger.error("the emergency could not be recorded: %s", type(error).__name__)
        return None


def resume(*, reason: str = "", actor: str = "", waive: Mapping[str, str] | None = None) -> Status:
    """End an emergency: the other switches hold again, and the tables take in what was written.

    The gates of the first step are asked, which is into writing the tables.
    Raises: TransitionRefused.
    """
    _not_in_a_transaction()
    now = status()
    if not now.emergency:
        raise TransitionRefused("emergency_rollback is off: there is nothing to resume.")
    step = Step(Phase.LEGACY, Phase.DUAL_WRITE, began=timezone.now(), since=now.last.at)
    _check_waivers(waive, [step])
    results = [_waived(gate.look(step), waive) for gate in guarding(step)]
    _refuse_unless_holding(results)
    with transaction.atomic(using=database_alias()):
        fence.close()
        _switch_emergency(on=False)
        return _overruled(Kind.RESUME, results=results, reason=reason, actor=actor)


def _switch_emergency(*, on: bool) -> None:
    try:
        with transaction.atomic(using=database_alias()):
            _write({Switch.EMERGENCY_ROLLBACK.value: on})
    except Error as error:
        raise SwitchesUnreadable from error


def _overruled(
    kind: Transition.Kind,
    *,
    results: Sequence[GateResult] = (),
    reason: str = "",
    actor: str = "",
) -> Status:
    """Record that the emergency began or ended; the phase behind it stays."""
    switches = _stored()
    phase = _routed(switches).phase
    _recorded(kind, phase, phase, switches, results=results, reason=reason, actor=actor)
    return _status()


def _not_in_a_transaction() -> None:
    if connections[database_alias()].in_atomic_block:
        raise TransitionRefused(
            "a step is made in a transaction of its own: call it outside of yours."
        )


def _step(now: Status, to: Phase | None) -> Step:
    if not conversations_settings().get("LEGACY"):
        raise TransitionRefused("CONVERSATIONS['LEGACY'] is not set: there is nothing to roll out.")
    if now.emergency and (to is None or to > now.phase):
        raise TransitionRefused("emergency_rollback is on: `rollout resume` first.")
    if now.mixed and (to is None or to > now.phase):
        raise TransitionRefused(
            f"the switches spell no phase; they act as {now.phase.label}. Set them to that phase"
            " first: `rollout status` says which."
        )
    target = now.phase + 1 if to is None else to
    if target > max(Phase):
        raise TransitionRefused(f"{now.phase.label} is the last phase.")
    if abs(target - now.phase) != 1:
        raise TransitionRefused(
            f"{now.phase.label} and {Phase(target).label} are not adjacent: go step by step."
        )
    return Step(now.phase, Phase(target), began=timezone.now(), since=now.last.at)


def _make(
    step: Step, kind: Transition.Kind, *, reason: str, actor: str, waive: Mapping[str, str] | None
) -> Record:
    """Let the gates look, close the fence, let them look again, flip and record."""
    looked = [(gate, _waived(gate.look(step), waive)) for gate in guarding(step)]
    _refuse_unless_holding([result for _, result in looked])
    with transaction.atomic(using=database_alias()):
        fence.close()
        if _status().phase != step.source:
            raise TransitionRefused("somebody else changed the phase meanwhile: look again.")
        results = [_waived(gate.look_again(step, found), waive) for gate, found in looked]
        _refuse_unless_holding(results)
        switches = {**_stored(), **switches_for(step.target)}
        _write(switches)
        return _recorded(
            kind, step.source, step.target, switches, results=results, reason=reason, actor=actor
        )


def _check_waivers(waive: Mapping[str, str] | None, steps: Iterable[Step]) -> None:
    """Raise UnknownGate for a waiver of a gate that none of these steps has."""
    names = dict.fromkeys(gate.name for step in steps for gate in guarding(step))
    for name in waive or ():
        if name not in names:
            raise UnknownGate(f"there is no gate {name} here: {', '.join(names)}.")


def _waived(result: GateResult, waive: Mapping[str, str] | None) -> GateResult:
    why = (waive or {}).get(result.gate, "")
    return result if result.passed or not why else replace(result, waived=why)


def _refuse_unless_holding(results: Sequence[GateResult]) -> None:
    failed = [result for result in results if not result.holds]
    if failed:
        said = "; ".join(f"{r.gate}: {r.message} {r.fix}".strip() for r in failed)
        raise TransitionRefused(f"refused by {said}", results=results)


def _status() -> Status:
    """Return where the rollout stands, inside a transaction."""
    fence.queue()
    switches = _stored()
    plan = _routed(switches)
    row = _rows().order_by("-pk").first()
    last = None if row is None else _record(row)
    if last is None or dict(last.switches) != switches:
        source = plan.phase if last is None else last.target
        last = _recorded(Kind.NOTICED, source, plan.phase, switches)
    return Status(plan.phase, plan.mixed, switches[Switch.EMERGENCY_ROLLBACK], switches, last)


def _routed(switches: Mapping[str, bool]) -> Plan:
    """Return what the routing switches mean, whether or not an emergency overrules them."""
    return plan_of({**switches, Switch.EMERGENCY_ROLLBACK: False})


def _stored() -> dict[str, bool]:
    switches = stored_switches()
    if switches is None:
        raise SwitchesUnreadable
    return switches


def _write(switches: Mapping[str, bool]) -> None:
    """Set the switches, and tell this process and waffle's cache when that is committed."""
    alias = database_alias()
    rows = get_waffle_switch_model()._base_manager.using(alias)
    for name, active in switches.items():
        defaults = {"active": active, "note": HELP_TEXTS[Switch(name)]}
        row, made = rows.get_or_create(name=name, defaults=defaults)
        if not made:
            rows.filter(pk=row.pk).update(active=active, modified=timezone.now())
        # A cache that is down must not make a step that was made look refused.
        transaction.on_commit(row.flush, using=alias, robust=True)
    transaction.on_commit(snapshot.clear, using=alias)


def _recorded(
    kind: Transition.Kind,
    source: Phase,
    target: Phase,
    switches: Mapping[str, bool],
    *,
    results: Sequence[GateResult] = (),
    reason: str = "",
    actor: str = "",
) -> Record:
    row = Transition(
        at=timezone.now(),
        kind=kind,
        from_phase=source,
        to_phase=target,
        actor=actor[:255],
        reason=reason,
        switches=json.dumps(dict(switches)),
        gates=json.dumps([_as_json(result) for result in results]),
    )
    row.save(using=database_alias())
    logger.info("rollout %s: %s to %s (epoch %s)", kind, source.label, target.label, row.pk)
    return _record(row)


def _as_json(result: GateResult) -> dict[str, Any]:
    return {
        "gate": result.gate,
        "passed": result.passed,
        "message": result.message,
        "evidence": result.evidence,
        "waived": result.waived,
    }


def _record(row: Transition) -> Record:
    return Record(
        epoch=row.pk,
        at=row.at,
        kind=str(row.kind),
        source=Phase(row.from_phase),
        target=Phase(row.to_phase),
        actor=row.actor,
        reason=row.reason,
        switches=json.loads(row.switches),
        gates=json.loads(row.gates),
    )


def _rows() -> Any:
    return Transition.objects.using(database_alias())
