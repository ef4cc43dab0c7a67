"""The conditions for giving legacy up: gates, as before a step of the rollout."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import chain

from django.utils import timezone

from conversations import conf
from conversations.rollout.verification import IN_ORDER, Kind, unverified, verify
from conversations.routing.ids import in_batches, out_of_step
from conversations.stores.registry import configured_store
from flags import beginnings, transitions
from flags.connections import reconnecting
from flags.durations import in_words
from flags.exceptions import TransitionRefused, UnknownGate
from flags.gates import GateResult
from flags.phases import EVERYTHING, Phase
from flags.records import Status

# How long a check inside the fence may take, while writers wait.
INSIDE = timedelta(seconds=1)
# How many conversations pass between two lines of progress.
PROGRESS_EVERY = 500
# How many ids a refusal names.
NAMED = 20
# The conditions that can be waived. Content that only legacy holds cannot.
WAIVABLE = ("soak", "quarantined", "unchanged")
# A conversation in no store was deleted meanwhile.
_HARMLESS = IN_ORDER | {Kind.UNKNOWN}


@reconnecting
def conditions(
    waive: Mapping[str, str] | None = None, *, progress: Callable[[str], None] = lambda text: None
) -> list[GateResult]:
    """Return the results of all conditions for retiring legacy. Takes its time.

    Verifies the conversations that any code wrote since they were last verified. `waive` maps the
    name of a gate in `WAIVABLE` to the reason for waiving it.

    Raises: TransitionRefused without a legacy store, UnknownGate.
    """
    if configured_store() is None:
        raise TransitionRefused("CONVERSATIONS['LEGACY'] is not set: there is nothing to retire.")
    for name in waive or ():
        if name not in WAIVABLE:
            raise UnknownGate(f"only these may be waived here: {', '.join(WAIVABLE)}.")
    now = transitions.status()
    found = _Found(progress)
    found.look(chain(in_batches(unverified()), out_of_step()))
    results = [_phase(now), _soaked(now), found.verified(), found.quarantined()]
    return [waived(result, waive) for result in results]


def unchanged(now: Status, mark: str, waive: Mapping[str, str] | None) -> Sequence[GateResult]:
    """Return inside the fence whether all still holds; of legacy, only later writes are checked."""
    legacy = configured_store()
    found = _Found()
    complete = found.look(legacy.ids_written_since(mark) if legacy else (), within=INSIDE)
    wrong = found.wrong or (() if complete else ["..."])
    result = GateResult(
        "unchanged",
        not wrong,
        "nothing came into legacy meanwhile." if not wrong else _came(found, complete=complete),
        "Stop old code, run `manage.py conversations sync --to tables`, and try again.",
        {"ids": found.wrong[:NAMED]},
    )
    return [_phase(now), waived(result, waive)]


def _came(found: _Found, *, complete: bool) -> str:
    if not complete:
        return "more may have come into legacy meanwhile than a second can verify."
    return f"{len(found.wrong)} conversations were written in legacy meanwhile."


def waived(result: GateResult, waive: Mapping[str, str] | None) -> GateResult:
    """Return a result with the reason why it was waived, if it needs that."""
    why = (waive or {}).get(result.gate, "")
    return result if result.passed or not why else replace(result, waived=why)


def _phase(now: Status) -> GateResult:
    """Only the tables are written, for all conversations and by all processes."""
    problem, fix = "", "Run `manage.py rollout advance`, and let it soak."
    if now.emergency:
        problem, fix = "an emergency is on.", "Run `manage.py rollout resume`."
    elif now.phase != Phase.NEW_ONLY:
        problem = f"the phase is {now.phase.label}, not new_only."
    elif now.mixed:
        problem, fix = "the switches spell no phase.", "Run `manage.py rollout status`."
    elif now.canary < EVERYTHING:
        problem = f"new_only is in force for {now.canary:g} % of the conversations only."
        fix = "Run `manage.py rollout canary 100`, and let it soak."
    elif beginnings.unanswered():
        # The question where the rollout begins is open: old code may still write legacy.
        problem, fix = beginnings.QUESTION, beginnings.ANSWER
    return GateResult("phase", not problem, problem or "new_only is in force.", fix)


def _soaked(now: Status) -> GateResult:
    """The phase has been in force without a break for RETIRE_AFTER."""
    passed = timezone.now() - now.since
    wanted = conf.get("RETIRE_AFTER")
    return GateResult(
        "soak",
        passed >= wanted,
        f"{now.phase.label} has been in force for {in_words(passed.total_seconds())}, of"
        f" {in_words(wanted.total_seconds())}.",
        'Wait, or set CONVERSATIONS["RETIRE_AFTER"].',
        {"seconds": int(passed.total_seconds())},
    )


@dataclass(slots=True)
class _Found:
    """The result of a look at conversations: those not in order, and those with blobs set aside."""

    progress: Callable[[str], None] = lambda text: None
    wrong: list[str] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)
    kinds: set[Kind] = field(default_factory=set)
    seen: int = 0

    def look(self, ids: Iterable[str], *, within: timedelta | None = None) -> bool:
        """Verify conversations. Returns: False if `within` was too short for all."""
        ends = None if within is None else time.monotonic() + within.total_seconds()
        for conversation_id in ids:
            if ends is not None and time.monotonic() > ends:
                return False
            (found,) = verify([conversation_id])
            self.seen += 1
            if self.seen % PROGRESS_EVERY == 0:
                self.progress(f"verified {self.seen} conversations")
            problems = set(found.kinds) - _HARMLESS
            if problems - {Kind.QUARANTINED}:
                self.wrong.append(conversation_id)
                self.kinds |= problems
            if Kind.QUARANTINED in problems:
                self.aside.append(conversation_id)
        return True

    def verified(self) -> GateResult:
        """Everything is in the tables, and matches its digests."""
        kinds = ", ".join(sorted(self.kinds - {Kind.QUARANTINED}))
        return GateResult(
            "verified",
            not self.wrong,
            f"{len(self.wrong)} conversations are not in order ({kinds}): {_named(self.wrong)}."
            if self.wrong
            else "the tables hold everything, as it was written.",
            "Run `manage.py conversations sync --to tables`, then `conversations verify`; repair or"
            " delete unreadable conversations that only legacy holds.",
            {"verified": self.seen, "wrong": len(self.wrong), "ids": self.wrong[:NAMED]},
        )

    def quarantined(self) -> GateResult:
        """No blob was set aside: a retirement would remove it for good."""
        return GateResult(
            "quarantined",
            not self.aside,
            f"{len(self.aside)} conversations have a blob that was set aside: {_named(self.aside)}."
            if self.aside
            else "nothing was set aside.",
            "Look at them in the admin (conflicts), and answer for them: --waive"
            " quarantined=REASON.",
            {"quarantined": len(self.aside), "ids": self.aside[:NAMED]},
        )


def _named(ids: Sequence[str]) -> str:
    return ", ".join(ids[:NAMED]) + (", …" if len(ids) > NAMED else "")
