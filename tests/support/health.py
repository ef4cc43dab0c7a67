"""What health judges: measures, conflicts, a phase, switches."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from conversations.models import ConversationConflict, ConversationState
from conversations.storage import save_state
from flags import metrics, reporter, transitions
from flags.health import Health
from flags.models import MeasuredMinute
from flags.phases import Phase, Switch
from flags.switches import forced_phase, snapshot
from tests.flags.test_switches import Rows, set_rows
from tests.support.factories import state

committed = pytest.mark.django_db(transaction=True)


def monitor(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Monitor both stores in dual_write; beats are made by the tests."""
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks", "SHADOW_SHARE": 0}
    monkeypatch.setattr(reporter, "ensure", lambda: None)
    metrics.forget()
    enter(Phase.DUAL_WRITE)
    switch(Switch.PERFORMANCE_MONITORING, on=True)


def enter(phase: Phase) -> None:
    """Be in a phase that was entered long enough ago to be judged."""
    set_rows(phase)
    snapshot.forget()
    transitions.status()


def switch(name: str, *, on: bool) -> None:
    Rows._base_manager.update_or_create(name=name, defaults={"active": on})
    snapshot.forget()
    transitions.status()


def measured(operation: str = "load", store: str = "legacy", **numbers: Any) -> None:
    MeasuredMinute.objects.create(
        began_at=timezone.now().replace(second=0, microsecond=0),
        operation=operation,
        store=store,
        **numbers,
    )


def said(found: Health) -> list[tuple[str, str]]:
    return [(reason.slug, str(reason.level)) for reason in found.reasons]


def conflict(kind: str, **age: float) -> None:
    with forced_phase(Phase.DUAL_WRITE):
        save_state("c", state("a"))
    ConversationConflict.rows.create(
        conversation=ConversationState.rows.get(conversation_id="c"),
        kind=kind,
        reason="r",
        revision=1,
        created_at=timezone.now() - timedelta(**age),
    )
