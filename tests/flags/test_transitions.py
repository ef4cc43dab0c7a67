"""The rollout moves one step at a time, gated, fenced and recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.urls import reverse
from waffle import get_waffle_switch_model

from conversations.rollout.sync import sync
from conversations.storage import append_messages, load_state, save_state
from flags import records, transitions
from flags.exceptions import HistoryIsFixed, SwitchesUnreadable, TransitionRefused
from flags.models import Transition
from flags.phases import PLANS, Phase, switches_for
from flags.switches import current_plan, snapshot
from flags.transitions import (
    advance,
    canary,
    check,
    emergency,
    history,
    resume,
    rollback,
    status,
)
from tests.faults.injection import failing
from tests.flags.test_switches import set_rows, touches_switches
from tests.support.factories import messages, state, texts
from tests.support.rollout import EASED, before_the_fence, elsewhere, prepare, step_forward

pytestmark = pytest.mark.django_db(transaction=True)

LEGACY = {"LEGACY": "memory_chunks", **EASED}


@pytest.fixture(autouse=True)
def _no_soak(settings: Any) -> None:
    settings.CONVERSATIONS = LEGACY
    enter(Phase.LEGACY)
    prepare()


def enter(phase: Phase) -> None:
    set_rows(phase)
    snapshot.forget()


def failed(results: Any) -> list[str]:
    return [result.gate for result in results if not result.holds]


# Steps


def test_the_whole_way_there_and_back_each_step_recorded() -> None:
    save_state("c", state("a"))
    steps = []
    for phase in list(Phase)[1:]:
        list(sync("tables"))
        steps.append((phase - 1, phase))
        made = step_forward(reason=f"to {phase.label}", actor="ann")
        assert (made.source, made.target) == steps[-1]
        assert current_plan() == PLANS[phase]
        append_messages("c", messages(phase.label))
    list(sync("legacy"))
    back = rollback(Phase.LEGACY, reason="enough")
    assert [(one.source, one.target) for one in back] == [(4, 3), (3, 2), (2, 1), (1, 0)]
    assert current_plan() == PLANS[Phase.LEGACY]
    assert texts(load_state("c")) == ["a", "dual_write", "new_reads", "new_primary", "new_only"]
    recorded = [(one.kind, one.source, one.target) for one in reversed(history())]
    assert recorded == [
        ("noticed", 0, 0),
        ("advance", *steps[0]),
        ("rehearsal", 1, 1),
        *[("advance", *step) for step in steps[1:]],
        *[("rollback", one.source, one.target) for one in back],
    ]
    assert history()[4].reason == "to new_only"
    assert history()[4].actor == "ann"
    assert [one.epoch for one in history()] == sorted(
        (one.epoch for one in history()), reverse=True
    )


def test_a_rollback_is_one_step_unless_it_is_told_otherwise() -> None:
    enter(Phase.NEW_ONLY)
    (made,) = rollback()
    assert (made.source, made.target) == (Phase.NEW_ONLY, Phase.NEW_PRIMARY)
    for to in (Phase.NEW_PRIMARY, Phase.NEW_ONLY):
        with pytest.raises(TransitionRefused, match="is not before new_primary"):
            rollback(to)


def test_a_way_back_that_is_refused_halfway_says_how_far_it_came() -> None:
    enter(Phase.NEW_ONLY)
    save_state("c", state("a"))
    with pytest.raises(
        TransitionRefused, match=r"behind in 1 .* new_reads is in force now"
    ) as found:
        rollback(Phase.LEGACY)
    assert failed(found.value.results) == ["legacy_current"]
    assert status().phase == Phase.NEW_READS


def test_there_is_nothing_behind_the_last_phase_and_nothing_but_adjacent_steps() -> None:
    enter(Phase.NEW_ONLY)
    with pytest.raises(TransitionRefused, match="new_only is the last phase"):
        advance()
    with pytest.raises(TransitionRefused, match="not adjacent"):
        check(Phase.LEGACY)


def test_a_team_without_legacy_has_nothing_to_roll_out(settings: Any) -> None:
    settings.CONVERSATIONS = {}
    with pytest.raises(TransitionRefused, match="nothing to roll out"):
        advance()


def test_a_step_is_never_part_of_the_callers_transaction() -> None:
    with transaction.atomic():
        for call in (advance, rollback):
            with pytest.raises(TransitionRefused, match="outside"):
                call()
    assert current_plan() == PLANS[Phase.LEGACY]


def test_mixed_switches_go_back_but_not_forwards() -> None:
    enter(Phase.NEW_PRIMARY)
    Rows = get_waffle_switch_model()
    Rows._base_manager.filter(name="use_new_save").update(active=False)
    snapshot.forget()
    assert (status().phase, status().mixed) == (Phase.NEW_PRIMARY, True)
    with pytest.raises(TransitionRefused, match="spell no phase"):
        advance()
    rollback()
    assert (status().phase, status().mixed) == (Phase.NEW_READS, False)


# What others flip


def test_a_switch_flipped_in_another_way_is_noticed_and_recorded_once() -> None:
    status()
    enter(Phase.NEW_READS)
    for _ in range(3):
        assert status().phase == Phase.NEW_READS
    assert [(one.kind, one.source, one.target) for one in history()] == [
        ("noticed", Phase.LEGACY, Phase.NEW_READS),
        ("noticed", Phase.LEGACY, Phase.LEGACY),
    ]


def test_a_flip_meanwhile_is_noticed_inside_the_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    close = transitions.fence.close

    def flipped_first(**options: Any) -> None:
        set_rows(Phase.NEW_ONLY)
        close(**options)

    monkeypatch.setattr(transitions.fence, "close", flipped_first)
    with pytest.raises(TransitionRefused, match="another step"):
        advance()


def there_and_back() -> None:
    rollback()
    step_forward()


@pytest.mark.parametrize(
    "act", [lambda: canary(10), emergency, there_and_back], ids=["canary", "emergency", "there"]
)
def test_the_findings_of_the_gates_must_hold_inside_the_fence(
    act: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(Phase.NEW_PRIMARY)
    before_the_fence(act, monkeypatch)
    with pytest.raises(TransitionRefused, match="another step"):
        advance()
    assert status().phase == Phase.NEW_PRIMARY


def test_an_emergency_called_again_is_not_ended_by_an_earlier_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emergency()
    before_the_fence(emergency, monkeypatch)
    with pytest.raises(TransitionRefused, match="another step"):
        resume()
    assert status().emergency


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has one writer at a time")
def test_a_step_never_undoes_an_emergency_that_comes_while_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change = records.change

    def late(switches: Any, **options: Any) -> None:
        monkeypatch.setattr(records, "change", change)
        elsewhere(emergency)
        change(switches, **options)

    monkeypatch.setattr(records, "change", late)
    advance()
    assert status().emergency


def test_switches_that_cannot_be_read_move_nothing() -> None:
    before = Transition.objects.count()
    with failing(touches_switches), pytest.raises(SwitchesUnreadable):
        advance()
    assert Transition.objects.count() == before


def test_rows_that_are_missing_are_made() -> None:
    get_waffle_switch_model()._base_manager.all().delete()
    advance()
    rows = get_waffle_switch_model()._base_manager.values_list("name", "active")
    assert dict(rows) == {
        **switches_for(Phase.DUAL_WRITE),
        "emergency_rollback": False,
        "performance_monitoring": False,
    }


def test_a_cache_that_is_down_makes_no_step_look_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def down(self: Any) -> None:
        raise ConnectionError("the cache is down")

    monkeypatch.setattr(get_waffle_switch_model(), "flush", down)
    assert advance().target == Phase.DUAL_WRITE
    assert current_plan() == PLANS[Phase.DUAL_WRITE]
    assert "the cache is down" in caplog.text


# Records


def test_a_record_is_never_changed_or_deleted() -> None:
    advance()
    record = Transition.objects.latest("pk")
    record.reason = "another"
    for change in (
        record.save,
        record.delete,
        lambda: Transition.objects.update(reason="another"),
        lambda: Transition.objects.all().delete(),
    ):
        with pytest.raises(HistoryIsFixed):
            change()


def test_a_record_is_never_written_over_by_another_with_its_key() -> None:
    made = advance()
    forged = Transition(pk=made.epoch, at=made.at, from_phase=3, to_phase=4, switches="{}")
    with pytest.raises(IntegrityError):
        forged.save()
    assert history(limit=1) == [made]


def test_a_record_says_what_every_gate_said() -> None:
    gates = advance().gates
    assert [(gate["gate"], gate["passed"]) for gate in gates] == [
        ("configuration", True),
        ("migrations", True),
        ("round_trip", True),
        ("processes", True),
    ]


def test_the_admin_shows_the_history_and_changes_none_of_it(admin_client: Any) -> None:
    made = advance(reason="rehearsed")
    pages = [
        reverse("admin:flags_transition_changelist"),
        reverse("admin:flags_transition_change", args=[made.epoch]),
    ]
    for page in pages:
        assert "rehearsed" in admin_client.get(page).content.decode()
    assert admin_client.get(reverse("admin:flags_transition_add")).status_code == 403
    for page in (pages[1], reverse("admin:flags_transition_delete", args=[made.epoch])):
        assert admin_client.post(page, {"post": "yes", "reason": "x"}).status_code == 403
