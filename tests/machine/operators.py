"""Operators: the rollout's steps, its canary, the sync both ways and the verification."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar
from unittest import mock

from django.db import Error
from django.utils import timezone
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from conversations import storage
from conversations.exceptions import StorageUnavailable, SyncRefused
from conversations.models import LEGACY_BEHIND, ConversationState, SyncBatch, SyncRun
from conversations.rollout.overtaken import prune_overtaken
from conversations.rollout.runs import records, working
from conversations.rollout.sync import Action, Target, runs, sync
from conversations.rollout.verification import MISMATCHES, Kind, verify
from conversations.state import AgentState
from flags import transitions
from flags.exceptions import FenceBusy, TransitionRefused
from flags.gates import Step, guarding
from flags.phases import EMERGENCY, EVERYTHING, PLANS, Phase, Plan, lowered
from flags.sampling import share_of
from flags.switches import current_plan
from tests.faults.injection import failing, touches_legacy
from tests.machine.environment import DOWN, Environment, alive, message, text_of
from tests.machine.interleaving import interleaved
from tests.support.rollout import prepare

Made = TypeVar("Made")
BYSTANDERS = 2
targets = st.sampled_from(Target)
# Shares of the conversations by what they mean for ours.
shares = st.sampled_from(["all", "in", "out", "none"])
# One statement of one leg that fails, None for no failure.
failures = st.none() | st.tuples(st.sampled_from(["legacy", "tables"]), st.integers(0, 12))


def writes_legacy(sql: str) -> bool:
    return touches_legacy(sql) and not sql.startswith("SELECT")


class Operators(Environment):
    """Those who move the rollout. Beside our conversation stand a few that stay untouched."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: dict[Target, int] = {}
        self.asleep: list[tuple[int, int]] = []
        self.bystanders = [f"bystander {number}" for number in range(BYSTANDERS)]
        # A batch is one conversation, and is another worker's as soon as that looks for one.
        for module, name, value in (
            (records, "FIRST_BATCH", 1),
            (working, "ABANDONED", timedelta(0)),
            (working, "TRIES", 3),
        ):
            self.stack.enter_context(mock.patch.object(module, name, value))

    def prepare(self) -> None:
        for name in self.bystanders:
            state = AgentState(conversation_history=[message(f"of {name}")])
            self.old.write(name, state.to_dict())

    def look_around(self) -> None:
        for name in self.bystanders:
            shown = storage.load_state(name).conversation_history
            assert [text_of(entry) for entry in shown] == [f"of {name}"]

    # Steps

    @rule(waived=st.booleans(), share=shares)
    def advance(self, waived: bool, share: str) -> None:
        now = transitions.status()
        targets = [Phase(min(now.phase + 1, max(Phase)))]
        waive = self.waivers(now.phase, targets) if waived else None
        if not waived:
            self.asked(prepare)
        percent = self.percent(share)
        made = self.asked(lambda: transitions.advance(waive=waive, percent=percent))
        if made is not None:
            self.acknowledged_step(made, made.target, percent)

    @rule(steps=st.integers(1, 4), waived=st.booleans())
    def roll_back(self, steps: int, waived: bool) -> None:
        """Go back by several steps, of which some may be made before one is refused."""
        now = transitions.status()
        to = Phase(max(now.phase - steps, 0))
        path = [Phase(phase) for phase in range(now.phase - 1, to - 1, -1)]
        waive = self.waivers(now.phase, path) if waived else None
        made = self.asked(lambda: transitions.rollback(to, waive=waive))
        if made is not None:
            assert [one.target for one in made] == path
            self.acknowledged_step(made[-1], to, EVERYTHING)
        else:
            assert to <= transitions.status().phase <= now.phase

    @rule(share=shares)
    def canary(self, share: str) -> None:
        percent = self.percent(share)
        made = self.asked(lambda: transitions.canary(percent))
        if made is not None:
            assert made.canary == percent
            self.acknowledged_step(made, made.target, percent)

    @rule()
    def emergency(self) -> None:
        with self.faults():
            now = transitions.emergency()
        assert now is not None
        assert now.emergency
        assert transitions.status().emergency
        assert current_plan(self.id) == EMERGENCY

    @rule(waived=st.booleans())
    def resume(self, waived: bool) -> None:
        phase = transitions.status().phase
        waive = self.waivers(phase, [phase]) if waived else None
        now = self.asked(lambda: transitions.resume(waive=waive))
        if now is not None:
            assert not now.emergency
            assert not transitions.status().emergency

    @rule(waived=st.booleans())
    def rehearse(self, waived: bool) -> None:
        before = transitions.status()
        ahead = Phase(min(before.phase + 1, max(Phase)))
        back = [Phase(phase) for phase in range(ahead - 1, -1, -1)]
        waive = self.waivers(ahead, back, rehearsed=True) if waived else None
        made = self.asked(lambda: transitions.rehearse(waive=waive))
        now = transitions.status()
        assert (now.phase, now.switches, now.canary) == (
            before.phase,
            before.switches,
            before.canary,
        )
        assert now.last == (before.last if made is None else made)

    @alive
    @rule(forwards=st.booleans())
    def step_beside_a_writer(self, forwards: bool) -> None:
        """A step is asked for in the middle of a write that legacy does not take."""
        text = next(self.texts)
        storage.load_state(self.id, user_id=self.owner)

        def write() -> Any:
            try:
                with failing(writes_legacy):
                    return storage.append_messages(self.id, [message(text)], user_id=self.owner)
            except StorageUnavailable:
                return None

        def step() -> Any:
            if forwards:
                return self.asked(transitions.advance)
            made = self.asked(transitions.rollback)
            return made[-1] if made else None

        result, made = interleaved(write, step)
        if result is not None:
            self.model.append([text])
            self.settle({text}, in_tables="tables" in result["stores"])
        if made is not None:
            self.gates_said_the_truth(made)

    def asked(self, make: Callable[[], Made]) -> Made | None:
        """Ask for a step. Returns: what was made, None when it was refused."""
        try:
            with self.faults():
                return make()
        except (TransitionRefused, FenceBusy):
            return None

    def acknowledged_step(self, made: Any, target: Phase, percent: float) -> None:
        """The status shows the step that was made, and so does every operation."""
        now = transitions.status()
        assert (now.phase, now.canary, now.last) == (target, percent, made)
        # Switches that spell no phase act as one; a canary leaves them as they are.
        assert replace(current_plan(self.id), mixed=False) == self.plan_of(now)
        self.gates_said_the_truth(made)

    def plan_of(self, now: transitions.Status) -> Plan:
        if now.emergency:
            return EMERGENCY
        plan = PLANS[now.phase]
        return plan if share_of(self.id) * EVERYTHING < now.canary else lowered(plan)

    def gates_said_the_truth(self, made: Any) -> None:
        """What a gate found holds in the moment of the step: nothing was in flight then."""
        passed = {gate["gate"] for gate in made.gates if gate["passed"]}
        if "verified" in passed:
            assert all(found.in_order for found in verify())
        if "legacy_current" in passed:
            assert not ConversationState.rows.filter(LEGACY_BEHIND).exists(), "a gate lied"

    def waivers(
        self, source: Phase, targets: Sequence[Phase], *, rehearsed: bool = False
    ) -> dict[str, str]:
        """Waive every gate on the way: what is lost by none of them can be waived."""
        now = timezone.now()
        pairs = itertools.pairwise([source, *targets])
        steps = [Step(one, other, now, now, rehearsed=rehearsed) for one, other in pairs]
        return {gate.name: "to see" for step in steps for gate in guarding(step)}

    def percent(self, share: str) -> float:
        """Return a share that holds our conversation, or all but it and those above."""
        tenths = math.floor(share_of(self.id) * 1000)
        return {"all": EVERYTHING, "none": 0.0, "in": (tenths + 1) / 10, "out": tenths / 10}[share]

    # Sync and verification

    @property
    def everyone(self) -> list[str]:
        return [self.id, *self.bystanders]

    @rule(to=targets, failure=failures)
    def sync_all(self, to: Target, failure: tuple[str, int] | None) -> None:
        leg, nth = failure or ("legacy", 0)
        broken = failing(DOWN[leg], after=nth, times=1) if failure else nullcontext([])
        with self.faults(), broken as failed:
            done = {one.conversation_id: one for one in sync(to, self.everyone)}
        if self.down or failed:
            return
        known = self.everyone if self.exists else self.bystanders
        assert all(done[name].action != Action.FAILED for name in known), done
        self.look()
        if to == Target.TABLES:
            # Of what was deleted nothing may be left, which is nothing to verify.
            found = [one for one in verify(known) if one.kinds != (Kind.UNKNOWN,)]
            assert all(one.in_order for one in found), found

    @rule(keep=st.integers(1, 3), dry_run=st.booleans())
    def prune_blobs(self, keep: int, dry_run: bool) -> None:
        """What later blobs have overtaken goes; what old code reads stays as it is."""
        if transitions.status().retired:
            return
        names = [name for name in self.everyone if self.exists or name != self.id]
        before = [self.old.read(name) for name in names]
        try:
            with self.faults():
                done = list(prune_overtaken(keep=keep, dry_run=dry_run))
        except Error:
            assert self.down
        else:
            assert self.down or not [one for one in done if one.reason], done
        assert [self.old.read(name) for name in names] == before

    @rule()
    def verify(self) -> None:
        """A store that does not answer is no mismatch, and neither is what lies in legacy yet."""
        with self.faults():
            found = list(verify(self.everyone))
        for one in found:
            wrong = MISMATCHES.intersection(one.kinds)
            rows = ConversationState.rows.filter(conversation_id=one.conversation_id)
            if wrong == {Kind.MISSING_IN_TABLES}:
                assert not rows.exists()
            else:
                assert not wrong, one
            assert self.down or Kind.FAILED not in one.kinds

    @rule(to=targets)
    def begin_run(self, to: Target) -> None:
        try:
            with self.faults():
                self.runs[to] = runs.begin(to)
        except Error:
            assert self.down

    @rule(to=targets, batches=st.integers(1, 4), failure=failures)
    def work(self, to: Target, batches: int, failure: tuple[str, int] | None) -> None:
        """Let a worker do a few batches of a run, perhaps while one statement fails."""
        run = self.run(to)
        leg, nth = failure or ("legacy", 0)
        broken = failing(DOWN[leg], after=nth, times=1) if failure else nullcontext([])
        tries = itertools.count(1)
        try:
            with self.faults(), broken as failed:
                list(runs.work(run, until=lambda: next(tries) > batches))
        except Error:
            assert self.down or failed
        self.finished(run)

    def finished(self, run: int) -> None:
        """A run that is done has been everywhere that there was when it began."""
        progress = runs.progress(run)
        if (progress.target, progress.state) == (Target.TABLES, "finished") and not progress.failed:
            assert not progress.open_batches
            rows = ConversationState.rows.filter(conversation_id__in=self.bystanders)
            assert rows.count() == len(self.bystanders)

    def run(self, to: Target) -> int:
        """Return the run that was begun, begun with both stores up if there was none."""
        if to not in self.runs:
            self.runs[to] = runs.begin(to)
        return self.runs[to]

    @precondition(lambda self: self.runs)
    @rule(to=targets, change=st.sampled_from(["pause", "resume", "cancel"]))
    def change_run(self, to: Target, change: str) -> None:
        if to not in self.runs:
            return
        before = runs.progress(self.runs[to]).state
        allowed = {"pause": ["running"], "resume": ["paused"], "cancel": ["running", "paused"]}
        after = {"pause": "paused", "resume": "running", "cancel": "cancelled"}[change]
        try:
            getattr(runs, change)(self.runs[to])
        except SyncRefused:
            assert before not in allowed[change]
            after = before
        else:
            assert before in allowed[change]
        assert runs.progress(self.runs[to]).state == after

    def take(self, to: Target) -> tuple[int, int] | None:
        return working.take(self.run(to), runs._task_of)

    @precondition(lambda self: not self.down)
    @rule(to=targets)
    def fall_asleep(self, to: Target) -> None:
        """A worker takes a batch, and is stopped before it begins."""
        taken = self.take(to)
        if taken is not None:
            self.asleep.append(taken)

    @precondition(lambda self: not self.down)
    @rule(to=targets)
    def wake_up_beside_another(self, to: Target) -> None:
        """A worker takes a batch and is stopped, and another takes it over before it goes on."""
        first, second = self.take(to), self.take(to)
        if first is not None and second is not None:
            assert first[0] == second[0]
            assert working.walk_over(*first, runs._task_of) is None, (
                "a zombie carried over what is another's"
            )
            assert working.walk_over(*second, runs._task_of) is not None

    @precondition(lambda self: self.asleep)
    @rule()
    def wake_up(self) -> None:
        """It goes on with what may be another's, or done, by now: then it does nothing."""
        batch, generation = self.asleep.pop(0)
        before = SyncBatch.rows.filter(pk=batch).values().get()
        ours = (before["generation"], before["finished_at"]) == (generation, None)
        done = None
        try:
            with self.faults():
                done = working.walk_over(batch, generation, runs._task_of)
        except Error:
            # The worker ends, and what it held is another's to take.
            assert self.down
        if not ours:
            assert done is None, "a zombie carried over what is another's"
            assert SyncBatch.rows.filter(pk=batch).values().get() == before

    @rule()
    def forget_runs(self) -> None:
        """The next run is a new one."""
        for run in SyncRun.rows.filter(state__in=["running", "paused"]).values_list(
            "pk", flat=True
        ):
            runs.cancel(run)
        self.runs.clear()
