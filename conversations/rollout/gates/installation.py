"""Gates before the tables are first written: is everything installed, and does it work?"""

from __future__ import annotations

import uuid
from typing import Any

from django.core import checks
from django.db import connections, transaction
from django.db.migrations.executor import MigrationExecutor

from conversations import conf
from conversations.content.digests import loose_digest
from conversations.routing.standing import decide
from conversations.state import AgentState
from conversations.storage import ANY_OWNER, append_messages, load_state, save_state
from conversations.stores.registry import configured_store
from flags import beginnings, metrics, processes
from flags.gates import GateResult, Step
from flags.phases import PLANS, Phase, StoreName
from flags.switches import forced_phase

OUR_APPS = ("conversations", "memory", "flags", "waffle")


def holds_conversations() -> bool:
    """Whether legacy, retired or not, holds any conversation."""
    legacy = configured_store()
    return legacy is not None and bool(legacy.ids(limit=1))


def configuration(step: Step) -> GateResult:
    """No system check of the three apps is an error.

    The question where the rollout begins is left out: steps forward ask it, and the end of an
    emergency leads back to where it began.
    """
    tags = ["conversations", "memory", "flags", checks.Tags.database]
    found = checks.run_checks(tags=tags, databases=[conf.alias()])
    wrong = [each for each in found if each.is_serious() and each.id != beginnings.CHECK]
    return GateResult(
        "configuration",
        not wrong,
        "; ".join(f"{message.id}: {message.msg}" for message in wrong) or "no check fails.",
        "Run `manage.py check --database default --deploy`, and do what it says.",
        {"errors": [str(message.id) for message in wrong]},
    )


def migrations(step: Step) -> GateResult:
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


# Values that stores may get wrong, without those that a JSON column cannot hold at all.
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


def round_trip(step: Step) -> GateResult:
    """Both stores return a conversation as it was written; it is rolled back."""
    state = AgentState.from_dict(_AWKWARD)
    wanted = loose_digest(state.to_dict())
    came_back: list[str] = []
    with metrics.unmeasured(), transaction.atomic(using=conf.alias()):
        name = _specimen()
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


def reporting(step: Step) -> GateResult:
    """Every live process runs this process's version, so all know the phases."""
    live = processes.live()
    ours = processes.our_version()
    others = [f"{one.host}:{one.pid} {one.version}" for one in live if one.version != ours]
    message = f"{len(live)} processes run version {ours}."
    if not live:
        message = "no process reports itself."
    elif others:
        message = f"{len(others)} of {len(live)} processes run another version than {ours}."
    return GateResult(
        "processes",
        bool(live) and not others,
        message,
        "Deploy one version everywhere, turn the switch performance_monitoring on and let"
        " traffic run; `rollout status` lists the processes.",
        {"live": len(live), "others": others},
    )


def drill(step: Step) -> GateResult:
    """A conversation of this gate loses nothing on the way back; it is rolled back."""
    texts = [str(number) for number in range(4)]
    wrong: list[str] = []
    with metrics.unmeasured(), transaction.atomic(using=conf.alias()):
        name = _specimen()
        with forced_phase(step.source):
            before = len(load_state(name, user_id=ANY_OWNER).conversation_history)
        phases = (step.source, step.source, step.target, step.target)
        for text, phase in zip(texts, phases, strict=True):
            message = {"role": "user", "content": text}
            with forced_phase(phase):
                made = append_messages(name, [message], user_id=ANY_OWNER, create=True)
                found = load_state(name, user_id=ANY_OWNER).conversation_history
            shown = [message["content"] for message in found[before:]]
            if shown != texts[: texts.index(text) + 1] or set(made["stores"]) != _written(phase):
                wrong.append(text)
        transaction.set_rollback(True, using=conf.alias())
    way = f"{step.source.label} to {step.target.label}"
    return GateResult(
        "drill",
        not wrong,
        f"from {way}, writes {', '.join(wrong)} went wrong." if wrong else f"{way} loses nothing.",
        "See the log for why a store did not answer.",
        {"from": step.source.label, "to": step.target.label},
    )


def _specimen() -> str:
    """Return the id of a conversation of the gate's own, in a transaction to be rolled back."""
    legacy = decide().legacy
    return str(uuid.uuid4()) if legacy is None else legacy.specimen()


def _written(phase: Phase) -> set[str]:
    plan = PLANS[phase]
    legacy = {str(StoreName.LEGACY)} if plan.writes_legacy else set()
    return legacy | ({str(StoreName.NORMALIZED)} if plan.writes_normalized else set())
