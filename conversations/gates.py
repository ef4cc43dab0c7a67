"""The gates that conversations put before the steps of a rollout; see `flags.gates`."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import chain
from typing import Any

from django.core import checks
from django.db import connections, transaction
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from conversations import conf
from conversations.batches import in_batches, out_of_step
from conversations.digests import loose_digest
from conversations.models import LEGACY_BEHIND, ConversationState
from conversations.state import AgentState
from conversations.storage import ANY_OWNER, load_state, save_state
from conversations.stores.registry import legacy_store
from conversations.verification import unverified, verify
from flags import gates
from flags.gates import GateResult, Step
from flags.phases import Phase, StoreName
from flags.switches import forced_phase

# How long a gate may look while nobody can write.
INSIDE = timedelta(seconds=1)
# How many ids a refusal names.
NAMED = 20

OUR_APPS = ("conversations", "memory", "flags", "waffle")

Steps = frozenset[tuple[Phase, Phase]]


@dataclass(frozen=True, slots=True)
class StandingGate:
    """A gate that looks the same way twice, because it is quick."""

    name: str
    steps: Steps
    finds: Callable[[Step], GateResult]

    def guards(self, step: Step) -> bool:
        return (step.source, step.target) in self.steps

    def look(self, step: Step) -> GateResult:
        return self.finds(step)

    def look_again(self, step: Step, found: GateResult) -> GateResult:
        return self.finds(step)


def _configuration(step: Step) -> GateResult:
    """No system check of the three apps is an error."""
    tags = ["conversations", "memory", "flags", checks.Tags.database]
    found = checks.run_checks(tags=tags, databases=[conf.alias()])
    wrong = [message for message in found if message.is_serious()]
    return GateResult(
        "configuration",
        not wrong,
        "; ".join(f"{message.id}: {message.msg}" for message in wrong) or "no check fails.",
        "Run `manage.py check --database default --deploy`, and do what it says.",
        {"errors": [str(message.id) for message in wrong]},
    )


def _migrations(step: Step) -> GateResult:
    """Every migration of the three apps is applied."""
    executor = MigrationExecutor(connections[conf.alias()])
    ours = [key for key in executor.loader.graph.leaf_nodes() if key[0] in OUR_APPS]
    missing = [f"{m.app_label}.{m.name}" for m, _ in executor.migration_plan(ours)]
    return GateResult(
        "migrations",
        not missing,
        f"not applied: {', '.join(missing)}." if missing else "all are applied.",
        "Run `manage.py migrate`.",
        {"missing": missing},
    )


# Values that stores get wrong, but for those that a JSON column cannot hold at all.
_AWKWARD: dict[str, Any] = {
    "user_input": "žluťoučký \\ \u2028 \U0001f40e",
    "memory_context": [{"content": "b", "relevance_score": 0.1, "a": None}],
    "history": [{"step": 1}],
    "step_count": 3,
    "focus": ["z", "a"],
    "conversation_history": [
        {"role": "user", "content": "1"},
        {"content": [{"type": "text", "text": "\\n"}], "role": "assistant"},
        {"role": "tool", "tool_call_id": "1", "content": "", "tool_success": False},
        ["no", "mapping", 0.5],
    ],
    "last_tool_result": {"b": 1, "a": [True, None]},
}


def _round_trip(step: Step) -> GateResult:
    """A conversation comes back from both stores; it is written and rolled back."""
    state = AgentState.from_dict(_AWKWARD)
    wanted = loose_digest(state.to_dict())
    came_back: list[str] = []
    name = str(uuid.uuid4())
    with transaction.atomic(using=conf.alias()):
        with forced_phase(Phase.DUAL_WRITE):
            stores = save_state(name, state, ANY_OWNER)["stores"]
        for phase, store in (
            (Phase.LEGACY, StoreName.LEGACY),
            (Phase.NEW_ONLY, StoreName.NORMALIZED),
        ):
            with forced_phase(phase):
                found = load_state(name, user_id=ANY_OWNER).to_dict(with_baseline=False)
            if store in stores and loose_digest(found) == wanted:
                came_back.append(str(store))
        transaction.set_rollback(True, using=conf.alias())
    missing = [str(store) for store in StoreName if str(store) not in came_back]
    return GateResult(
        "round_trip",
        not missing,
        f"not as written from {', '.join(missing)}." if missing else "both stores give it back.",
        "See the log for why a store did not take it.",
        {"stores": came_back},
    )


def _soaked(step: Step) -> GateResult:
    """The present phase has been in force for SOAK_TIME."""
    passed = timezone.now() - step.since
    wanted = conf.get("SOAK_TIME")
    return GateResult(
        "soak",
        passed >= wanted,
        f"{step.source.label} has been in force for {passed}, of {wanted}.",
        'Wait, or set CONVERSATIONS["SOAK_TIME"].',
        {"seconds": int(passed.total_seconds())},
    )


def _legacy_current(step: Step) -> GateResult:
    """Legacy holds the latest content of every conversation, so that it may take over."""
    behind = ConversationState.rows.using(conf.alias()).filter(LEGACY_BEHIND)
    ids = list(behind.order_by("pk").values_list("conversation_id", flat=True)[: NAMED + 1])
    count = len(ids) if len(ids) <= NAMED else behind.count()
    return GateResult(
        "legacy_current",
        not count,
        f"legacy is behind in {count} conversations." if count else "legacy is current.",
        "Run `manage.py conversations sync --to legacy`.",
        {"behind": count, "ids": ids[:NAMED]},
    )


class Verified:
    """Everything is in the tables, by every digest, and nothing was set aside."""

    name = "verified"

    def guards(self, step: Step) -> bool:
        return (step.source, step.target) == (Phase.DUAL_WRITE, Phase.NEW_READS)

    def look(self, step: Step) -> GateResult:
        """Verify what was written since it was last verified, by us or by old code."""
        legacy = legacy_store()
        mark = legacy.mark() if legacy else ""
        found = self._result(chain(in_batches(unverified()), out_of_step()))
        return replace(found, evidence={**found.evidence, "mark": mark})

    def look_again(self, step: Step, found: GateResult) -> GateResult:
        """Verify what was written since `look`; what takes more than a second is refused."""
        legacy = legacy_store()
        later = legacy.written_since(found.evidence["mark"]) if legacy else ()
        again = self._result(chain(in_batches(unverified()), later), within=INSIDE)
        counts = Counter(found.evidence["counts"]) + Counter(again.evidence["counts"])
        return replace(again, evidence={**again.evidence, "counts": dict(counts)})

    def _result(self, ids: Iterable[str], within: timedelta | None = None) -> GateResult:
        ends = None if within is None else time.monotonic() + within.total_seconds()
        counts: Counter[str] = Counter()
        wrong: list[str] = []
        message = ""
        for conversation_id in dict.fromkeys(ids) if within else ids:
            if ends is not None and time.monotonic() > ends:
                message = "more was written since it was verified than a second can verify."
                break
            (found,) = verify([conversation_id])
            counts.update(kind.name.lower() for kind in found.kinds)
            if not found.in_order:
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


def register() -> None:
    """Register the gates; called once from `ConversationsConfig.ready`."""
    first = frozenset({(Phase.LEGACY, Phase.DUAL_WRITE)})
    last = frozenset({(Phase.NEW_READS, Phase.NEW_PRIMARY), (Phase.NEW_PRIMARY, Phase.NEW_ONLY)})
    back = frozenset({(Phase.NEW_READS, Phase.DUAL_WRITE), (Phase.DUAL_WRITE, Phase.LEGACY)})
    gates.register(StandingGate("configuration", first, _configuration))
    gates.register(StandingGate("migrations", first, _migrations))
    gates.register(StandingGate("round_trip", first, _round_trip))
    gates.register(Verified())
    gates.register(StandingGate("soak", last, _soaked))
    gates.register(StandingGate("legacy_current", last | back, _legacy_current))
