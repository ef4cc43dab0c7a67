"""Processes that die in the middle of their work, and the processes after them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from conversations import storage
from conversations.rollout.sync import Target, runs, sync
from flags import transitions
from flags.exceptions import FenceBusy, TransitionRefused
from tests.machine.callers import Callers, deletable
from tests.machine.dying import Fate, Moment, When, fate_of
from tests.machine.environment import alive, choices, message, text_of
from tests.machine.operators import Operators

moments = st.builds(Moment, st.sampled_from([When.BEFORE, When.AFTER]), st.integers(1, 16)) | (
    st.builds(
        Moment,
        st.sampled_from([When.BEFORE_COMMIT, When.AFTER_COMMIT, When.IN_COMMIT]),
        st.just(1),
    )
)
# What an operator does may be several transactions.
later_moments = st.builds(Moment, st.sampled_from(When), st.integers(1, 4)) | (
    st.builds(Moment, st.sampled_from([When.BEFORE, When.AFTER]), st.integers(1, 40))
)


class CallersDie(Callers):
    """What was not committed is gone; what was is there; and a repeat adds nothing."""

    def fate(self, moment: Moment, call: Callable[[], Any], texts: Collection[str]) -> Fate:
        """Carry out a write of these new texts that may die; find out whether it is there."""
        fate = fate_of(moment, call)
        if not fate.died:
            fate.committed = True
            return fate
        # States that the process held went with it.
        self.held = []
        if fate.committed is None:
            shown = {
                text_of(entry)
                for entry in storage.load_state(self.id, user_id=self.owner).conversation_history
            }
            fate.committed = shown.issuperset(texts)
        return fate

    @precondition(lambda self: not self.down and not self.model.deleted)
    @rule(moment=moments, added=st.integers(1, 3), repeat=st.booleans())
    def append_and_die(self, moment: Moment, added: int, repeat: bool) -> None:
        texts = [next(self.texts) for _ in range(added)]

        def append() -> Any:
            keys = [f"key {text}" for text in texts]
            values = [*map(message, texts)]
            return storage.append_messages(
                self.id, values, keys=keys, create=True, user_id=self.owner
            )

        fate = self.fate(moment, append, texts)
        there = fate.committed
        if there:
            self.applied(texts)
        if repeat:
            append()
            if not there:
                self.applied(texts)
        self.look()

    def applied(self, texts: list[str]) -> None:
        self.exists = True
        self.model.append(texts)
        self.settle(set(texts), in_tables=False)
        self.look()

    @alive
    @rule(
        moment=moments,
        chosen=choices,
        added=st.integers(1, 3),
        edit=st.none() | choices,
        drop=st.none() | choices,
        repeat=st.booleans(),
    )
    def save_and_die(
        self,
        moment: Moment,
        chosen: int,
        added: int,
        edit: int | None,
        drop: int | None,
        repeat: bool,
    ) -> None:
        if not self.held:
            self.load(None)
        held = self.held[chosen % len(self.held)]
        change = self.change(held.state, added, edit, drop)
        new = {*change.appended, *change.edited.values()}
        if moment.when == When.IN_COMMIT and not new:
            # Whether it is there could not be told by what is shown.
            moment = Moment(When.AFTER_COMMIT, 1)
        before = pickle.dumps(held.state)
        fate = self.fate(
            moment, lambda: storage.save_state(self.id, held.state, user_id=self.owner), new
        )
        there = fate.committed
        if there:
            self.apply(change)
            held.given = [text_of(entry) for entry in held.state.conversation_history]
            self.look()
        if repeat:
            storage.save_state(self.id, pickle.loads(before), user_id=self.owner)
            if not there:
                self.apply(change)
        self.look()

    @alive
    @rule(moment=moments, step_count=st.integers(100, 199))
    def update_and_die(self, moment: Moment, step_count: int) -> None:
        text = next(self.texts)
        updates = {"step_count": step_count, "new_messages": [message(text)]}
        fate = self.fate(
            moment,
            lambda: storage.update_state_partial(self.id, updates, user_id=self.owner),
            [text],
        )
        if fate.committed:
            self.applied([text])
            assert storage.load_state(self.id, user_id=self.owner).step_count == step_count
        self.look()

    @alive
    @rule(moment=moments)
    def load_and_die(self, moment: Moment) -> None:
        """A load may merge what old code wrote."""
        fate_of(moment, lambda: storage.load_state(self.id, user_id=self.owner))
        self.look()

    @precondition(lambda self: not self.down)
    @deletable
    @rule(moment=moments)
    def delete_and_die(self, moment: Moment) -> None:
        gone = self.model.deleted
        if moment.when == When.IN_COMMIT:
            moment = Moment(When.AFTER_COMMIT, 1)
        fate = fate_of(moment, lambda: storage.delete_conversation(self.id, user_id=self.owner))
        if fate.died:
            self.held = []
        if (fate.committed or not fate.died) and not gone:
            self.model.delete()
        self.look()


class OperatorsDie(Operators):
    """The next process can go on with the half-done work of a dead one."""

    @precondition(lambda self: not self.down)
    @rule(
        moment=later_moments,
        action=st.sampled_from(
            ["advance", "rollback", "canary", "emergency", "resume", "rehearse"]
        ),
    )
    def a_step_dies(self, moment: Moment, action: str) -> None:
        steps: dict[str, Callable[[], Any]] = {
            "advance": transitions.advance,
            "rollback": transitions.rollback,
            "canary": lambda: transitions.canary(self.percent("in")),
            "emergency": transitions.emergency,
            "resume": transitions.resume,
            "rehearse": transitions.rehearse,
        }
        before = transitions.status()
        try:
            fate = fate_of(moment, steps[action])
        except (TransitionRefused, FenceBusy):
            return
        now = transitions.status()
        assert abs(now.phase - before.phase) <= 1
        if action == "emergency" and not fate.died:
            assert now.emergency
        self.look()

    @precondition(lambda self: not self.down)
    @rule(moment=later_moments, to=st.sampled_from(Target))
    def a_sync_dies(self, moment: Moment, to: Target) -> None:
        fate_of(moment, lambda: list(sync(to, self.everyone)))
        self.look()

    @precondition(lambda self: not self.down)
    @rule(moment=later_moments, to=st.sampled_from(Target))
    def a_worker_dies(self, moment: Moment, to: Target) -> None:
        """Another one goes on with its batch, and the run ends."""
        fate_of(moment, lambda: self.runs.update({to: runs.begin(to)}))
        run = self.runs[to] = runs.begin(to)
        if runs.progress(run).state == "paused":
            runs.resume(run)
        fate_of(moment, lambda: list(runs.work(run)))
        list(runs.work(run))
        assert runs.progress(run).state == "finished"
        self.finished(run)
        self.look()
