"""The four switches mean a phase, and a phase says who writes and reads: docs/design.md, G16."""

from __future__ import annotations

from itertools import product

import pytest

from flags.conf import default_switches
from flags.exceptions import UnknownSwitch
from flags.phases import (
    EMERGENCY,
    HELP_TEXTS,
    PLANS,
    ROUTING,
    SWITCHES_OF,
    Phase,
    Plan,
    StoreName,
    Switch,
    phase_of,
    plan_of,
    switches_for,
)

# storage, save, load, parallel: the phase, and whether no phase is spelled so
TRUTH_TABLE = {
    "0000": (Phase.LEGACY, False),
    "0001": (Phase.DUAL_WRITE, True),
    "0010": (Phase.NEW_READS, True),
    "0011": (Phase.NEW_READS, True),
    "0100": (Phase.DUAL_WRITE, True),
    "0101": (Phase.DUAL_WRITE, False),
    "0110": (Phase.NEW_READS, True),
    "0111": (Phase.NEW_READS, False),
    "1000": (Phase.DUAL_WRITE, True),
    "1001": (Phase.DUAL_WRITE, True),
    "1010": (Phase.NEW_READS, True),
    "1011": (Phase.NEW_PRIMARY, True),
    "1100": (Phase.DUAL_WRITE, True),
    "1101": (Phase.DUAL_WRITE, True),
    "1110": (Phase.NEW_ONLY, False),
    "1111": (Phase.NEW_PRIMARY, False),
}


def switches(bits: str) -> dict[str, bool]:
    return {switch.value: bit == "1" for switch, bit in zip(ROUTING, bits, strict=True)}


def test_the_truth_table_has_every_combination() -> None:
    assert set(TRUTH_TABLE) == {"".join(bits) for bits in product("01", repeat=4)}


@pytest.mark.parametrize(("bits", "expected"), TRUTH_TABLE.items())
def test_every_combination_of_switches_means_one_phase(
    bits: str, expected: tuple[Phase, bool]
) -> None:
    plan = plan_of(switches(bits))
    assert (plan.phase, plan.mixed) == expected
    assert phase_of(switches(bits)) == expected[0]


@pytest.mark.parametrize("bits", TRUTH_TABLE)
def test_a_mixed_combination_does_what_its_phase_does(bits: str) -> None:
    plan = plan_of(switches(bits))
    spelled = PLANS[plan.phase]
    assert (plan.writes_legacy, plan.writes_normalized, plan.reads, plan.decides) == (
        spelled.writes_legacy,
        spelled.writes_normalized,
        spelled.reads,
        spelled.decides,
    )


@pytest.mark.parametrize(
    ("phase", "writes_legacy", "writes_normalized", "reads", "decides"),
    [
        (Phase.LEGACY, True, False, "legacy", "legacy"),
        (Phase.DUAL_WRITE, True, True, "legacy", "legacy"),
        (Phase.NEW_READS, True, True, "tables", "tables"),
        (Phase.NEW_PRIMARY, True, True, "tables", "tables"),
        (Phase.NEW_ONLY, False, True, "tables", "tables"),
    ],
)
def test_a_phase_reads_and_writes_what_the_table_says(
    phase: Phase, writes_legacy: bool, writes_normalized: bool, reads: str, decides: str
) -> None:
    assert PLANS[phase] == Plan(
        phase, writes_legacy, writes_normalized, StoreName(reads), StoreName(decides), mixed=False
    )


@pytest.mark.parametrize("phase", Phase)
def test_switches_for_a_phase_mean_that_phase(phase: Phase) -> None:
    assert plan_of(switches_for(phase)) == PLANS[phase]


def test_one_step_of_a_rollout_flips_one_switch_or_two() -> None:
    """The first step flips save and parallel together; every other one a single switch."""
    steps = [
        sum(before != after for before, after in zip(SWITCHES_OF[a], SWITCHES_OF[b], strict=True))
        for a, b in zip(list(Phase), list(Phase)[1:], strict=False)
    ]
    assert steps == [2, 1, 1, 1]


def test_an_absent_switch_is_off() -> None:
    assert phase_of({}) == Phase.LEGACY
    assert phase_of({"use_new_load": True}) == Phase.NEW_READS


def test_labels_are_the_words_operators_use() -> None:
    assert [phase.label for phase in Phase] == [
        "legacy",
        "dual_write",
        "new_reads",
        "new_primary",
        "new_only",
    ]


def test_every_switch_has_a_help_text() -> None:
    assert set(HELP_TEXTS) == set(Switch)
    assert all(HELP_TEXTS.values())


@pytest.mark.parametrize("bits", TRUTH_TABLE)
def test_an_emergency_overrules_every_combination(bits: str) -> None:
    plan = plan_of({**switches(bits), "emergency_rollback": True})
    assert plan == EMERGENCY
    assert (plan.writes_legacy, plan.writes_normalized, plan.reads, plan.decides) == (
        True,
        False,
        StoreName.LEGACY,
        StoreName.LEGACY,
    )


# What holds while waffle has no rows


def spelled(phase: Phase) -> dict[str, bool]:
    return {
        **switches_for(phase),
        "emergency_rollback": False,
        "performance_monitoring": False,
    }


def test_a_fresh_team_is_in_new_only(settings) -> None:
    settings.CONVERSATIONS = {"SWITCHES": {"use_new_save": False}}
    assert default_switches() == spelled(Phase.NEW_ONLY)
    settings.CONVERSATIONS = None
    assert default_switches() == spelled(Phase.NEW_ONLY)
    settings.CONVERSATIONS = {"SWITCHES": {"performance_monitoring": True}}
    monitored = {**spelled(Phase.NEW_ONLY), "performance_monitoring": True}
    assert default_switches() == monitored


def test_a_migrating_team_begins_in_legacy(settings) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    assert default_switches() == spelled(Phase.LEGACY)


def test_a_migrating_team_may_preset_its_switches(settings) -> None:
    preset = {"use_new_save": True, "parallel_mode": True}
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks", "SWITCHES": preset}
    assert default_switches() == spelled(Phase.DUAL_WRITE)


def test_a_preset_of_an_unknown_switch_is_refused_by_name(settings) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks", "SWITCHES": {"use_new_lod": True}}
    with pytest.raises(UnknownSwitch, match="names use_new_lod: use use_new_storage, "):
        default_switches()
