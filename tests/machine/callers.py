"""Callers: every operation on a conversation, alone, beside another writer, or half failing."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from conversations import storage
from conversations.exceptions import ConversationNotFound, StorageUnavailable
from flags.switches import snapshot
from tests.faults.injection import failing
from tests.machine.environment import DOWN, Environment, alive, choices, message, text_of
from tests.machine.interleaving import interleaved

# What is deleted stays so: a run that began with it would say little else.
deletable = precondition(lambda self: self.exists and len(self.model.known) > 5)


@dataclass
class Held:
    """A state that a caller loaded and still holds."""

    state: Any
    given: list[str]

    def __repr__(self) -> str:
        return f"Held({self.given})"


@dataclass(frozen=True)
class Change:
    """What a caller changed in a state: texts by the text before, texts removed, texts added."""

    edited: dict[str, str]
    removed: list[str]
    appended: list[str]


class Callers(Environment):
    """Those who write and read through us."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Held] = []

    @rule(window=st.none() | st.integers(1, 4))
    def load(self, window: int | None) -> None:
        try:
            with self.faults():
                state = storage.load_state(self.id, max_messages=window, user_id=self.owner)
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

    @precondition(lambda self: self.held)
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
        held = self.held[chosen % len(self.held)]
        change = self.change(held.state, added, edit, drop)
        before = pickle.dumps(held.state)
        if not self._save(held.state, change):
            held.state = pickle.loads(before)
            self.held.remove(held)
            return
        held.given = [text_of(entry) for entry in held.state.conversation_history]
        if repeat and not self.down:
            # The reply was lost: the same state is saved again.
            storage.save_state(self.id, pickle.loads(before), user_id=self.owner)
            self.load(None)

    def change(self, state: Any, added: int, edit: int | None, drop: int | None) -> Change:
        """Change a loaded state as a caller does."""
        messages = list(state.conversation_history)
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
        state.conversation_history = [*messages, *map(message, appended)]
        return Change(edited, removed, appended)

    def _save(self, state: Any, change: Change) -> bool:
        try:
            with self.faults():
                result = storage.save_state(self.id, state, user_id=self.owner)
        except (StorageUnavailable, ConversationNotFound) as error:
            self.refused(error)
            return False
        assert result["committed"]
        if self.model.deleted:
            # Only while the tombstone cannot be read.
            assert self.down == "tables"
            return False
        self.apply(change, blind=result["revision"] == 0 and self.exists)
        return True

    def apply(self, change: Change, *, blind: bool = False) -> None:
        """Tell the model of a change that is in a store now."""
        touched = {*change.edited.values(), *change.removed, *change.appended}
        in_legacy = self._legacy_decides()
        for given, text in change.edited.items():
            slot = self.model.slot_of(given)
            conflict = slot.text != given
            earlier = slot.text
            self.model.edit(given, text)
            if (conflict and in_legacy) or blind:
                self.model.unsure |= {given, *([earlier] if earlier else [])}
        for given in change.removed:
            slot = self.model.slot_of(given)
            if slot.text != given and in_legacy:
                self.model.unsure |= {*slot.texts}
            self.model.remove(given)
            if blind:
                self.model.unsure.add(given)
        self.model.append(change.appended)
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
                result = storage.append_messages(
                    self.id, [*map(message, texts)], user_id=self.owner, **arguments
                )
        except (StorageUnavailable, ConversationNotFound) as error:
            self.refused(error)
            return
        if self.model.deleted:
            assert self.down == "tables"
            return
        self.model.append(texts)
        self.acknowledged(result, set(texts))
        if repeat and keyed and not self.down:
            storage.append_messages(
                self.id, [*map(message, texts)], user_id=self.owner, **arguments
            )
            self.load(None)

    @rule(step_count=st.integers(0, 99), with_message=st.booleans())
    def update(self, step_count: int, with_message: bool) -> None:
        texts = [next(self.texts)] if with_message else []
        updates = {"step_count": step_count, "new_messages": [*map(message, texts)]}
        try:
            with self.faults():
                result = storage.update_state_partial(self.id, updates, user_id=self.owner)
        except (StorageUnavailable, ConversationNotFound) as error:
            self.refused(error)
            return
        if self.model.deleted:
            assert self.down == "tables"
            return
        self.model.append(texts)
        self.acknowledged(result, set(texts))
        if not self.down:
            assert storage.load_state(self.id, user_id=self.owner).step_count == step_count

    @alive
    @rule(choice=choices, drop=st.booleans())
    def change_one(self, choice: int, drop: bool) -> None:
        """Replace or remove one message by its sequence."""
        page = list(storage.list_messages(self.id, limit=50, user_id=self.owner))
        self.model.check([text_of(entry.message) for entry in page])
        self.model.seen([text_of(entry.message) for entry in page])
        if not page:
            return
        chosen = page[choice % len(page)]
        given = text_of(chosen.message)
        if drop:
            removed = storage.remove_messages(self.id, [chosen.sequence], user_id=self.owner)
            assert removed == [chosen.message]
            self.model.remove(given)
        else:
            new = next(self.texts)
            storage.replace_message(self.id, chosen.sequence, message(new), user_id=self.owner)
            self.model.edit(given, new)
        self.settle(set(), in_tables=True)

    @alive
    @rule(leg=st.sampled_from(["legacy", "messages"]), nth=st.integers(0, 6))
    def append_with_a_failing_leg(self, leg: str, nth: int) -> None:
        """One statement of one leg fails: in a phase with two legs the save still succeeds."""
        storage.load_state(self.id, user_id=self.owner)
        row = self.row()
        plan = snapshot.settings().plan_for(self.id)
        text = next(self.texts)
        try:
            with failing(DOWN[leg], after=nth, times=1) as failed:
                result = storage.append_messages(self.id, [message(text)], user_id=self.owner)
        except StorageUnavailable:
            assert failed
            both = row is not None and row.revision == row.legacy_revision
            two_legs = plan.writes_legacy and plan.writes_normalized
            assert not (both and two_legs), "one failing leg failed the save"
            return
        self.model.append([text])
        self.acknowledged(result, {text})

    @deletable
    @rule()
    def delete(self) -> None:
        try:
            with self.faults():
                gone = storage.delete_conversation(self.id, user_id=self.owner)
        except StorageUnavailable:
            assert self.down
            return
        assert gone is not self.model.deleted
        self.model.delete()

    @alive
    @rule(added=st.integers(1, 2))
    def append_beside_another_writer(self, added: int) -> None:
        """Two writers at once: see `interleaved`."""
        texts = [next(self.texts) for _ in range(added)]
        other = next(self.texts)
        storage.load_state(self.id, user_id=self.owner)
        results = interleaved(
            lambda: storage.append_messages(self.id, [*map(message, texts)], user_id=self.owner),
            lambda: storage.append_messages(self.id, [message(other)], user_id=self.owner),
        )
        self.model.append([*texts, other])
        in_tables = all("tables" in result["stores"] for result in results)
        self.settle({*texts, other}, in_tables=in_tables)
