"""Every operation, in every phase, with switches that flip, faults, and old code at work."""

from __future__ import annotations

import itertools
import pickle
import sys
import time
import uuid
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

from django.test import override_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from waffle import get_waffle_switch_model

from conversations import storage
from conversations.exceptions import (
    ConversationNotFound,
    StorageUnavailable,
)
from conversations.models import ConversationMessage, ConversationState
from conversations.state import AgentState
from flags.phases import ROUTING, Phase, switches_for
from flags.switches import Settings, snapshot
from tests.faults.injection import failing, touches_legacy, touches_messages, touches_tables
from tests.machine.interleaving import interleaved
from tests.machine.model import Model
from tests.machine.oldcode import OldChunks, OldSession

Switches = get_waffle_switch_model()
DOWN = {"legacy": touches_legacy, "tables": touches_tables, "messages": touches_messages}
# Which one of a list, whose length the example does not know.
choices = st.integers(0, 99)
switch_values = st.tuples(*[st.booleans()] * len(ROUTING))


@dataclass
class Held:
    """A state that somebody loaded and has not given up."""

    state: Any
    given: list[str]

    def __repr__(self) -> str:
        return f"Held({self.given})"


def text_of(message: dict[str, Any]) -> str:
    return str(message["content"])


def message(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


class Rollout(RuleBasedStateMachine):
    """One conversation against the model. Subclasses name the legacy store."""

    old: OldChunks | OldSession

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.stack.enter_context(
            override_settings(CONVERSATIONS={"LEGACY": self.old.settings, "SWITCHES": {}})
        )
        self.id = str(uuid.uuid4())
        self.model = Model()
        self.held: list[Held] = []
        self.read_by_old: list[dict[str, Any]] = []
        self.texts = (f"t{number}" for number in itertools.count())
        self.exists = False
        self.down: str | None = None

    def teardown(self) -> None:
        try:
            self.down = None
            # After a failure the model is behind, and would only hide the reason.
            if sys.exc_info()[0] is None:
                self.look()
        finally:
            self.stack.close()
            snapshot.clear()

    # The environment

    @initialize(phase=st.sampled_from(Phase))
    def begin(self, phase: Phase) -> None:
        for name, active in switches_for(phase).items():
            Switches._base_manager.update_or_create(name=name, defaults={"active": active})
        snapshot.clear()

    @rule(values=switch_values, behind_our_back=st.booleans())
    def flip(self, values: tuple[bool, ...], behind_our_back: bool) -> None:
        """Set the switches: through waffle, or by an UPDATE that no process notices at once."""
        for name, active in zip(ROUTING, values, strict=True):
            rows = Switches._base_manager.filter(name=name)
            if behind_our_back:
                rows.update(active=active)
            else:
                switch = rows.get()
                switch.active = active
                switch.save()
        if not behind_our_back:
            snapshot.clear()

    @rule(phase=st.sampled_from(Phase))
    def enter(self, phase: Phase) -> None:
        self.flip(tuple(switches_for(phase).values()), behind_our_back=False)

    @rule(values=switch_values)
    def go_stale(self, values: tuple[bool, ...]) -> None:
        """Let this process believe in switches that were flipped long ago."""
        snapshot._known = Settings(dict(zip(ROUTING, values, strict=True)))
        snapshot._read_at = time.monotonic()

    @rule(store=st.sampled_from([None, None, *DOWN]))
    def take_down(self, store: str | None) -> None:
        """Take one store down, or bring everything back."""
        self.down = store

    def faults(self) -> AbstractContextManager[Any]:
        return failing(DOWN[self.down]) if self.down else nullcontext()

    # Knowing where things are

    def row(self) -> ConversationState | None:
        return ConversationState.rows.filter(conversation_id=self.id).first()

    def settle(self, touched: set[str], *, in_tables: bool) -> None:
        """Tell the model where what was acknowledged is."""
        row = self.row()
        if in_tables or (row is not None and row.revision >= row.legacy_revision):
            # While a store is down, what old code wrote meanwhile has not been merged.
            self.model.safe(touched if self.down else None)
        else:
            self.model.legacy_only(touched if row is not None else set(self.model.known))

    def acknowledged(self, result: Any, touched: set[str]) -> None:
        self.exists = True
        self.settle(touched, in_tables="normalized" in result["stores"])

    def refused(self, error: Exception) -> None:
        """A write may be refused only when the conversation or a store is not there."""
        if isinstance(error, StorageUnavailable):
            assert self.down, "a write was refused although both stores are up"
        else:
            assert self.model.deleted or not self.exists or self.down

    # Callers

    @rule(window=st.none() | st.integers(1, 4))
    def load(self, window: int | None) -> None:
        try:
            with self.faults():
                state = storage.load_state(self.id, max_messages=window)
        except StorageUnavailable:
            assert self.down
            return
        shown = [text_of(entry) for entry in state.conversation_history]
        info = state.load_info
        if info is not None and info.stale:
            assert self.down
        else:
            self.model.check(shown, window=window)
            if window is None or not info or not info.hidden_messages:
                self.model.seen(shown)
        self.settle(set(), in_tables=False)
        self.held = [*self.held[-3:], Held(state, shown)]

    @rule(
        chosen=choices,
        added=st.integers(0, 3),
        edit=st.none() | choices,
        drop=st.none() | choices,
        repeat=st.booleans(),
    )
    def save(
        self, chosen: int, added: int, edit: int | None, drop: int | None, repeat: bool
    ) -> None:
        """Change a state that was loaded some time ago, and save it; perhaps twice."""
        if not self.held:
            return
        held = self.held[chosen % len(self.held)]
        messages = list(held.state.conversation_history)
        if drop is not None and messages:
            # A list does not tell "removed, and another added there" from "edited": what is
            # asked here has one reading only.
            edit = None
            added = 0 if drop % len(messages) == len(messages) - 1 else added
        edited: dict[str, str] = {}
        removed: list[str] = []
        if drop is not None and messages:
            removed.append(text_of(messages.pop(drop % len(messages))))
        if edit is not None and messages:
            place = edit % len(messages)
            new = next(self.texts)
            edited[text_of(messages[place])] = new
            messages[place] = message(new)
        appended = [next(self.texts) for _ in range(added)]
        held.state.conversation_history = [*messages, *map(message, appended)]
        before = pickle.dumps(held.state)
        if not self._save(held.state, edited, removed, appended):
            held.state = pickle.loads(before)
            self.held.remove(held)
            return
        held.given = [text_of(entry) for entry in held.state.conversation_history]
        if repeat and not self.down:
            # The reply was lost: the same state is saved again.
            storage.save_state(self.id, pickle.loads(before))
            self.load(None)

    def _save(
        self, state: Any, edited: dict[str, str], removed: list[str], appended: list[str]
    ) -> bool:
        try:
            with self.faults():
                result = storage.save_state(self.id, state)
        except (StorageUnavailable, ConversationNotFound) as error:
            self.refused(error)
            return False
        assert result["committed"]
        if self.model.deleted:
            # Only while the tombstone cannot be read.
            assert self.down == "tables"
            return False
        self._apply(edited, removed, appended, blind=result["revision"] == 0 and self.exists)
        return True

    def _apply(
        self, edited: dict[str, str], removed: list[str], appended: list[str], *, blind: bool
    ) -> None:
        touched = {*edited.values(), *removed, *appended}
        in_legacy = self._legacy_decides()
        for given, text in edited.items():
            slot = self.model.slot_of(given)
            conflict = slot.text != given
            earlier = slot.text
            self.model.edit(given, text)
            if (conflict and in_legacy) or blind:
                self.model.unsure |= {given, *([earlier] if earlier else [])}
        for given in removed:
            slot = self.model.slot_of(given)
            if slot.text != given and in_legacy:
                self.model.unsure |= {*slot.texts}
            self.model.remove(given)
            if blind:
                self.model.unsure.add(given)
        self.model.append(appended)
        row = self.row()
        self.exists = True
        self.settle(touched, in_tables=row is not None and row.revision >= row.legacy_revision)

    def _legacy_decides(self) -> bool:
        """Whether messages have no identity where this save went, and are found by content."""
        row = self.row()
        return row is None or row.legacy_revision > row.revision

    @rule(added=st.integers(1, 3), keyed=st.booleans(), repeat=st.booleans())
    def append(self, added: int, keyed: bool, repeat: bool) -> None:
        texts = [next(self.texts) for _ in range(added)]
        keys = [f"key {text}" for text in texts] if keyed else None
        arguments: dict[str, Any] = {"keys": keys, "create": not self.exists}
        try:
            with self.faults():
                result = storage.append_messages(self.id, [*map(message, texts)], **arguments)
        except (StorageUnavailable, ConversationNotFound) as error:
            self.refused(error)
            return
        if self.model.deleted:
            assert self.down == "tables"
            return
        self.model.append(texts)
        self.acknowledged(result, set(texts))
        if repeat and keyed and not self.down:
            storage.append_messages(self.id, [*map(message, texts)], **arguments)
            self.load(None)

    @rule(step_count=st.integers(0, 99), with_message=st.booleans())
    def update(self, step_count: int, with_message: bool) -> None:
        texts = [next(self.texts)] if with_message else []
        updates = {"step_count": step_count, "new_messages": [*map(message, texts)]}
        try:
            with self.faults():
                result = storage.update_state_partial(self.id, updates)
        except (StorageUnavailable, ConversationNotFound) as error:
            self.refused(error)
            return
        if self.model.deleted:
            assert self.down == "tables"
            return
        self.model.append(texts)
        self.acknowledged(result, set(texts))
        if not self.down:
            assert storage.load_state(self.id).step_count == step_count

    @rule(choice=choices, drop=st.booleans())
    def change_one(self, choice: int, drop: bool) -> None:
        """Replace or remove one message by its sequence."""
        if self.down or not self.exists or self.model.deleted:
            return
        page = list(storage.list_messages(self.id, limit=50))
        self.model.check([text_of(entry.message) for entry in page])
        self.model.seen([text_of(entry.message) for entry in page])
        if not page:
            return
        chosen = page[choice % len(page)]
        given = text_of(chosen.message)
        if drop:
            removed = storage.remove_messages(self.id, [chosen.sequence])
            assert removed == [chosen.message]
            self.model.remove(given)
        else:
            new = next(self.texts)
            storage.replace_message(self.id, chosen.sequence, message(new))
            self.model.edit(given, new)
        self.settle(set(), in_tables=True)

    @rule(leg=st.sampled_from(["legacy", "messages"]), nth=st.integers(0, 6))
    def append_with_a_failing_leg(self, leg: str, nth: int) -> None:
        """One statement of one leg fails: in a phase with two legs the save still succeeds."""
        if self.down or not self.exists or self.model.deleted:
            return
        storage.load_state(self.id)
        row = self.row()
        plan = snapshot.settings().plan
        text = next(self.texts)
        try:
            with failing(DOWN[leg], after=nth, times=1) as failed:
                result = storage.append_messages(self.id, [message(text)])
        except StorageUnavailable:
            assert failed
            both = row is not None and row.revision == row.legacy_revision
            two_legs = plan.writes_legacy and plan.writes_normalized
            assert not (both and two_legs), "one failing leg failed the save"
            return
        self.model.append([text])
        self.acknowledged(result, {text})

    @rule()
    def delete(self) -> None:
        if not self.exists or len(self.model.known) < 6:
            return
        try:
            with self.faults():
                gone = storage.delete_conversation(self.id)
        except StorageUnavailable:
            assert self.down
            return
        assert gone is not self.model.deleted
        self.model.delete()

    @rule(added=st.integers(1, 2))
    def append_beside_another_writer(self, added: int) -> None:
        """Two writers at once: see `interleaved`."""
        if self.down or not self.exists or self.model.deleted:
            return
        texts = [next(self.texts) for _ in range(added)]
        other = next(self.texts)
        storage.load_state(self.id)
        results = interleaved(
            lambda: storage.append_messages(self.id, [*map(message, texts)]),
            lambda: storage.append_messages(self.id, [message(other)]),
        )
        self.model.append([*texts, other])
        in_tables = all("normalized" in result["stores"] for result in results)
        self.settle({*texts, other}, in_tables=in_tables)

    # Old code

    @rule()
    def old_read(self) -> None:
        state = self.old.read(self.id)
        if state is not None:
            self.read_by_old = [*self.read_by_old[-2:], state]

    @rule(chosen=choices, added=st.integers(0, 2), keep=st.integers(1, 30))
    def old_write(self, chosen: int, added: int, keep: int) -> None:
        """Old code adds to what it read, perhaps long ago, prunes it, and writes it."""
        if self.read_by_old:
            state = dict(self.read_by_old[chosen % len(self.read_by_old)])
        elif not self.exists:
            state = AgentState().to_dict()
        else:
            return
        texts = [next(self.texts) for _ in range(added)]
        history = [*state["conversation_history"], *map(message, texts)][-keep:]
        texts = [text for text in texts if message(text) in history]
        state["conversation_history"] = history
        state["step_count"] = state.get("step_count", 0) + 1
        row = self.row()
        self.old.write(self.id, state)
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

    @rule()
    def look(self) -> None:
        """Both stores up: a load shows exactly what the model says."""
        if self.down or not self.exists:
            return
        state = storage.load_state(self.id)
        shown = [text_of(entry) for entry in state.conversation_history]
        info = state.load_info
        assert info is None or not info.stale
        if self.model.deleted:
            assert not shown
            return
        self.model.check(shown)
        self.model.seen(shown)
        self.settle(set(), in_tables=False)
