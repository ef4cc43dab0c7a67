"""What every machine has: the conversation, the switches, stores that are down, and the model."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any
from unittest import mock

from django.apps import apps
from django.conf import settings
from django.db import connection, transaction
from django.test import override_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from waffle import get_waffle_switch_model

from conversations import storage
from conversations.exceptions import StorageUnavailable
from conversations.models import ConversationState
from flags import switches
from flags.conf import default_switches
from flags.phases import ROUTING, Phase, Switch, switches_for
from flags.switches import Settings, snapshot
from tests.faults.injection import failing, touches_legacy, touches_messages, touches_tables
from tests.machine.model import Model
from tests.machine.oldcode import OldChunks, OldSession
from tests.support.rollout import EASED

Switches = get_waffle_switch_model()
DOWN = {"legacy": touches_legacy, "tables": touches_tables, "messages": touches_messages}
APPS = ("conversations", "memory", "flags", "waffle", "blobs", "hostshapes")
# Both stores answer, and the conversation is there.
alive = precondition(lambda self: not self.down and self.exists and not self.model.deleted)
# Which one of a list, whose length the example does not know.
choices = st.integers(0, 99)
switch_values = st.tuples(*[st.booleans()] * len(ROUTING))


def text_of(message: dict[str, Any]) -> str:
    return str(message["content"])


def message(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def empty_the_tables() -> None:
    """Let nothing of an earlier run be there: gates, syncs and verifications see everything."""
    models = [model for label in APPS for model in apps.get_app_config(label).get_models()]
    with transaction.atomic(), connection.cursor() as cursor:
        for model in models:
            cursor.execute(f"DELETE FROM {connection.ops.quote_name(model._meta.db_table)}")


class Environment(RuleBasedStateMachine):
    """One conversation against the model. Subclasses name the legacy store."""

    old: OldChunks | OldSession

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.stack.enter_context(
            override_settings(
                CONVERSATIONS={
                    "LEGACY": self.old.settings,
                    "SWITCHES": {},
                    **EASED,
                }
            )
        )
        # A process believes what it read last until it hears or looks again, however slow the
        # machine is that this runs on: a run must go the same way each time.
        self.stack.enter_context(mock.patch.object(switches, "SNAPSHOT_SECONDS", 1e6))
        self.id = "ours"
        # The owner of the conversation: the primary key of a user, None without one.
        self.owner: int | None = None
        self.model = Model()
        self.texts = (f"t{number}" for number in itertools.count())
        self.exists = False
        self.down: str | None = None

    def teardown(self) -> None:
        try:
            self.down = None
            # After a failure the model is behind, and would only hide the reason.
            if sys.exc_info()[0] is None:
                self.look()
                self.look_around()
        finally:
            self.stack.close()
            snapshot.forget()

    def look_around(self) -> None:
        """Look at what else must hold at the end of a run."""

    # The environment

    @initialize(phase=st.sampled_from(Phase), keep_blobs=st.none() | st.integers(1, 2))
    def begin(self, phase: Phase, keep_blobs: int | None) -> None:
        empty_the_tables()
        chosen = {**settings.CONVERSATIONS, "KEEP_BLOBS": keep_blobs}
        self.stack.enter_context(override_settings(CONVERSATIONS=chosen))
        for name, active in {**default_switches(), **switches_for(phase)}.items():
            Switches._base_manager.create(name=name, active=active)
        snapshot.forget()
        self.prepare()

    def prepare(self) -> None:
        """Do what a machine needs before the first step."""

    @rule(values=switch_values, behind_our_back=st.booleans())
    def flip(self, values: tuple[bool, ...], behind_our_back: bool) -> None:
        """Set the switches: through waffle, or by an UPDATE that no process notices at once."""
        self.set_switches(dict(zip(ROUTING, values, strict=True)), behind_our_back=behind_our_back)

    @rule(phase=st.sampled_from(Phase))
    def enter(self, phase: Phase) -> None:
        values = {**switches_for(phase), Switch.EMERGENCY_ROLLBACK.value: False}
        self.set_switches(values, behind_our_back=False)

    def set_switches(self, values: Mapping[str, bool], *, behind_our_back: bool) -> None:
        for name, active in values.items():
            rows = Switches._base_manager.filter(name=name)
            if behind_our_back:
                rows.update(active=active)
            else:
                switch = rows.get()
                switch.active = active
                switch.save()
        if not behind_our_back:
            snapshot.clear()

    @rule(values=switch_values, canary=st.sampled_from([0.0, 50.0, 100.0]))
    def go_stale(self, values: tuple[bool, ...], canary: float) -> None:
        """Let this process believe in settings that were changed long ago."""
        believed = {**default_switches(), **dict(zip(ROUTING, values, strict=True))}
        snapshot._known = Settings(believed, canary)
        snapshot._read_at = time.monotonic()

    @rule()
    def notice(self) -> None:
        """Half a second has passed: this process reads the settings again."""
        snapshot.clear()

    @rule(store=st.sampled_from([None, None, None, *DOWN]))
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
        self.settle(touched, in_tables="tables" in result["stores"])

    def refused(self, error: Exception) -> None:
        """A write may be refused only when the conversation or a store is not there."""
        if isinstance(error, StorageUnavailable):
            assert self.down, "a write was refused although both stores are up"
        else:
            assert self.model.deleted or not self.exists or self.down

    @precondition(lambda self: not self.down and self.exists)
    @rule()
    def look(self) -> None:
        """Both stores up: a load shows exactly what the model says."""
        if self.down or not self.exists:
            return
        state = storage.load_state(self.id, user_id=self.owner)
        shown = [text_of(entry) for entry in state.conversation_history]
        info = state.load_info
        assert info is None or not info.stale
        if self.model.deleted:
            assert not shown
            return
        self.model.check(shown)
        self.model.seen(shown)
        self.settle(set(), in_tables=False)
