"""Which store tells the truth, as a table, and which stores may answer then."""

from __future__ import annotations

from typing import Any

import pytest

from conversations.routing.standing import decide
from conversations.routing.truth import (
    Numbers,
    Truth,
    may_write_legacy_blindly,
    read_order,
    verdict,
)
from flags.phases import PLANS, Phase, StoreName
from flags.switches import forced_phase

LEGACY, NORMALIZED = StoreName.LEGACY, StoreName.NORMALIZED


@pytest.mark.parametrize(
    ("revision", "legacy_revision", "token_matches", "expected"),
    [
        (0, 0, True, Truth.BOTH),
        (3, 3, True, Truth.BOTH),
        (4, 3, True, Truth.NORMALIZED),
        (3, 4, True, Truth.LEGACY),
        (0, 1, True, Truth.LEGACY),
        (1, 0, True, Truth.NORMALIZED),
        (3, 3, False, Truth.MERGE),
        (4, 3, False, Truth.MERGE),
        (3, 4, False, Truth.MERGE),
        (0, 0, False, Truth.MERGE),
    ],
)
def test_the_higher_number_tells_the_truth_unless_a_foreign_write_came(
    revision: int, legacy_revision: int, token_matches: bool, expected: Truth
) -> None:
    assert verdict(Numbers(revision, legacy_revision), token_matches=token_matches) == expected


@pytest.mark.parametrize("token_matches", [True, False])
def test_without_a_row_legacy_is_the_truth(token_matches: bool) -> None:
    assert verdict(None, token_matches=token_matches) == Truth.LEGACY


@pytest.mark.parametrize(("revision", "legacy_revision", "following"), [(3, 5, 6), (5, 3, 6)])
def test_the_next_write_is_numbered_above_both(
    revision: int, legacy_revision: int, following: int
) -> None:
    assert Numbers(revision, legacy_revision).next == following


@pytest.mark.parametrize(
    ("truth", "reads_legacy", "reads_tables"),
    [
        (Truth.BOTH, (LEGACY, NORMALIZED), (NORMALIZED, LEGACY)),
        (Truth.LEGACY, (LEGACY,), (LEGACY,)),
        (Truth.NORMALIZED, (NORMALIZED,), (NORMALIZED,)),
    ],
)
def test_a_load_asks_only_stores_that_are_current_the_preferred_one_first(
    truth: Truth, reads_legacy: tuple[StoreName, ...], reads_tables: tuple[StoreName, ...]
) -> None:
    assert {phase: read_order(PLANS[phase], truth) for phase in Phase} == {
        Phase.LEGACY: reads_legacy,
        Phase.DUAL_WRITE: reads_legacy,
        Phase.NEW_READS: reads_tables,
        Phase.NEW_PRIMARY: reads_tables,
        Phase.NEW_ONLY: reads_tables,
    }


def test_only_where_legacy_decides_may_a_save_go_there_blindly() -> None:
    assert {phase for phase in Phase if may_write_legacy_blindly(PLANS[phase])} == {
        Phase.LEGACY,
        Phase.DUAL_WRITE,
    }


@pytest.mark.parametrize("phase", Phase)
def test_a_team_without_legacy_is_in_new_only_under_every_switch(
    phase: Phase, settings: Any
) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    with forced_phase(phase):
        assert decide("c").plan == PLANS[phase]
        settings.CONVERSATIONS = {}
        assert decide("c").plan == PLANS[Phase.NEW_ONLY]
