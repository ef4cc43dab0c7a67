"""The list of legacy shows the lines of one tenant, past hidden ones."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client

from conversations.admin import legacy
from flags.phases import Phase
from tests.support.tenant_rows import legacy_lines, save

pytestmark = pytest.mark.django_db


def test_the_list_of_legacy_goes_on_past_hidden_conversations(
    staff: Client, amira: User, noor: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legacy, "PER_PAGE", 2)
    monkeypatch.setattr(legacy, "AT_ONCE", 3)
    for number in range(3):
        save(f"amber{number}", amira, phase=Phase.LEGACY, lines=1)
        for other in range(4):
            save(f"cobalt{number}-{other}", noor, phase=Phase.LEGACY, lines=1)
    first, following = legacy_lines(staff)
    assert (first, "cobalt" in following) == (["amber2", "amber1"], False)
    assert legacy_lines(staff, following) == (["amber0"], "")
    # Of six lines at most, which the first of a page may take it to.
    monkeypatch.setattr(legacy, "MOST_ASKED", 6)
    assert legacy_lines(staff) == (["amber2"], "")


def test_a_superuser_sees_all_of_legacy(staff: Client, amira: User, noor: User) -> None:
    for name, user in (("amber", amira), ("cobalt", noor), ("nobodys", None)):
        save(name, user, phase=Phase.LEGACY)
    assert legacy_lines(staff)[0] == ["amber"]
    staff.force_login(User.objects.create_superuser("root"))
    assert legacy_lines(staff)[0] == ["nobodys", "cobalt", "amber"]
