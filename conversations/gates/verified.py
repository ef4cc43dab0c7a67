"""The gates that ask for a finished sync, and for equal digests everywhere."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import chain

from conversations.batches import in_batches, out_of_step
from conversations.findings import quarantined
from conversations.gates.standing import NAMED, Steps, some
from conversations.runs.records import ALIVE, Note, runs
from conversations.stores.registry import legacy_store
from conversations.sync import Target
from conversations.sync.runs import last_finished
from conversations.verification import IN_ORDER, Kind, Verified, unverified, verify
from flags.gates import GateResult, Step

# How long a gate may look while nobody can write.
INSIDE = timedelta(seconds=1)
# And before: more than that is for a verification at scale, which can be resumed.
BEFORE = timedelta(minutes=1)
# What a class of reasons may be waived for. For a difference somebody answers by its id.
EXPLAINED = frozenset({Kind.QUARANTINED, Kind.MISSING_IN_TABLES, Kind.UNREADABLE})


def sync_finished(step: Step) -> GateResult:
    """No sync to the tables is under way, and the latest one could carry over everything.

    What it could not is waived by id or by the class of the reason.
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
    # Whether one is needed, `verified` says.
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
        " says what it could not carry over, and why.",
        {
            "ids": [note.conversation_id for note in failed[:NAMED]],
            "classes": dict(Counter(note.reason_class for note in failed)),
            "waived": waived,
        },
    )


class VerifiedGate:
    """Everything is in the tables, by every digest, and nothing was set aside.

    What is not is waived by id, or, where a blob was set aside or not taken in, by the class of
    the reason.
    """

    name = "verified"

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def guards(self, step: Step) -> bool:
        return (step.source, step.target) in self.steps

    def look(self, step: Step) -> GateResult:
        """Verify what was written since it was last verified, by us or by old code."""
        legacy = legacy_store()
        mark = legacy.mark() if legacy else ""
        found = self._result(step, chain(in_batches(unverified()), out_of_step()), within=BEFORE)
        return replace(found, evidence={**found.evidence, "mark": mark})

    def look_again(self, step: Step, found: GateResult) -> GateResult:
        """Verify what was written since `look`; what takes more than a second is refused."""
        legacy = legacy_store()
        later = legacy.written_since(found.evidence["mark"]) if legacy else ()
        again = self._result(step, chain(in_batches(unverified()), later), within=INSIDE)
        counts = Counter(found.evidence["counts"]) + Counter(again.evidence["counts"])
        waived = {**found.evidence["waived"], **again.evidence["waived"]}
        return replace(again, evidence={**again.evidence, "counts": dict(counts), "waived": waived})

    def _result(self, step: Step, ids: Iterable[str], *, within: timedelta) -> GateResult:
        ends = time.monotonic() + within.total_seconds()
        counts: Counter[str] = Counter()
        wrong: list[Verified] = []
        message = ""
        for conversation_id in _once(ids):
            if time.monotonic() > ends:
                seconds = within.total_seconds()
                message = f"more has to be verified than {seconds:g} s are enough for."
                break
            (found,) = verify([conversation_id])
            counts.update(kind.name.lower() for kind in found.kinds)
            # What is in no store was deleted while we looked.
            if not (found.in_order or found.kinds == (Kind.UNKNOWN,)):
                wrong.append(found)
        waived = _waived(step, wrong)
        refused = [found.conversation_id for found in wrong if found.conversation_id not in waived]
        if refused:
            message = f"{len(refused)} conversations are not in order: {some(refused)}."
        return GateResult(
            self.name,
            not message,
            message or f"everything is in order{_but(waived)}.",
            "Run `manage.py conversations sync --to tables`, then `conversations verify`.",
            {"counts": dict(counts), "ids": refused[:NAMED], "waived": waived},
        )


def _but(waived: Mapping[str, str]) -> str:
    return f", but for {len(waived)} that somebody answers for" if waived else ""


def _once(ids: Iterable[str]) -> Iterable[str]:
    seen: set[str] = set()
    for conversation_id in ids:
        if conversation_id not in seen:
            seen.add(conversation_id)
            yield conversation_id


def _waived(step: Step, wrong: Iterable[Verified]) -> dict[str, str]:
    """Return for which of the conversations somebody answers, and why."""
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
    """Return the classes of the reasons why blobs were set aside or not taken in, by id."""
    classes: dict[str, set[str]] = defaultdict(set)
    for aside in quarantined():
        classes[aside.conversation_id].add(aside.reason_class)
    finished = last_finished(Target.TABLES)
    for note in finished.failures if finished else ():
        classes[note.conversation_id].add(note.reason_class)
    return classes
