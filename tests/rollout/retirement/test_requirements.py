"""Legacy is given up only when nothing would be lost."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection

from conversations import storage
from conversations.models import ConversationConflict, ConversationState
from conversations.rollout import retirement
from conversations.rollout.retirement import requirements
from conversations.rollout.sync import sync
from conversations.rollout.verification import verify
from flags import transitions
from flags.exceptions import UnknownGate
from flags.phases import Phase
from flags.switches import snapshot
from tests.flags.test_emergency import set_emergency
from tests.machine.oldcode import OldSession
from tests.support.factories import UserFactory, state, texts
from tests.support.legacy_schema import old_save
from tests.support.retirement import (
    CHUNKS,
    ahead_in_legacy,
    by_old_code,
    enter,
    only_in_legacy,
    refused_by,
    retired,
    state_chunks,
    written,
)

pytestmark = pytest.mark.django_db(transaction=True)


def test_another_phase_refuses(either_store: str) -> None:
    written("c")
    list(sync("legacy"))
    for phase in list(Phase)[:-1]:
        enter(phase)
        assert refused_by() == ["phase"]


def test_an_emergency_and_mixed_switches_refuse(either_store: str) -> None:
    written("c")
    set_emergency(on=True)
    assert "phase" in refused_by()
    set_emergency(on=False)
    transitions.status()
    from waffle import get_waffle_switch_model

    rows = get_waffle_switch_model()._base_manager
    rows.filter(name="use_new_save").update(active=False)
    snapshot.forget()
    assert "phase" in refused_by()


def test_a_share_of_the_conversations_refuses() -> None:
    written("c")
    transitions.canary(99)
    assert refused_by() == ["phase"]
    transitions.canary(100)
    assert retired() == {"c": ""}


def test_the_phase_has_to_have_been_in_force_for_its_time(settings: Any, either_store: str) -> None:
    settings.CONVERSATIONS = settings.CONVERSATIONS | {"RETIRE_AFTER": timedelta(days=7)}
    written("c")
    assert refused_by() == ["soak"]
    assert set(retired(waive={"soak": "rehearsed"}).values()) <= {""}
    assert transitions.history()[0].gates[1]["waived"] == "rehearsed"


def test_an_emergency_begins_the_time_anew() -> None:
    written("c")
    first = transitions.status().since
    transitions.rehearse()
    assert transitions.status().since == first < transitions.history()[0].at
    retired()
    retirement.restore()
    assert transitions.status().since == first < transitions.history()[0].at
    transitions.emergency()
    transitions.resume()
    assert transitions.status().since == transitions.history()[0].at


def test_content_that_the_tables_lack_refuses_without_a_waiver(
    either_store: str,
) -> None:
    for spoil in (only_in_legacy, ahead_in_legacy, by_old_code):
        other, name = f"{spoil.__name__} other", spoil.__name__
        written(other, *([] if spoil is only_in_legacy else [name]))
        list(verify())
        spoil(name)
        assert refused_by() == ["verified"]
        with pytest.raises(UnknownGate):
            list(retirement.retire(waive={"verified": "never mind"}))
        list(sync("tables"))
    assert not any(retired().values())
    for spoil in (only_in_legacy, ahead_in_legacy, by_old_code):
        assert texts(storage.load_state(spoil.__name__))[-1] in ("only here", "old")


def test_rows_that_differ_from_their_digests_refuse(either_store: str) -> None:
    written("c")
    ConversationState.rows.update(message_count=7, verified_revision=-1)
    assert refused_by() == ["verified"]


def test_a_quarantined_blob_refuses_unless_it_is_waived() -> None:
    written("c", user=UserFactory())
    old_save(connection, "c", UserFactory().pk, state("theirs").to_dict())
    list(sync("tables"))
    assert ConversationConflict.rows.get().kind == ConversationConflict.Kind.QUARANTINED
    assert refused_by() == ["quarantined"]
    assert retired(waive={"quarantined": "looked at"}) == {"c": ""}
    assert state_chunks() == 0


def test_a_write_to_legacy_during_the_verification_refuses(
    either_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written("c")
    close = transitions.fence.close

    def meanwhile(**options: Any) -> None:
        only_in_legacy("late")
        close(**options)

    monkeypatch.setattr(transitions.fence, "close", meanwhile)
    assert refused_by() == ["unchanged"]


def test_more_than_a_second_of_it_refuses(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    settings.CONVERSATIONS = CHUNKS | {"LEGACY": OldSession.settings}
    enter(Phase.LEGACY)
    written("c")
    monkeypatch.setattr(requirements, "INSIDE", timedelta(seconds=-1))
    assert refused_by() == ["unchanged"]
    assert retired(waive={"unchanged": "old code is gone"}) == {}


def test_without_a_legacy_store_there_is_nothing_to_retire(settings: Any) -> None:
    settings.CONVERSATIONS = {}
    assert refused_by() == []
