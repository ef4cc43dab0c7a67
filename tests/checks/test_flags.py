"""The checks of flags: each fires on its mistake and is silent without it."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import DEFAULT_DB_ALIAS
from waffle.models import Switch as SwitchRow

from flags import checks as flags_checks
from flags.phases import Phase, switches_for
from tests.support.checks import found
from tests.support.scratch import ALIAS


def test_flags_E001(configure: Any) -> None:
    configure(LEGACY="memory_chunks", SWITCHES={"use_new_saves": True})
    assert found(flags_checks.check_switches(), "flags.E001") == [
        "CONVERSATIONS[\"SWITCHES\"] names 'use_new_saves', which is no switch."
    ]
    configure(LEGACY="memory_chunks", SWITCHES={"use_new_save": True})
    assert flags_checks.check_switches() == []


@pytest.mark.parametrize("value", ["True", 1, None])
def test_flags_E002(configure: Any, value: Any) -> None:
    configure(LEGACY="memory_chunks", SWITCHES={"use_new_save": value})
    assert len(found(flags_checks.check_switches(), "flags.E002")) == 1
    configure(LEGACY="memory_chunks", SWITCHES=[value])
    assert len(found(flags_checks.check_switches(), "flags.E002")) == 1
    configure(LEGACY="memory_chunks", SWITCHES=None)
    assert flags_checks.check_switches() == []


def test_flags_W001(configure: Any) -> None:
    configure(SWITCHES={"use_new_save": True})
    assert found(flags_checks.check_switches(), "flags.W001") == [
        'CONVERSATIONS["SWITCHES"] is ignored, because LEGACY is not set.'
    ]
    configure(SWITCHES={})
    assert flags_checks.check_switches() == []


@pytest.mark.django_db
def test_flags_W002(configure: Any) -> None:
    check = flags_checks.check_stored_switches
    configure(LEGACY="memory_chunks", SWITCHES={"use_new_storage": True})
    SwitchRow.objects.all().delete()
    assert check(databases=[DEFAULT_DB_ALIAS]) == []
    for name, active in switches_for(Phase.NEW_READS).items():
        SwitchRow.objects.create(name=name, active=active)
    assert check(databases=[DEFAULT_DB_ALIAS]) == []
    SwitchRow.objects.filter(name="use_new_save").update(active=False)
    (message,) = check(databases=[DEFAULT_DB_ALIAS])
    assert (message.id, message.msg, message.hint) == (
        "flags.W002",
        "The switches are mixed: they spell no phase, and act as new_reads.",
        "Turn use_new_save on.",
    )


def test_flags_W002_is_silent_without_waffles_table(scratch: Any) -> None:
    assert flags_checks.check_stored_switches(databases=[ALIAS]) == []
