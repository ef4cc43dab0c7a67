"""Moving the rollout from phase to phase: one step at a time, gated, fenced and recorded.

Switches may be flipped in other ways (waffle's admin, its command, SQL). Such a flip loses nothing
either. The next look at the status records it as noticed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from django.db import Error, connections, transaction
from django.utils import timezone

from flags import fence, metrics, records
from flags.beginnings import refuse_if_unanswered
from flags.conf import conversations_settings, database_alias
from flags.connections import managed, reconnecting
from flags.exceptions import (
    FenceBusy,
    NoSuchStep,
    TransitionRefused,
    UnknownGate,
)
from flags.gates import GateResult, Step, ask, ask_again, guarding
from flags.models import Transition
from flags.phases import EVERYTHING, Phase, Switch, switches_for
from flags.records import Kind, Record, Status
from flags.schema import named
from flags.switches import read_retirement
from flags.texts import shown

__all__ = [
    "Record",
    "Status",
    "advance",
    "canary",
    "check",
    "emergency",
    "history",
    "rehearse",
    "resume",
    "rollback",
    "status",
]

logger = logging.getLogger("flags")

# Each try waits for a lock for `fence.TRY` at most.
TRIES_OF_EMERGENCY = 4


@reconnecting
def status() -> Status:
    """Return where the rollout stands, after recording switches that were flipped in another way.

    Raises: SwitchesUnreadable.
    """
    with transaction.atomic(using=database_alias()):
        return records.current()


@reconnecting
def history(*, limit: int = 50) -> list[Record]:
    """Return the latest transitions, newest first."""
    return [records.record_of(row) for row in records.rows().order_by("-pk")[:limit]]


@reconnecting
def check(to: Phase | None = None, *, waive: Mapping[str, str] | None = None) -> list[GateResult]:
    """Return the answers of the gates of a step: the next one forwards, unless `to` is given.

    Nothing is changed. `waive` maps names of gates to the operator's reasons for waiving them.
    Raises: NoSuchStep if the phase is not next to the present one, TransitionRefused if the
    rollout cannot make any step now.
    """
    step = _step(status(), to, waive)
    _check_waivers([step])
    return _ask_all([step])


@reconnecting
def advance(
    *,
    reason: str = "",
    actor: str = "",
    waive: Mapping[str, str] | None = None,
    percent: float = EVERYTHING,
) -> Record:
    """Make the next step towards new_only, if each of its gates holds.

    With `percent` (0..100) the step is made for that share of the conversations; see `canary`.
    Raises: TransitionRefused (`results` names the gate and the remedy), NoSuchStep for a share
    outside 0..100, FenceBusy.
    """
    not_in_a_transaction()
    share = _percent(percent)
    step = _step(status(), None, waive)
    _check_waivers([step])
    return _make(step, Kind.ADVANCE, reason=reason, actor=actor, share=share)


@reconnecting
def canary(percent: float, *, reason: str = "", actor: str = "") -> Record:
    """Put a share of the conversations into the phase, and the rest one phase lower.

    A hash of the id decides for each conversation: a larger share contains every smaller one.
    `percent` is 0..100, to one decimal. It may be raised and lowered at will, because the truth
    of each conversation holds in every phase.

    Raises: TransitionRefused for less than 100 in phase legacy, which has no lower phase, for
    mixed switches, and once legacy is retired. NoSuchStep for a share outside 0..100.
    """
    not_in_a_transaction()
    share = _percent(percent)
    refuse_if_unanswered()
    with transaction.atomic(using=database_alias()):
        fence.close()
        now = records.current()
        if now.retired:
            raise TransitionRefused("legacy is retired: no conversation is one phase lower.")
        if share < EVERYTHING and (now.phase == Phase.LEGACY or now.mixed):
            what = "the switches spell no phase" if now.mixed else "legacy has no lower phase"
            raise TransitionRefused(f"{what}: there is nothing to be a canary of.")
        records.change({}, canary=share)
        settings = records.read_switches()
        return records.record(
            Kind.CANARY, now.phase, now.phase, settings, reason=reason, actor=actor
        )


def _percent(percent: float) -> float:
    try:
        share = round(float(percent), 1)
    except (TypeError, ValueError, OverflowError):
        # Refused below, because Python's error would repeat the value.
        share = -1.0
    if not 0 <= share <= EVERYTHING:
        raise NoSuchStep(f"a canary is 0 to 100 percent of the conversations: {shown(percent)}.")
    return share


@reconnecting
def rollback(
    to: Phase | None = None,
    *,
    reason: str = "",
    actor: str = "",
    waive: Mapping[str, str] | None = None,
) -> list[Record]:
    """Go back step by step, to the phase before, or to the earlier phase `to`.

    Each step is made and recorded by itself; a refusal leaves the rollout at the last step made.
    A waiver holds for every step with that gate.

    Raises: TransitionRefused, NoSuchStep if `to` is not before the present phase, FenceBusy.
    """
    not_in_a_transaction()
    now = status()
    goal = Phase(max(now.phase - 1, 0)) if to is None else to
    if goal >= now.phase:
        wrong = TransitionRefused if to is None else NoSuchStep
        raise wrong(f"{goal.label} is not before {now.phase.label}.")
    targets = [Phase(target) for target in range(now.phase - 1, goal - 1, -1)]
    sources = [now.phase, *targets]
    _check_waivers(
        [
            Step(source, target, now.since, now.since, waivers=waive or {})
            for source, target in zip(sources, targets, strict=False)
        ]
    )
    made = []
    for target in targets:
        try:
            step = _step(status(), target, waive)
            made.append(_make(step, Kind.ROLLBACK, reason=reason, actor=actor))
        except (TransitionRefused, FenceBusy) as error:
            if not made:
                raise
            said = f"{error} Steps were made: {made[-1].target.label} is in force now."
            results = getattr(error, "results", ())
            raise TransitionRefused(said, results=results) from error
    return made


@reconnecting
def emergency(*, reason: str = "", actor: str = "") -> Status | None:
    """Write legacy alone and prefer it for reading, in every process within a second.

    It asks no gate, waits for no lock for long, and needs only waffle's table to answer. So it
    works while the tables are dropped, locked or failing. If the step then cannot be recorded, a
    later look records it as noticed.

    Returns: where the rollout stands, None if the step could not be recorded.
    Raises: SwitchesUnreadable if waffle's table does not answer.
    """
    not_in_a_transaction()
    if not conversations_settings().get("LEGACY"):
        raise TransitionRefused(
            "CONVERSATIONS['LEGACY'] is not set: there is nothing to go back to."
        )
    _refuse_if_retired()
    _hurry_to_emergency()
    try:
        with transaction.atomic(using=database_alias()):
            fence.hurry()
            return _overruled(Kind.EMERGENCY, reason=reason, actor=actor)
    except Error as error:
        logger.error("the emergency could not be recorded: %s", named(error))
        return None


@reconnecting
def resume(*, reason: str = "", actor: str = "", waive: Mapping[str, str] | None = None) -> Status:
    """End an emergency: the other switches hold again, and the tables take in later writes.

    Its gates test whether both stores can be written.
    Raises: TransitionRefused.
    """
    not_in_a_transaction()
    now = status()
    if not now.emergency:
        raise TransitionRefused("emergency_rollback is off: there is nothing to resume.")
    step = Step(now.phase, now.phase, timezone.now(), now.since, waivers=waive or {})
    _check_waivers([step])
    results = _ask_all([step])
    refuse_unless_holding(results)
    with transaction.atomic(using=database_alias()):
        fence.close()
        _refuse_if_moved(records.current(), step)
        records.change({Switch.EMERGENCY_ROLLBACK.value: False})
        return _overruled(Kind.RESUME, results=results, reason=reason, actor=actor)


@reconnecting
def rehearse(
    to: Phase = Phase.LEGACY,
    *,
    reason: str = "",
    actor: str = "",
    waive: Mapping[str, str] | None = None,
) -> Record:
    """Ask the gates of every step back to a phase, as from one phase ahead; change nothing.

    One gate plays the way back with a test conversation, which is rolled back. The findings are
    recorded, because the step into new_reads needs the record.

    Raises: TransitionRefused if a gate refuses, which is not recorded; NoSuchStep if there is no
    step back to that phase.
    """
    not_in_a_transaction()
    now = status()
    ahead = Phase(min(now.phase + 1, max(Phase)))
    if to >= ahead:
        raise NoSuchStep(f"{to.label} is not before {ahead.label}.")
    refuse_if_unanswered()
    began = timezone.now()
    steps = [
        Step(Phase(phase), Phase(phase - 1), began, now.since, rehearsed=True, waivers=waive or {})
        for phase in range(ahead, to, -1)
    ]
    _check_waivers(steps)
    results = _ask_all(steps)
    refuse_unless_holding(results)
    with transaction.atomic(using=database_alias()):
        now = records.current()
        settings = records.read_switches()
        return records.record(
            Kind.REHEARSAL,
            now.phase,
            now.phase,
            settings,
            results=results,
            reason=reason,
            actor=actor,
        )


def _refuse_if_retired() -> None:
    if read_retirement():
        raise TransitionRefused(
            "legacy is retired: there is nothing to go back to. `conversations restore-legacy`"
            " comes first."
        )


def _hurry_to_emergency() -> None:
    """Turn the emergency on, and wait for a lock of waffle's row for less than a second."""
    for left in reversed(range(TRIES_OF_EMERGENCY)):
        try:
            with transaction.atomic(using=database_alias()):
                fence.hurry()
                records.change({Switch.EMERGENCY_ROLLBACK.value: True})
            return
        except Error as error:
            if not left or not fence.timed_out(error):
                raise records.unreadable(error) from error


def _overruled(
    kind: Transition.Kind,
    *,
    results: Sequence[GateResult] = (),
    reason: str = "",
    actor: str = "",
) -> Status:
    """Record that the emergency began or ended; the phase that it overrules stays."""
    settings = records.read_switches()
    phase = records.routing_plan(settings).phase
    records.record(kind, phase, phase, settings, results=results, reason=reason, actor=actor)
    return records.current()


def not_in_a_transaction() -> None:
    """Raise TransitionRefused inside a caller's transaction, where the fence cannot work."""
    if managed(connections[database_alias()]):
        raise TransitionRefused(
            "a step is made in a transaction of its own: call it outside of yours."
        )


def _step(now: Status, to: Phase | None, waive: Mapping[str, str] | None) -> Step:
    if not conversations_settings().get("LEGACY"):
        raise TransitionRefused("CONVERSATIONS['LEGACY'] is not set: there is nothing to roll out.")
    if now.emergency and (to is None or to > now.phase):
        raise TransitionRefused("emergency_rollback is on: `rollout resume` first.")
    if now.mixed and (to is None or to > now.phase):
        raise TransitionRefused(
            f"the switches spell no phase; they act as {now.phase.label}. Set them to that phase"
            " first: `rollout status` says which."
        )
    if now.canary < EVERYTHING and (to is None or to > now.phase):
        raise TransitionRefused(
            f"{now.phase.label} is in force for {now.canary:g} % of the conversations only:"
            " `rollout canary 100` first."
        )
    target = now.phase + 1 if to is None else to
    if target > now.phase:
        refuse_if_unanswered()
    if target < now.phase:
        _refuse_if_retired()
    if target > max(Phase):
        raise TransitionRefused(f"{now.phase.label} is the last phase.")
    if abs(target - now.phase) != 1:
        raise NoSuchStep(
            f"{now.phase.label} and {Phase(target).label} are not adjacent: go step by step."
        )
    return Step(now.phase, Phase(target), timezone.now(), now.since, waivers=waive or {})


def _make(
    step: Step,
    kind: Transition.Kind,
    *,
    reason: str,
    actor: str,
    share: float = EVERYTHING,
) -> Record:
    """Let the gates look, close the fence, let them look again, flip and record."""
    found = _ask_all([step])
    refuse_unless_holding(found)
    with transaction.atomic(using=database_alias()):
        fence.close()
        _refuse_if_moved(records.current(), step)
        # A waived gate stays waived: its second look sees only the changes since, and might pass.
        results = [
            before if before.waived else _waived(ask_again(gate, step, before), step)
            for gate, before in zip(guarding(step), found, strict=True)
        ]
        refuse_unless_holding(results)
        # No other switch is written: that would undo an emergency, which waits for no fence.
        records.change(switches_for(step.target), canary=share)
        records.complete()
        settings = records.read_switches()
        return records.record(
            kind, step.source, step.target, settings, results=results, reason=reason, actor=actor
        )


def _refuse_if_moved(now: Status, step: Step) -> None:
    """Raise TransitionRefused if the rollout moved since the gates looked outside the fence.

    A canary, an emergency, and a step there and back leave the phase unchanged. But its time in
    force begins anew, and with it the evidence of the gates.
    """
    if now.phase != step.source or now.since != step.since:
        raise TransitionRefused(
            "another step changed the phase meanwhile: look at `rollout status`."
        )
    if now.retired and not step.forwards:
        raise TransitionRefused("legacy was retired meanwhile: there is nothing to go back to.")


def _check_waivers(steps: Sequence[Step]) -> None:
    """Raise UnknownGate for a waiver whose gate belongs to none of these steps."""
    names = dict.fromkeys(gate.name for step in steps for gate in guarding(step))
    waivers = steps[0].waivers if steps else {}
    if not isinstance(waivers, Mapping):
        raise UnknownGate(f"waive is {shown(waivers)}: map gates to your reasons.")
    for name in waivers:
        if name.partition(":")[0] not in names:
            raise UnknownGate(f"there is no gate {shown(name)} here: {', '.join(names)}.")


def _ask_all(steps: Iterable[Step]) -> list[GateResult]:
    with metrics.read_once():
        return [_waived(ask(gate, step), step) for step in steps for gate in guarding(step)]


def _waived(result: GateResult, step: Step) -> GateResult:
    why = step.waivers.get(result.gate, "")
    return result if result.passed or not why else replace(result, waived=why)


def refuse_unless_holding(results: Sequence[GateResult]) -> None:
    """Raise TransitionRefused if a gate refuses and is not waived."""
    failed = [result for result in results if not result.holds]
    if failed:
        said = "; ".join(f"{r.gate}: {r.message} {r.fix}".strip() for r in failed)
        raise TransitionRefused(f"refused by {said}", results=results)
