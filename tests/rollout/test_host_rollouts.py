"""Each usual shape of a host's chats goes from `migrate` to retirement, and all the way back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from waffle import get_waffle_switch_model

from conversations import storage
from conversations.models import ConversationState
from conversations.rollout import retirement
from conversations.rollout.findings import findings
from conversations.rollout.verification import verify
from conversations.storage import ANY_OWNER
from flags import transitions
from flags.phases import Phase
from flags.switches import snapshot
from tests.commands.test_conversations import run
from tests.support.factories import UserFactory, messages, texts
from tests.support.hostshapes.shapes import SHAPES, Shape
from tests.support.rollout import EASED, step_forward

pytestmark = pytest.mark.django_db(transaction=True)

GATES = EASED | {"FOREIGN_QUIET": timedelta(hours=24), "RETIRE_AFTER": timedelta(0)}


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest, settings: Any) -> Iterator[Shape]:
    found = SHAPES[request.param]
    settings.CONVERSATIONS = {"LEGACY": found.mapping, **GATES}
    get_waffle_switch_model()._base_manager.all().delete()
    snapshot.forget()
    call_command("migrate", verbosity=0)
    snapshot.forget()
    yield found
    snapshot.forget()


def synced() -> None:
    assert run("sync", "--to", "tables")[0] == 0
    assert run("verify")[0] == 0
    assert not [one for one in verify() if not one.in_order]


def test_a_rollout_there_and_back_loses_nothing(shape: Shape) -> None:
    """Ours and old code write by turns, in every phase in which both may."""
    users = [UserFactory() for _ in range(4)]
    names = [shape.make(user, "old") for user in users]
    quiet, both, ours, late = names
    owners = dict(zip(names, users if shape.owned else [ANY_OWNER] * 4, strict=True))
    said = {name: ["old"] for name in names}

    def add(name: str, text: str) -> None:
        loaded = storage.load_state(name, user_id=owners[name])
        assert texts(loaded) == said[name]
        loaded.conversation_history += messages(text)
        said[name].append(text)
        storage.save_state(name, loaded, owners[name])

    def old_adds(name: str, text: str) -> None:
        said[name].append(text)
        shape.write(name, *said[name])

    def all_there(*, in_legacy: bool = True) -> None:
        for name in names:
            assert texts(storage.load_state(name, user_id=owners[name])) == said[name]
            if in_legacy:
                assert shape.read(name) == said[name]

    assert not [m for m in run_checks(tags=["conversations"]) if m.is_serious()]
    assert transitions.status().phase == Phase.LEGACY
    raw = shape.raw(both)
    add(both, "ours in legacy")
    changed = shape.raw(both)
    if isinstance(raw, dict):
        assert {k: v for k, v in changed.items() if raw[k] != v}.keys() <= {
            "conversation_history",
            "messages",
        }
    old_adds(both, "old in legacy")
    all_there()

    step_forward()
    add(ours, "ours in dual_write")
    add(both, "ours again")
    synced()
    assert findings().foreign_writes == 0
    all_there()
    step_forward()
    assert transitions.status().phase == Phase.NEW_READS
    old_adds(late, "old in new_reads")
    add(ours, "ours in new_reads")
    all_there()
    assert findings().foreign_writes == 1
    step_forward()
    add(both, "ours in new_primary")
    synced()
    step_forward()
    assert transitions.status().phase == Phase.NEW_ONLY
    add(ours, "ours in new_only")
    all_there(in_legacy=False)

    # All the way back: old code reads everything.
    transitions.rollback()
    assert run("sync", "--to", "legacy")[0] == 0
    transitions.rollback(Phase.LEGACY)
    all_there()
    add(both, "ours back in legacy")
    old_adds(late, "old back in legacy")
    all_there()

    step_forward()
    synced()
    # What old code wrote a moment ago is seen again.
    step_forward(waive={"foreign_writes": "it is the test's own"})
    for _ in range(2):
        step_forward()
    all_there()
    list(retirement.retire())
    add(quiet, "ours behind retirement")
    all_there(in_legacy=False)
    retirement.restore()
    assert run("sync", "--to", "legacy")[0] == 0
    all_there()
    assert ConversationState.rows.count() == 4
    for name in names if shape.owned else ():
        assert texts(storage.load_state(name, user_id=UserFactory())) == []
        assert storage.list_conversations(owners[name]).conversations[0].conversation_id == name
    assert len(storage.list_conversations(ANY_OWNER)) == 4
    assert not [one for one in verify() if not one.in_order]
