"""A phase for a share of the conversations, the rest one phase lower."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from waffle import get_waffle_sample_model

from conversations.rollout import retirement
from conversations.storage import append_messages, load_state, save_state
from flags import processes
from flags.exceptions import TransitionRefused
from flags.phases import CANARY, EMERGENCY, PLANS, Phase
from flags.sampling import share_of
from flags.switches import Settings, current_plan, snapshot, try_read_settings
from flags.transitions import advance, canary, check, history, rollback, status
from tests.flags.test_emergency import set_emergency
from tests.flags.test_switches import set_rows
from tests.support.factories import messages, state, texts
from tests.support.rollout import step_forward

pytestmark = pytest.mark.django_db(transaction=True)

NAMES = [f"c{number}" for number in range(40)]
INSIDE = [name for name in NAMES if share_of(name) < 0.3]
OUTSIDE = [name for name in NAMES if share_of(name) >= 0.3]


@pytest.fixture(autouse=True)
def _chunks(settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    enter(Phase.DUAL_WRITE)
    status()


def enter(phase: Phase) -> None:
    set_rows(phase)
    snapshot.forget()


def phases(names: list[str]) -> set[Phase]:
    return {current_plan(name).phase for name in names}


@pytest.mark.parametrize("phase", list(Phase)[1:])
def test_the_rest_is_one_phase_lower(phase: Phase) -> None:
    enter(phase)
    canary(30)
    assert phases(INSIDE) == {phase}
    assert phases(OUTSIDE) == {Phase(phase - 1)}
    assert current_plan() == PLANS[phase]


def test_a_share_is_raised_and_lowered_at_will_and_loses_nothing() -> None:
    enter(Phase.NEW_ONLY)
    written: dict[str, list[str]] = {name: [] for name in NAMES[:8]}
    for number, percent in enumerate([50, 0, 100, 12.5, 80, 5]):
        canary(percent)
        for name, acknowledged in written.items():
            if number == 0:
                save_state(name, state("0"))
            else:
                append_messages(name, messages(str(number)))
            acknowledged.append(str(number))
            assert texts(load_state(name)) == acknowledged


def test_writes_go_where_the_share_says() -> None:
    enter(Phase.NEW_ONLY)
    canary(30)
    inside = save_state(INSIDE[0], state("a"))["stores"]
    outside = save_state(OUTSIDE[0], state("a"))["stores"]
    assert (inside, outside) == (["tables"], ["tables", "legacy"])


def test_it_is_recorded_and_shown() -> None:
    made = canary(12.54, reason="carefully", actor="ann")
    assert (made.kind, made.canary, made.reason, made.actor) == (
        "canary",
        12.5,
        "carefully",
        "ann",
    )
    assert (made.source, made.target) == (Phase.DUAL_WRITE, Phase.DUAL_WRITE)
    assert status().canary == 12.5
    assert history()[0] == made


def test_a_share_changed_in_another_way_is_noticed() -> None:
    canary(20)
    get_waffle_sample_model()._base_manager.filter(name=CANARY).update(percent=60)
    assert status().last.kind == "noticed"
    assert status().canary == 60
    assert status().last == history()[0]


def test_a_step_is_made_for_a_share_and_the_next_one_waits_for_all() -> None:
    enter(Phase.LEGACY)
    made = step_forward(percent=10)
    assert (made.target, made.canary) == (Phase.DUAL_WRITE, 10)
    for asked in (advance, check):
        with pytest.raises(TransitionRefused, match="10 % of the conversations only"):
            asked()
    (back,) = rollback()
    assert (back.target, back.canary) == (Phase.LEGACY, 100)
    assert phases(NAMES) == {Phase.LEGACY}


@pytest.mark.parametrize("percent", [-1, 100.1, float("nan"), float("inf")])
def test_a_share_is_a_share(percent: float) -> None:
    with pytest.raises(TransitionRefused, match="0 to 100"):
        canary(percent)
    assert try_read_settings() == Settings(status().switches)


def test_there_is_no_canary_of_the_first_phase_nor_of_mixed_switches() -> None:
    enter(Phase.LEGACY)
    with pytest.raises(TransitionRefused, match="no lower phase"):
        canary(10)
    enter(Phase.NEW_READS)
    rows = type(set_emergency(on=False)[0])._base_manager
    rows.filter(name="use_new_save").update(active=False)
    with pytest.raises(TransitionRefused, match="spell no phase"):
        canary(10)


def test_a_share_that_was_left_behind_in_the_first_phase_is_no_dead_end() -> None:
    canary(10)
    enter(Phase.LEGACY)
    processes.report()
    with pytest.raises(TransitionRefused, match="canary 100"):
        advance()
    canary(100)
    assert advance().target == Phase.DUAL_WRITE


def test_once_legacy_is_retired_no_conversation_is_one_phase_lower(settings: Any) -> None:
    settings.CONVERSATIONS |= {"RETIRE_AFTER": timedelta(0)}
    enter(Phase.NEW_ONLY)
    status()
    list(retirement.retire())
    with pytest.raises(TransitionRefused, match="retired"):
        canary(50)
    assert status().canary == 100


def test_an_emergency_covers_every_conversation() -> None:
    canary(10)
    set_emergency(on=True)
    assert {current_plan(name) for name in NAMES} == {EMERGENCY}
