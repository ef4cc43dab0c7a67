"""Records of runs and steps leave out the ids of hidden conversations."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from conversations import models
from flags.models import Transition
from tests.support.tenant_rows import address, save, words_of

pytestmark = pytest.mark.django_db


def test_records_of_all_conversations_leave_out_hidden_ids(
    staff: Client, amira: User, noor: User
) -> None:
    now = timezone.now()
    save("amber", amira)
    save("cobalt", noor)
    run = models.SyncRun.rows.create(
        target="tables", cursor='"cobalt"', upper='"cobalt"', batch_size=1, started_at=now
    )
    notes = [[name, "failed", "why", "error"] for name in ("amber", "cobalt", "cobalt-unknown")]
    batch = models.SyncBatch.rows.create(
        run=run, low="7", high='"cobalt"', noted=json.dumps(notes), taken_at=now
    )
    gates = [
        _gate("2 conversations are not in order: amber, cobalt.", ids=["amber", "cobalt"]),
        _gate("1 conversations are not in order: amber.", ids=["amber"]),
        _gate("everything is in order.", waived={"cobalt": "known"}),
        _gate("somebody's own", ids=7),
    ]
    step = Transition.objects.create(
        at=now, kind="advance", from_phase=0, to_phase=1, switches="{}", gates=json.dumps(gates)
    )
    for row in (run, batch, step):
        for name in ("change", "history"):
            response = staff.get(address(type(row), name, row.pk))
            assert response.status_code == 200
            assert "cobalt" not in words_of(response), (row, name)
    assert (
        "[[&quot;amber&quot;"
        in staff.get(address(models.SyncBatch, "change", batch.pk)).content.decode()
    )
    said = words_of(staff.get(address(Transition, "change", step.pk)))
    assert "1 conversations are not in order: amber." in said
    assert "somebody's own" in said
    staff.force_login(User.objects.create_superuser("root"))
    for row in (run, batch, step):
        assert "cobalt" in words_of(staff.get(address(type(row), "change", row.pk)))


def _gate(message: str, **evidence: Any) -> dict[str, Any]:
    return {"gate": "g", "passed": True, "message": message, "evidence": evidence, "waived": ""}
