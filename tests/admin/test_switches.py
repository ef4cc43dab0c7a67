"""Waffle's switches in the admin: the meaning of ours, and the phase that they spell."""

from __future__ import annotations

import html
import re
from typing import Any
from unittest import mock

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import reverse
from waffle import get_waffle_switch_model
from waffle.admin import SwitchAdmin

from flags.admin import register
from flags.phases import HELP_TEXTS, ROUTING, Phase, Switch, switches_for
from tests.support.admin_answers import text_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def switches() -> type[Any]:
    model = get_waffle_switch_model()
    model.objects.all().delete()
    for name, active in switches_for(Phase.DUAL_WRITE).items():
        model.objects.create(name=name, active=active)
    model.objects.create(name="a_host's_own", note="note of the host")
    return model


def phase_shown(response: Any) -> str:
    found = re.search(r'<aside class="flags-phase.*?</aside>', text_of(response), re.S)
    assert found is not None
    return " ".join(re.sub(r"<[^>]+>", " ", found[0]).split())


def test_the_list_of_switches_says_what_each_does_and_the_phase(
    operator: Client, switches: Any
) -> None:
    response = operator.get(reverse("admin:waffle_switch_changelist"))
    page = html.unescape(text_of(response))
    for text in [*map(HELP_TEXTS.get, ROUTING), "note of the host"]:
        assert text in page
    assert phase_shown(response) == (
        "dual_write The switches spell this phase."
        " Saves write both stores, legacy decides Loads prefer legacy"
    )


def test_an_emergency_is_shown_above_all(operator: Client, switches: Any) -> None:
    switches.objects.create(name=Switch.EMERGENCY_ROLLBACK, active=True)
    said = phase_shown(operator.get(reverse("admin:waffle_switch_changelist")))
    assert said.startswith("emergency rollback It overrules the other switches.")
    assert "Saves write legacy Loads prefer legacy" in said


def test_mixed_switches_are_named_with_what_to_turn(operator: Client, switches: Any) -> None:
    switches.objects.filter(name=Switch.USE_NEW_SAVE).update(active=False)
    pk = switches.objects.get(name=Switch.USE_NEW_SAVE).pk
    for address in (
        reverse("admin:waffle_switch_changelist"),
        reverse("admin:waffle_switch_change", args=[pk]),
    ):
        said = phase_shown(operator.get(address))
        assert said.startswith("mixed switches They spell no phase, and act as dual_write")
        assert "turn use_new_save on." in said


def test_switches_that_cannot_be_read_are_not_guessed(operator: Client, switches: Any) -> None:
    with mock.patch("flags.admin.switches.try_read_settings", return_value=None):
        response = operator.get(reverse("admin:waffle_switch_changelist"))
    assert response.status_code == 200
    assert "flags-phase" not in text_of(response)


def test_an_admin_that_the_host_made_for_switches_is_left_alone(switches: Any) -> None:
    class HostsAdmin(SwitchAdmin):
        pass

    site = admin.AdminSite()
    register(site)
    assert not site.is_registered(switches)
    site.register(switches, HostsAdmin)
    register(site)
    assert type(site.get_model_admin(switches)) is HostsAdmin


def test_without_legacy_the_switches_are_said_to_decide_nothing(
    operator: Client, switches: Any, settings: Any
) -> None:
    settings.CONVERSATIONS = {}
    said = phase_shown(operator.get(reverse("admin:waffle_switch_changelist")))
    assert said.startswith("new_only LEGACY is not set")


def test_our_switch_is_flipped_but_not_renamed(operator: Client, switches: Any) -> None:
    switch = switches.objects.get(name=Switch.USE_NEW_LOAD)
    address = reverse("admin:waffle_switch_change", args=[switch.pk])
    page = html.unescape(text_of(operator.get(address)))
    assert HELP_TEXTS[Switch.USE_NEW_LOAD] in page
    form = {"name": "renamed", "active": "on", "note": ""}
    form |= {f"{field}_0": "2030-01-01" for field in ("created", "modified")}
    form |= {f"{field}_1": "00:00:00" for field in ("created", "modified")}
    assert operator.post(address, form).status_code == 302
    switch.refresh_from_db()
    assert (switch.name, switch.active) == (Switch.USE_NEW_LOAD, True)


def test_switches_are_not_deleted_behind_waffles_cache(operator: Client, switches: Any) -> None:
    page = text_of(operator.get(reverse("admin:waffle_switch_changelist")))
    assert 'value="delete_individually"' in page
    assert 'value="delete_selected"' not in page


def test_other_switches_are_edited_as_before(operator: Client, switches: Any) -> None:
    switch = switches.objects.get(name="a_host's_own")
    address = reverse("admin:waffle_switch_change", args=[switch.pk])
    assert 'name="name"' in text_of(operator.get(address))
