"""Gates that ask about the traffic since the present phase began."""

from __future__ import annotations

from collections.abc import Iterable

from django.db.models import Max
from django.utils import timezone

from conversations import conf
from conversations.models import LEGACY_BEHIND, ConversationState
from conversations.reading.shadow import OPERATION as SHADOW
from conversations.rollout.findings import written_by_others
from conversations.rollout.gates.standing import NAMED
from conversations.stores.sql.expressions import EVERY_KEY
from flags import metrics, records
from flags.conf import limits
from flags.durations import in_words
from flags.gates import GateResult, Step
from flags.histogram import Measure
from flags.phases import Phase
from flags.records import Kind, Record

# Operations that callers wait for; the others are measured too.
ASKED = frozenset({"save", "append", "edit", "load"})


def soaked(step: Step) -> GateResult:
    """The present phase has been in force for SOAK_TIME."""
    passed = timezone.now() - step.since
    wanted = conf.get("SOAK_TIME")
    return GateResult(
        "soak",
        passed >= wanted,
        f"{step.source.label} has been in force for {in_words(passed.total_seconds())}, of"
        f" {in_words(wanted.total_seconds())}.",
        'Wait, or set CONVERSATIONS["SOAK_TIME"].',
        {"seconds": int(passed.total_seconds())},
    )


def legacy_current(step: Step) -> GateResult:
    """Legacy holds the latest content of every conversation, so that it may take over.

    In a rehearsal it need not: a sync before the real step writes the rest.
    """
    rows = ConversationState.rows.using(conf.alias())
    behind = rows.filter(LEGACY_BEHIND, pk__gt=0, pk__lte=EVERY_KEY)
    ids = list(behind.order_by("pk").values_list("conversation_id", flat=True)[: NAMED + 1])
    count = len(ids) if len(ids) <= NAMED else behind.count()
    return GateResult(
        "legacy_current",
        not count or step.rehearsed,
        f"legacy is behind in {count} conversations." if count else "legacy is current.",
        "Run `manage.py conversations sync --to legacy`.",
        {"behind": count, "ids": ids[:NAMED]},
    )


def shadow_reads(step: Step) -> GateResult:
    """Enough loads of this phase were compared with the other store, and all agreed."""
    total = _total(step, {SHADOW})
    agreed = total.count - total.errors - total.mismatches
    wanted = conf.get("SHADOW_READS")
    return GateResult(
        "shadow_reads",
        agreed >= wanted and not total.mismatches,
        f"{agreed} of {wanted} shadow reads agreed, {total.mismatches} did not.",
        "Turn the switch performance_monitoring on and let traffic run (SHADOW_SHARE); the"
        " mismatches list the differences: `conversations verify` those conversations.",
        {"agreed": agreed, "mismatches": total.mismatches, "failed": total.errors},
    )


def errors(step: Step) -> GateResult:
    """Few operations of this phase failed in either store, and few of each kind.

    Each kind counts by itself too: saves that all fail are few among many loads.
    """
    measured = _measured(step, {*ASKED, "leg"})
    total = _added(measured.values())
    failing = [name for name, measure in measured.items() if _too_many(measure)]
    named = f" Too many of: {', '.join(failing)}." if failing else ""
    return GateResult(
        "errors",
        not failing and not _too_many(total),
        f"{total.errors} of {total.count} operations failed in a store.{named}",
        "See `rollout health` and the log for which store fails, and why.",
        {"errors": total.errors, "operations": total.count, "failing": failing},
    )


def _too_many(measure: Measure) -> bool:
    limit = limits()
    return measure.count >= limit.minimum and measure.error_ratio > limit.warning


def latency(step: Step) -> GateResult:
    """95 % of the operations of this phase were quick enough."""
    limit = conf.get("MAX_P95")
    total = _total(step, ASKED)
    seconds = total.p95 if sum(total.cells) >= limits().minimum else None
    said = f"95 % of the operations took at most {1000 * (seconds or 0):.0f} ms, of"
    if seconds is None:
        said = "too few operations were timed, to be held against"
    return GateResult(
        "latency",
        seconds is None or seconds <= limit.total_seconds(),
        f"{said} {1000 * limit.total_seconds():.0f} ms.",
        'See `rollout health` for the slow ones, or set CONVERSATIONS["MAX_P95"].',
        {"p95_seconds": seconds},
    )


def no_fallbacks(step: Step) -> GateResult:
    """No operation of this phase had to be answered by the other store, or by a stale one.

    Without measurements, this is unknown.
    """
    total = _total(step, ASKED)
    wanted = conf.get("SHADOW_READS")
    enough, found = total.count >= wanted, total.fallbacks + total.stale
    message = f"{total.fallbacks} fallbacks and {total.stale} stale reads in {step.source.label}."
    fix = "See the log for why a store did not answer; go back and come again to count anew."
    if not enough:
        message = f"{total.count} of {wanted} operations were measured in {step.source.label}."
        fix = "Turn the switch performance_monitoring on and let traffic run (SHADOW_READS)."
    evidence = {"fallbacks": total.fallbacks, "stale": total.stale, "operations": total.count}
    return GateResult("no_fallbacks", enough and not found, message, fix, evidence)


def foreign_writes(step: Step) -> GateResult:
    """No other code has written into legacy for FOREIGN_QUIET."""
    quiet = conf.get("FOREIGN_QUIET")
    written = written_by_others(timezone.now() - quiet)
    ids = list(written.values_list("conversation_id", flat=True)[: NAMED + 1]) if quiet else []
    message = f"no other code has written into legacy for {in_words(quiet.total_seconds())}."
    if ids:
        last = written.aggregate(last=Max("foreign_written_at"))["last"]
        message = (
            f"{_number(ids)} conversations were written in legacy by old code, the last one at"
            f" {last:%Y-%m-%d %H:%M:%S %Z}."
        )
    return GateResult(
        "foreign_writes",
        not ids,
        message,
        f"Wait until {in_words(quiet.total_seconds())} have passed since (FOREIGN_QUIET). If it"
        " goes on, find the process that still runs old code and stop it: `conversations"
        " findings` counts its writes. Without such a process, they are our own saves that went to"
        " legacy while the tables did not answer; these carry no mark, and count too.",
        {"ids": ids[:NAMED]},
    )


def rehearsed(step: Step) -> GateResult:
    """The whole way back was rehearsed since the present phase began."""
    made = records.rows().filter(kind=Kind.REHEARSAL, at__gte=step.since).order_by("-pk")
    whole = (row.pk for row in made if _leads_to_legacy(records.record_of(row)))
    epoch = next(whole, None)
    return GateResult(
        "rehearsed",
        epoch is not None,
        "the way back was rehearsed." if epoch else "the way back to legacy was not rehearsed.",
        "Run `manage.py rollout rollback --rehearse`.",
        {"epoch": epoch},
    )


def _leads_to_legacy(rehearsal: Record) -> bool:
    drills = (gate["evidence"] for gate in rehearsal.gates if gate["gate"] == "drill")
    return any(evidence.get("to") == Phase.LEGACY.label for evidence in drills)


def _total(step: Step, operations: set[str] | frozenset[str]) -> Measure:
    """Return the measurements of some operations since the phase began, on both stores."""
    return _added(_measured(step, operations).values())


def _measured(step: Step, operations: set[str] | frozenset[str]) -> dict[str, Measure]:
    """Return the measurements of some operations since the phase began, as "save legacy"."""
    found = sorted(metrics.totals(step.since).items())
    return {f"{name} {store}": each for (name, store), each in found if name in operations}


def _added(measures: Iterable[Measure]) -> Measure:
    total = Measure()
    for measure in measures:
        total.add(measure)
    return total


def _number(ids: list[str]) -> str:
    return str(len(ids)) if len(ids) <= NAMED else f"more than {NAMED}"
