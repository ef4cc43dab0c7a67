"""Every operation, in every phase, with switches that flip, faults, and old code at work."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from conversations import storage
from conversations.exceptions import ConversationNotFound, StorageUnavailable
from conversations.models import ConversationMessage
from conversations.state import AgentState
from tests.machine.callers import Callers
from tests.machine.crashes import CallersDie, OperatorsDie
from tests.machine.environment import choices, message, text_of
from tests.machine.operators import Operators


class Rollout(Callers):
    """One conversation against the model: callers, flips, faults, and old code beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.read_by_old: list[dict[str, Any]] = []
        # Whether another user's blob stands in legacy under our id: old code shows it to no user.
        self.usurped = False

    @precondition(lambda self: not self.usurped)
    @rule()
    def old_read(self) -> None:
        state = self.old.read(self.id)
        if state is not None:
            self.read_by_old = [*self.read_by_old[-2:], state]

    @precondition(lambda self: not self.usurped and (self.read_by_old or not self.exists))
    @rule(chosen=choices, added=st.integers(0, 2), keep=st.integers(1, 30))
    def old_write(self, chosen: int, added: int, keep: int) -> None:
        """Old code adds to what it read, perhaps long ago, prunes it, and writes it."""
        if self.read_by_old:
            state = dict(self.read_by_old[chosen % len(self.read_by_old)])
        else:
            state = AgentState().to_dict()
        texts = [next(self.texts) for _ in range(added)]
        history = [*state["conversation_history"], *map(message, texts)][-keep:]
        texts = [text for text in texts if message(text) in history]
        state["conversation_history"] = history
        state["step_count"] = state.get("step_count", 0) + 1
        row = self.row()
        self.old.write(self.id, state, owner=self.owner)
        if self.model.deleted:
            return
        written = [text_of(entry) for entry in history]
        overwrites = self.old.overwrites or row is None
        self.model.append(texts)
        self.exists = True
        self.model.old_write(written, overwrites=overwrites)
        # A message that no row has ever held is unknown to the tables: old code may bring
        # back what was removed before they saw it.
        held = set(
            ConversationMessage.rows.filter(conversation__conversation_id=self.id).values_list(
                "content", flat=True
            )
        )
        self.model.unsure |= {t for t in written if t not in held and t not in self.model.live}
        if overwrites:
            self.model.legacy_only(set(texts) | (set(self.model.known) if row is None else set()))


class Everything(OperatorsDie, CallersDie, Rollout):
    """The same with the rollout moved, synced and verified, and with processes that die."""


class TwoUsers(Operators, Rollout):
    """Our conversation belongs to a user, and a stranger saves under the same id."""

    stranger: int

    def prepare(self) -> None:
        super().prepare()
        users = get_user_model().objects
        self.owner, self.stranger = (
            users.get_or_create(username=name)[0].pk for name in ("owner", "stranger")
        )

    @precondition(lambda self: self.exists)
    @rule()
    def a_stranger_saves(self) -> None:
        """Refused; or kept apart, where only tables that do not answer know of ours."""
        theirs = AgentState(conversation_history=[message("a stranger's")])
        try:
            with self.faults():
                storage.save_state(self.id, theirs, user_id=self.stranger)
        except (ConversationNotFound, StorageUnavailable):
            return
        assert self.down == "tables"
        self.usurped = True

    @precondition(lambda self: self.exists and not self.down)
    @rule()
    def a_stranger_loads(self) -> None:
        shown = storage.load_state(self.id, user_id=self.stranger).conversation_history
        assert not shown, f"shown to a stranger: {shown}"
