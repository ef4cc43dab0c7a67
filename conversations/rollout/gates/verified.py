"""The gates that require a finished sync, and equal digests everywhere."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import chain

from conversations.rollout.findings import quarantined
from conversations.rollout.gates.standing import NAMED, Steps, some
from conversations.rollout.runs.records import ALIVE, Note, runs
from conversations.rollout.sync import Target
from conversations.rollout.sync.runs import last_finished
from conversations.rollout.verification import IN_ORDER, Kind, Verified, unverified, verify
from conversations.routing.ids import changed_since, in_batches, out_of_step, pages_of
from conversations.routing.standing import decide
from flags.durations import in_words
from flags.gates import GateResult, Step

# How long a gate may look inside the fence, while writers wait.
INSIDE = timedelta(seconds=1)
# And before the fence: more than that is the work of a resumable verification at scale.
BEFORE = timedelta(minutes=1)
# After a round this short before the fence, the rest fits into the second inside.
LITTLE = timedelta(seconds=0.25)
MOST_ROUNDS = 10
# The kinds that may be waived by a class of reasons. A difference is waived only by its id.
EXPLAINED = frozenset({Kind.QUARANTINED, Kind.MISSING_IN_TABLES, Kind.UNREADABLE})


def sync_finished(step: Step) -> GateResult:
    """No sync to the tables is under way, and the latest one carried over everything.

    The rest is waived by id or by the class of the reason.
    """
    rows = runs().filter(target=Target.TABLES, state__in=ALIVE)
    alive = rows.values_list("pk", flat=True).first()
    finished = last_finished(Target.TABLES)
    failed: list[Note] = []
    waived: dict[str, str] = {}
    for note in finished.failures if finished else ():
        why = step.waiver("sync_finished", (note.conversation_id, note.reason_class))
        if why:
            waived[note.conversation_id] = why
        else:
            failed.append(note)
    # The gate `verified` says whether one is needed.
    message = "no sync has come to its end yet."
    if alive is not None:
        message = f"run {alive} is not finished."
    elif failed:
        names = some([note.conversation_id for note in failed])
        message = f"{len(failed)} conversations could not be carried over: {names}."
    elif finished is not None:
        message = f"run {finished.run} carried over everything{_but(waived)}."
    return GateResult(
        "sync_finished",
        alive is None and not failed,
        message,
        "Run `manage.py conversations sync --to tables` to its end; `conversations findings`"
        " says which it could not carry over, and why.",
        {
            "ids": [note.conversation_id for note in failed[:NAMED]],
            "classes": dict(Counter(note.reason_class for note in failed)),
            "waived": waived,
        },
    )


class VerifiedGate:
    """Everything is in the tables, by every digest, and no blob was set aside.

    Exceptions are waived by id, or, if a blob was set aside or not ingested, by the class of the
    reason.
    """

    name = "verified"

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def guards(self, step: Step) -> bool:
        return (step.source, step.target) in self.steps

    def look(self, step: Step) -> GateResult:
        """Verify the conversations that we or old code wrote since they were last verified.

        Then verify again those written meanwhile, until the rest fits into the second inside the
        fence. Under steady traffic, each round has less to do than the one before.
        """
        ends = time.monotonic() + BEFORE.total_seconds()
        found: dict[str, Verified] = {}
        later = out_of_step()
        for number in range(MOST_ROUNDS):
            mark, began = _mark(), time.monotonic()
            fresh = dict(_verified(chain(in_batches(unverified()), later), ends=ends))
            found |= fresh
            took = time.monotonic() - began
            left = unverified().count() if time.monotonic() > ends else 0
            result = self._result(step, found, _too_much(fresh, took, left, number + 1))
            if left or took < LITTLE.total_seconds() or not result.passed:
                break
            later = changed_since(mark)
        return replace(result, evidence={**result.evidence, "mark": mark})

    def look_again(self, step: Step, found: GateResult) -> GateResult:
        """Verify conversations written since `look`; more than a second's work is refused."""
        began = time.monotonic()
        ids = list(chain(in_batches(unverified()), changed_since(found.evidence["mark"])))
        ends = began + INSIDE.total_seconds()
        looked = dict(_verified(ids, ends=ends))
        left = len(set(ids) - looked.keys())
        again = self._result(step, looked, _too_late(looked, time.monotonic() - began, left))
        counts = Counter(found.evidence["counts"]) + Counter(again.evidence["counts"])
        waived = {**found.evidence["waived"], **again.evidence["waived"]}
        return replace(again, evidence={**again.evidence, "counts": dict(counts), "waived": waived})

    def _result(self, step: Step, found: Mapping[str, Verified], message: str) -> GateResult:
        """Return the result; `message` says why not everything was looked at, or ""."""
        counts = Counter(kind.name.lower() for one in found.values() for kind in one.kinds)
        # A conversation in no store was deleted meanwhile.
        wrong = [
            one for one in found.values() if not (one.in_order or one.kinds == (Kind.UNKNOWN,))
        ]
        waived = _waived(step, wrong)
        refused = [one.conversation_id for one in wrong if one.conversation_id not in waived]
        fix = "Run `manage.py conversations sync --to tables`, then `conversations verify`."
        if refused:
            message = f"{len(refused)} conversations are not in order: {some(refused)}."
        elif message:
            fix = "Run `manage.py conversations verify`, then ask again at once."
        return GateResult(
            self.name,
            not message,
            message or f"everything is in order{_but(waived)}.",
            fix,
            {"counts": dict(counts), "ids": refused[:NAMED], "waived": waived},
        )


def _mark() -> str:
    legacy = decide().legacy
    return legacy.mark() if legacy else ""


def _verified(ids: Iterable[str], *, ends: float) -> Iterator[tuple[str, Verified]]:
    """Verify conversations, each once, until time is up; yield the id and the result."""
    for page in pages_of(_once(ids)):
        if time.monotonic() > ends:
            return
        for found in verify(page):
            yield found.conversation_id, found
            if time.monotonic() > ends:
                return


def _too_much(looked: Mapping[str, Verified], took: float, left: int, rounds: int) -> str:
    """Return which conversations could not be verified before the fence, or ""."""
    if not left:
        return ""
    wait = in_words(took * left / max(len(looked), 1))
    return (
        f"more has to be verified than {in_words(BEFORE.total_seconds())} are enough for:"
        f" {left} conversations are left after {rounds} rounds, which takes about {wait}."
    )


def _too_late(looked: Mapping[str, Verified], took: float, left: int) -> str:
    """Return which conversations could not be verified inside the fence, or ""."""
    if not left:
        return ""
    wait = in_words(took * left / max(len(looked), 1))
    return (
        f"more has to be verified than {INSIDE.total_seconds():g} s are enough for: of"
        f" {left + len(looked)} conversations written since the gates looked, {left} are left,"
        f" which takes about {wait} more. Wait until fewer are saved a second."
    )


def _but(waived: Mapping[str, str]) -> str:
    return f", except {len(waived)} that were waived" if waived else ""


def _once(ids: Iterable[str]) -> Iterable[str]:
    seen: set[str] = set()
    for conversation_id in ids:
        if conversation_id not in seen:
            seen.add(conversation_id)
            yield conversation_id


def _waived(step: Step, wrong: Iterable[Verified]) -> dict[str, str]:
    """Return the waived conversations, and why."""
    if not any(name.startswith(f"{VerifiedGate.name}:") for name in step.waivers):
        return {}
    classes = _classes()
    waived = {}
    for found in wrong:
        explained = set(found.kinds) <= EXPLAINED | IN_ORDER
        items = [found.conversation_id]
        if explained:
            items += sorted(classes.get(found.conversation_id, ()))
        why = step.waiver(VerifiedGate.name, items)
        if why:
            waived[found.conversation_id] = why
    return waived


def _classes() -> Mapping[str, set[str]]:
    """Return the classes of the reasons why blobs were set aside or not ingested, by id."""
    classes: dict[str, set[str]] = defaultdict(set)
    for aside in quarantined():
        classes[aside.conversation_id].add(aside.reason_class)
    finished = last_finished(Target.TABLES)
    for note in finished.failures if finished else ():
        classes[note.conversation_id].add(note.reason_class)
    return classes
