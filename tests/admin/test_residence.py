"""The stores that hold a conversation, as the list of conversations names and filters them."""

from __future__ import annotations

import pytest
from django.test import Client
from django.utils import timezone

from conversations.admin.residence import CONDITIONS, Residence, residence_of
from conversations.models import ConversationState
from conversations.stores.normalized import new_row
from tests.support.admin_answers import url

pytestmark = pytest.mark.django_db


def test_residence_and_its_filter_agree_for_all_numbers(operator: Client) -> None:
    now = timezone.now()
    pairs = [(revision, legacy) for revision in range(4) for legacy in range(4)]
    for revision, legacy in pairs:
        row = new_row(f"{revision}-{legacy}", now=now, revision=revision, legacy_revision=legacy)
        row.save()
    for residence, condition in CONDITIONS.items():
        wanted = {f"{r}-{lr}" for r, lr in pairs if residence_of(r, lr) == residence}
        rows = ConversationState.objects.filter(condition)
        assert set(rows.values_list("conversation_id", flat=True)) == wanted
        address = url(ConversationState, "changelist", lives=residence.replace(" ", "-"))
        assert operator.get(address).context["cl"].result_count == len(wanted)


@pytest.mark.parametrize(
    ("revision", "legacy_revision", "residence"),
    [
        (3, 0, Residence.TABLES),
        (0, 3, Residence.LEGACY),
        (3, 3, Residence.BOTH),
        (4, 3, Residence.LEGACY_BEHIND),
        (3, 4, Residence.TABLES_BEHIND),
    ],
)
def test_the_higher_number_is_ahead(
    revision: int, legacy_revision: int, residence: Residence
) -> None:
    assert residence_of(revision, legacy_revision) == residence
