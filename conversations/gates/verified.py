"""The gate that asks for equal digests everywhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from itertools import chain

from conversations.batches import in_batches, out_of_step
from conversations.gates.standing import NAMED, Steps
from conversations.stores.registry import legacy_store
from conversations.verification import Kind, unverified, verify
from flags.gates import GateResult, Step

# How long a gate may look while nobody can write.
INSIDE = timedelta(seconds=1)
# And before: more than that is for a verification at scale, which can be resumed.
BEFORE = timedelta(minutes=1)


class Verified:
    """Everything is in the tables, by every digest, and nothing was set aside."""

    name = "verified"

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def guards(self, step: Step) -> bool:
        return (step.source, step.target) in self.steps

    def look(self, step: Step) -> GateResult:
        """Verify what was written since it was last verified, by us or by old code."""
        legacy = legacy_store()
        mark = legacy.mark() if legacy else ""
        found = self._result(chain(in_batches(unverified()), out_of_step()), within=BEFORE)
        return replace(found, evidence={**found.evidence, "mark": mark})

    def look_again(self, step: Step, found: GateResult) -> GateResult:
        """Verify what was written since `look`; what takes more than a second is refused."""
        legacy = legacy_store()
        later = legacy.written_since(found.evidence["mark"]) if legacy else ()
        again = self._result(chain(in_batches(unverified()), later), within=INSIDE)
        counts = Counter(found.evidence["counts"]) + Counter(again.evidence["counts"])
        return replace(again, evidence={**again.evidence, "counts": dict(counts)})

    def _result(self, ids: Iterable[str], *, within: timedelta) -> GateResult:
        ends = time.monotonic() + within.total_seconds()
        counts: Counter[str] = Counter()
        wrong: list[str] = []
        message = ""
        seen: set[str] = set()
        for conversation_id in ids:
            if conversation_id in seen:
                continue
            seen.add(conversation_id)
            if time.monotonic() > ends:
                seconds = within.total_seconds()
                message = f"more has to be verified than {seconds:g} s are enough for."
                break
            (found,) = verify([conversation_id])
            counts.update(kind.name.lower() for kind in found.kinds)
            # What is in no store was deleted while we looked.
            if not (found.in_order or found.kinds == (Kind.UNKNOWN,)):
                wrong.append(conversation_id)
        if wrong:
            message = f"{len(wrong)} conversations are not in order."
        return GateResult(
            self.name,
            not message,
            message or "everything is in order.",
            "Run `manage.py conversations sync --to tables`, then `conversations verify`.",
            {"counts": dict(counts), "ids": wrong[:NAMED]},
        )
