"""What traffic has to show, and operators to do, before loads come from the tables."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models import QuerySet
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from conversations.models import ConversationState
from conversations.rollout.sync import sync
from conversations.storage import append_messages, load_state, save_state
from flags import metrics, processes, reporter
from flags.exceptions import TransitionRefused, UnknownGate
from flags.gates import GateResult
from flags.models import MeasuredMinute, ReportingProcess, Transition
from flags.phases import Phase
from flags.switches import snapshot
from flags.transitions import check, history, rehearse, rollback, status
from memory.models import MemoryChunk
from tests.faults.injection import failing, touches_messages
from tests.flags.test_metrics import monitoring
from tests.flags.test_switches import set_rows
from tests.support.factories import messages, state
from tests.support.legacy_schema import old_save
from tests.support.rollout import EASED

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _measured(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks", **EASED, "SHADOW_SHARE": 0}
    monkeypatch.setattr(reporter, "ensure", lambda: None)
    metrics.forget()
    yield
    metrics.forget()
    reporter._waiting.clear()


def enter(phase: Phase) -> None:
    set_rows(phase)
    snapshot.forget()
    status()
    monitoring(on=True)


def gate(name: str, to: Phase | None = None) -> GateResult:
    metrics.flush()
    (found,) = [result for result in check(to) if result.gate == name]
    assert found.passed or found.fix
    return found


def observe(operation: str, count: int, seconds: float = 0.01, **how: bool) -> None:
    for _ in range(count):
        metrics.observe(operation, "tables", seconds, **how)


def an_hour_ago() -> None:
    """Let the present phase be an hour old, and what was measured two."""
    earlier = timezone.now() - timedelta(hours=2)
    MeasuredMinute.objects.update(began_at=earlier)
    # A record refuses to be changed; the clock is what is meant.
    QuerySet.update(Transition.objects.all(), at=timezone.now() - timedelta(hours=1))


# legacy to dual_write


def test_processes_have_to_report_and_to_run_one_version() -> None:
    enter(Phase.LEGACY)
    assert gate("processes").message == "no process reports itself."
    processes.report()
    assert gate("processes").passed
    ReportingProcess.objects.create(
        token="old", host="web2", pid=7, version="0.0.1", phase=0, epoch=0, seen_at=timezone.now()
    )
    found = gate("processes")
    assert (found.passed, found.evidence) == (False, {"live": 2, "others": ["web2:7 0.0.1"]})
    ReportingProcess.objects.filter(token="old").update(
        seen_at=timezone.now() - processes.EXPIRY * 2
    )
    assert gate("processes").passed


# dual_write to new_reads


def test_so_many_shadow_reads_have_to_agree(settings: Any) -> None:
    settings.CONVERSATIONS |= {"SHADOW_READS": 3, "SHADOW_SHARE": 1}
    enter(Phase.DUAL_WRITE)
    save_state("c", state("a"))
    load_state("empty")
    for _ in range(2):
        load_state("c")
    found = gate("shadow_reads")
    assert (found.passed, found.evidence["agreed"]) == (False, 2)
    load_state("c")
    assert gate("shadow_reads").passed


def test_one_that_does_not_agree_refuses(settings: Any) -> None:
    settings.CONVERSATIONS |= {"SHADOW_SHARE": 1}
    enter(Phase.DUAL_WRITE)
    save_state("c", state("a"))
    MemoryChunk.objects.update(content='{"conversation_history": []}')
    load_state("c")
    found = gate("shadow_reads")
    assert (found.passed, found.evidence["mismatches"]) == (False, 1)


def test_only_measures_of_this_phase_count(settings: Any) -> None:
    settings.CONVERSATIONS |= {"SHADOW_READS": 1}
    enter(Phase.DUAL_WRITE)
    observe("shadow", 5)
    observe("save", 30, error=True)
    assert gate("shadow_reads").passed
    assert not gate("errors").passed
    an_hour_ago()
    assert not gate("shadow_reads").passed
    assert gate("errors").passed


@pytest.mark.parametrize(
    ("failed", "succeeded", "passed"), [(1, 10, True), (1, 99, True), (2, 98, False)]
)
def test_a_hundredth_may_fail(failed: int, succeeded: int, passed: bool) -> None:
    enter(Phase.DUAL_WRITE)
    observe("save", succeeded)
    observe("leg", failed, error=True)
    assert gate("errors").passed is passed


def test_the_gate_of_errors_has_the_limits_of_health(settings: Any) -> None:
    enter(Phase.DUAL_WRITE)
    observe("save", 27)
    observe("leg", 3, error=True)
    assert not gate("errors").passed
    for chosen in ({"WARNING": 0.2}, {"MINIMUM": 31}):
        settings.CONVERSATIONS |= {"HEALTH": chosen}
        assert gate("errors").passed


def test_saves_that_fail_are_not_hidden_behind_many_loads() -> None:
    enter(Phase.DUAL_WRITE)
    observe("load", 10_000)
    observe("save", 50, error=True)
    found = gate("errors")
    assert (found.passed, found.evidence["failing"]) == (False, ["save tables"])


def test_they_have_to_be_quick(settings: Any) -> None:
    enter(Phase.DUAL_WRITE)
    observe("load", 19, 5.0)
    assert gate("latency").passed
    observe("load", 1, 5.0)
    found = gate("latency")
    assert not found.passed
    assert found.evidence["p95_seconds"] > 2
    settings.CONVERSATIONS |= {"MAX_P95": timedelta(seconds=9)}
    assert gate("latency").passed


def test_old_code_has_to_be_quiet(settings: Any) -> None:
    settings.CONVERSATIONS |= {"FOREIGN_QUIET": timedelta(hours=24)}
    enter(Phase.DUAL_WRITE)
    save_state("c", state("a"))
    append_messages("c", messages("ours"))
    assert gate("foreign_writes").passed
    old_save(connection, "c", None, state("a", "theirs").to_dict())
    load_state("c")
    assert gate("foreign_writes").evidence == {"ids": ["c"]}
    ConversationState.rows.update(foreign_written_at=timezone.now() - timedelta(hours=25))
    assert gate("foreign_writes").passed


def test_a_sync_keeps_the_time_of_a_blob(settings: Any) -> None:
    settings.CONVERSATIONS |= {"FOREIGN_QUIET": timedelta(hours=24)}
    enter(Phase.DUAL_WRITE)
    old_save(connection, "old", None, state("a").to_dict())
    MemoryChunk.objects.update(created_at=timezone.now() - timedelta(hours=30))
    old_save(connection, "late", None, state("a").to_dict())
    list(sync("tables"))
    assert gate("foreign_writes").evidence == {"ids": ["late"]}


def test_the_way_back_has_to_be_rehearsed_in_this_phase() -> None:
    enter(Phase.DUAL_WRITE)
    assert not gate("rehearsed").passed
    made = rehearse(reason="before the weekend", actor="ann")
    assert (made.kind, made.source, made.target) == ("rehearsal", 1, 1)
    assert [one["gate"] for one in made.gates] == ["legacy_current", "drill"] * 2
    assert gate("rehearsed").evidence == {"epoch": made.epoch}
    enter(Phase.LEGACY)
    enter(Phase.DUAL_WRITE)
    assert not gate("rehearsed").passed


def test_a_rehearsal_of_half_the_way_is_none() -> None:
    enter(Phase.DUAL_WRITE)
    rehearse(Phase.DUAL_WRITE)
    assert not gate("rehearsed").passed
    rehearse()
    rehearse(Phase.DUAL_WRITE)
    assert gate("rehearsed").passed


def test_the_queries_of_a_gate_are_no_traffic(settings: Any) -> None:
    settings.CONVERSATIONS |= {"SHADOW_SHARE": 1}
    enter(Phase.DUAL_WRITE)
    rehearse()
    rollback()
    check()
    metrics.flush()
    assert not MeasuredMinute.objects.exists()


def test_a_rehearsal_changes_nothing_and_does_not_begin_the_phase_anew() -> None:
    enter(Phase.DUAL_WRITE)
    save_state("c", state("a"))
    before, rows = status(), list(ConversationState.rows.values())
    rehearse()
    after = status()
    assert (after.phase, after.since, after.switches) == (
        before.phase,
        before.since,
        before.switches,
    )
    assert after.last.epoch > before.last.epoch
    assert list(ConversationState.rows.values()) == rows
    assert MemoryChunk.objects.count() == 1


def test_a_rehearsal_that_loses_something_is_refused_and_not_recorded() -> None:
    enter(Phase.DUAL_WRITE)
    epoch = status().last.epoch
    with failing(touches_messages), pytest.raises(TransitionRefused) as refused:
        rehearse()
    assert {one.gate for one in refused.value.results if not one.holds} == {"drill"}
    assert history()[0].epoch == epoch


def test_a_rehearsal_says_what_a_sync_has_to_bring_back() -> None:
    enter(Phase.NEW_ONLY)
    save_state("c", state("a"))
    gates = rehearse().gates
    behind = [one["message"] for one in gates if one["gate"] == "legacy_current"]
    assert behind == ["legacy is behind in 1 conversations."] * 2
    with pytest.raises(TransitionRefused, match="is not before new_only"):
        rehearse(Phase.NEW_ONLY)


def test_the_gates_of_one_report_read_what_was_measured_once() -> None:
    enter(Phase.DUAL_WRITE)
    for _ in range(2):
        with CaptureQueriesContext(connection) as captured:
            found = check()
        assert {"shadow_reads", "errors", "latency"} <= {result.gate for result in found}
        assert len([q for q in captured if 'FROM "rollout_measures"' in q["sql"]]) == 1


# Behind new_reads


@pytest.mark.parametrize("how", ["fallback", "stale"])
def test_no_operation_may_have_fallen_back(how: str) -> None:
    enter(Phase.NEW_READS)
    observe("load", 10)
    assert gate("no_fallbacks").passed
    observe("load", 1, **{how: True})
    assert not gate("no_fallbacks").passed
    an_hour_ago()
    assert gate("no_fallbacks").passed


def test_where_nothing_was_measured_nothing_is_known_of_fallbacks(settings: Any) -> None:
    settings.CONVERSATIONS |= {"SHADOW_READS": 10}
    enter(Phase.NEW_READS)
    found = gate("no_fallbacks")
    assert found.message == "0 of 10 operations were measured in new_reads."
    assert "performance_monitoring" in found.fix
    observe("load", 10)
    assert gate("no_fallbacks").passed


def test_a_waiver_names_a_gate_of_the_step() -> None:
    enter(Phase.DUAL_WRITE)
    for name in ("soak", "nothing:c"):
        with pytest.raises(UnknownGate):
            check(waive={name: "because"})
