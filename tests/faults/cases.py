"""What the fault proofs try: operations on a conversation, and what must be so afterwards."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from conversations import conf
from conversations.rollout.verification import MISMATCHES, Kind, verify
from conversations.state import AgentState
from conversations.storage import (
    append_messages,
    delete_conversation,
    load_state,
    save_state,
    update_state_partial,
)
from flags.phases import Phase
from flags.switches import forced_phase
from tests.machine.oldcode import OldChunks, OldSession
from tests.support.factories import message, messages, state, texts

ITEM = {"content": "a fact", "source": "tool"}


@dataclass
class Conversation:
    """A conversation, the texts that were acknowledged, and a state loaded from it."""

    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    acknowledged: list[str] = field(default_factory=list)
    held: Any = None
    # Whether a repeated operation must add nothing a second time.
    gone: bool = False

    def expect(self, *, also: Iterable[str] = (), what: str) -> None:
        """Assert that a load gives everything acknowledged, each once, and nothing else."""
        found = load_state(self.id)
        assert Counter(texts(found)) == Counter([*self.acknowledged, *also]), what
        assert found.load_info is None or not found.load_info.stale, what


# Where the truth is before the operation


def _here(made: Conversation) -> None:
    save_state(made.id, state("a", memory_context=[ITEM]))
    made.acknowledged = ["a"]


def _in_legacy(made: Conversation) -> None:
    with forced_phase(Phase.LEGACY):
        _here(made)


def _legacy_ahead(made: Conversation) -> None:
    with forced_phase(Phase.DUAL_WRITE):
        _here(made)
    with forced_phase(Phase.LEGACY):
        append_messages(made.id, messages("b"))
    made.acknowledged += ["b"]


def _legacy_behind(made: Conversation) -> None:
    with forced_phase(Phase.DUAL_WRITE):
        _here(made)
    with forced_phase(Phase.NEW_ONLY):
        append_messages(made.id, messages("b"))
    made.acknowledged += ["b"]


def _old_code_wrote(made: Conversation) -> None:
    with forced_phase(Phase.DUAL_WRITE):
        _here(made)
    old = OldChunks() if conf.legacy() == OldChunks.settings else OldSession()
    blob = old.read(made.id)
    assert blob is not None
    blob["conversation_history"].append(message("old"))
    old.write(made.id, blob)
    made.acknowledged += ["old"]


def _nowhere(made: Conversation) -> None:
    pass


BEFORE: dict[str, Callable[[Conversation], None]] = {
    "written in this phase": _here,
    "in legacy alone": _in_legacy,
    "legacy ahead": _legacy_ahead,
    "legacy behind": _legacy_behind,
    "old code wrote": _old_code_wrote,
    "nowhere": _nowhere,
}


# Operations; each adds at most the text "new"


def _save(made: Conversation) -> None:
    if made.held is None:
        made.held = AgentState()
    if "new" not in texts(made.held):
        made.held.conversation_history.append(message("new"))
        made.held.memory_context.append({**ITEM, "content": "another"})
        made.held.step_count += 1
    save_state(made.id, made.held)


def _append(made: Conversation) -> None:
    append_messages(made.id, messages("new"), create=True)


def _append_keyed(made: Conversation) -> None:
    append_messages(made.id, messages("new"), keys=["key"], create=True)


def _update(made: Conversation) -> None:
    # No caller creates by a partial update.
    if made.acknowledged:
        update_state_partial(
            made.id,
            {"step_count": 9, "new_messages": messages("new"), "new_context_items": [ITEM]},
        )


def _delete(made: Conversation) -> None:
    delete_conversation(made.id)
    made.gone = True


ADDING: dict[str, Callable[[Conversation], None]] = {
    "save_state": _save,
    "append_messages": _append,
    "append_messages with keys": _append_keyed,
    "update_state_partial": _update,
}
OPERATIONS = {**ADDING, "delete_conversation": _delete}


def adds(name: str, made: Conversation) -> bool:
    """Whether an operation that succeeded has added the text "new"."""
    return name in ADDING and (name != "update_state_partial" or bool(made.acknowledged))


def sound(ids: Iterable[str], *, what: str) -> None:
    """Assert that the stores hold what their numbers and digests say.

    What was never moved may be missing in the tables: legacy is its truth then.
    """
    wrong = (MISMATCHES | {Kind.FAILED}) - {Kind.MISSING_IN_TABLES}
    for found in verify(ids):
        assert wrong.isdisjoint(found.kinds), f"{what}: {found}"
