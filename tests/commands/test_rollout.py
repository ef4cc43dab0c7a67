"""`manage.py rollout`: what it prints, and how it ends."""

from __future__ import annotations

import getpass
import io
import json
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.utils import timezone
from waffle import get_waffle_switch_model

from conversations.models import ConversationConflict, ConversationState
from conversations.storage import save_state
from flags import processes, transitions
from flags.exceptions import (
    FenceBusy,
    NoSuchStep,
    SwitchesUnreadable,
    TimeIsUp,
    TransitionRefused,
    UnknownGate,
)
from flags.health import report
from flags.management.output import waivers_of
from flags.models import MeasuredMinute, ReportingProcess
from flags.phases import Phase, switches_for
from flags.switches import forced_phase, snapshot
from flags.transitions import history, status
from tests.faults.injection import failing
from tests.flags.test_switches import set_rows, touches_switches
from tests.support.factories import state
from tests.support.rollout import EASED, prepare

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _in_dual_write(settings: Any) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks", **EASED}
    set_rows(Phase.DUAL_WRITE)
    snapshot.forget()
    prepare()


def run(*arguments: str) -> tuple[int, str, str]:
    """Return the exit code, what stood on stdout, and the error."""
    out = io.StringIO()
    try:
        call_command("rollout", *arguments, stdout=out, stderr=io.StringIO())
    except CommandError as error:
        return error.returncode, out.getvalue(), str(error)
    return 0, out.getvalue(), ""


def only_in_legacy() -> None:
    with forced_phase(Phase.LEGACY):
        save_state("c", state("a"))


def test_status_says_the_phase_and_since_when() -> None:
    code, out, _ = run("status")
    assert code == 0
    assert out.startswith(f"dual_write, epoch {status().last.epoch}\n")
    assert "rehearsal  dual_write to dual_write" in out
    data = json.loads(run("status", "--json")[1])
    assert data == {
        "phase": "dual_write",
        "mixed": False,
        "emergency": False,
        "retired": False,
        "epoch": status().last.epoch,
        "since": status().since.isoformat(),
        "canary": 100.0,
        "processes": [],
        "switches": {
            **switches_for(Phase.DUAL_WRITE),
            "emergency_rollback": False,
            "performance_monitoring": False,
        },
    }


def test_status_says_what_to_turn_where_the_switches_spell_no_phase() -> None:
    set_rows(Phase.NEW_PRIMARY)
    get_waffle_switch_model()._base_manager.filter(name="use_new_save").update(active=False)
    assert "mixed switches: turn use_new_save on for new_primary\n" in run("status")[1]


def test_check_says_what_every_gate_says() -> None:
    code, out, error = run("check")
    assert (code, error) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["passed", f"{gate}:"]
        for gate in (
            "rehearsed",
            "sync_finished",
            "shadow_reads",
            "errors",
            "latency",
            "foreign_writes",
            "verified",
        )
    ]
    assert out.endswith("passed   verified: everything is in order.\n")
    only_in_legacy()
    code, out, error = run("check")
    assert (code, error) == (5, "a gate refuses: see above.")
    assert out.splitlines()[-2:] == [
        "REFUSED  verified: 1 conversations are not in order: c.",
        "         Run `manage.py conversations sync --to tables`, then `conversations verify`.",
    ]
    code, out, _ = run("check", "--json", "--waive", "verified=known")
    assert code == 0
    assert json.loads(out)["gates"][-1]["evidence"]["ids"] == ["c"]
    assert json.loads(out)["gates"][-1]["waived"] == "known"
    assert run("check", "--to", "legacy")[1] == "passed   legacy_current: legacy is current.\n"


def test_a_refusal_names_the_gate_and_what_to_do() -> None:
    only_in_legacy()
    code, out, error = run("advance")
    assert (code, out) == (5, "")
    assert error.startswith(
        "refused by verified: 1 conversations are not in order: c. Run `manage.py"
    )
    code, out, _ = run("advance", "--json")
    assert (code, json.loads(out)["gates"][-1]["passed"]) == (5, False)
    assert status().phase == Phase.DUAL_WRITE


def test_a_step_records_its_actor_and_its_reason() -> None:
    code, out, _ = run("advance", "--reason", "rehearsed")
    assert code == 0
    assert out.endswith(f"  advance  dual_write to new_reads by {getpass.getuser()}: rehearsed\n")
    assert status().phase == Phase.NEW_READS
    code, out, _ = run("rollback", "--to", "legacy", "--json")
    assert code == 0
    assert [(one["source"], one["target"]) for one in map(json.loads, out.splitlines())] == [
        ("new_reads", "dual_write"),
        ("dual_write", "legacy"),
    ]
    code, out, _ = run("history", "--limit", "2")
    assert [line.split()[0] for line in out.splitlines()] == [
        str(one.epoch) for one in history(limit=2)
    ]


@pytest.mark.parametrize("step", ["emergency", "advance", "rollback", "canary"])
def test_a_reason_of_bytes_that_are_no_text_holds_up_no_step(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal's Latin-1 comes as surrogates, which no database takes."""
    monkeypatch.setattr(getpass, "getuser", lambda: "J\udcfcrgen")
    code, out, error = run(step, *(["50"] if step == "canary" else []), "--reason", "f\udcfcr\0")
    assert (code, error) == (0, "")
    assert r"by J\udcfcrgen: f\udcfcr\x00" in run("history", "--limit", "1")[1], out


def test_a_canary_shows_its_share() -> None:
    code, out, _ = run("canary", "12.5")
    assert code == 0
    assert f"  canary  dual_write to dual_write for 12.5 % by {getpass.getuser()}\n" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("canary", "200"),
        ("canary", "nan"),
        ("advance", "--canary", "100.1"),
        ("check", "--to", "new_only"),
        ("check", "--to", "dual_write"),
        ("rollback", "--to", "new_reads"),
        ("rollback", "--rehearse", "--to", "new_only"),
    ],
)
def test_an_impossible_step_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    before = history()
    assert run(*arguments)[0] == 2
    assert history() == before


def test_a_step_that_waits_for_the_rollout_is_refused() -> None:
    set_rows(Phase.LEGACY)
    assert run("rollback")[::2] == (5, "legacy is not before legacy.")
    set_rows(Phase.NEW_ONLY)
    assert run("advance")[::2] == (5, "new_only is the last phase.")


def test_a_number_of_records_is_a_number() -> None:
    assert run("history", "--limit", "0") == (0, "", "")
    with pytest.raises(CommandError, match="a number from 0"):
        call_command("rollout", "history", "--limit", "-1")


def test_a_waiver_needs_a_reason() -> None:
    for text in ("verified", "verified="):
        assert run("advance", "--waive", text)[::2] == (
            2,
            "--waive needs a reason: GATE=REASON.",
        )


@pytest.mark.parametrize(
    ("text", "waived"),
    [
        ("verified=a=b", {"verified": "a=b"}),
        ("verified:a=b=c", {"verified:a": "b=c"}),
        ('verified:"a"=b', {'verified:"a"': "b"}),
        ("verified:a==b", {"verified:a": "=b"}),
        ('"verified:a=b"=c', {"verified:a=b": "c"}),
        ('"verified:a=b"==c', {"verified:a=b": "=c"}),
        ('"verified:\\"\\\\=\\u00e9"="c"', {'verified:"\\=é': '"c"'}),
    ],
)
def test_a_waiver_is_read_in_one_way(text: str, waived: dict[str, str]) -> None:
    assert waivers_of([text]) == waived


@pytest.mark.parametrize("name", ["a=b", "a=", "==", 'a"=', "a\\=b", 'a"="b', "verified:a=b", "é="])
def test_a_conversation_with_any_id_can_be_waived(name: str) -> None:
    with forced_phase(Phase.LEGACY):
        save_state(name, state("a"))
    quoted = json.dumps(f"verified:{name}")
    assert run("check", "--waive", f"{quoted}=known")[0] == 0
    assert run("advance", "--waive", f"{quoted}=known")[0] == 0
    (gate,) = (each for each in history()[0].gates if each["gate"] == "verified")
    assert gate["evidence"]["waived"] == {name: "known"}


@pytest.mark.parametrize("text", ['"verified', '"verified"', '"verified"=', '"verified"x=y'])
def test_quotes_that_do_not_end_before_a_reason_are_a_usage_error(text: str) -> None:
    assert run("advance", "--waive", text)[0] == 2


def test_an_unknown_gate_cannot_be_waived() -> None:
    code, _, error = run("advance", "--waive", "verifed=typo")
    assert code == 2
    assert error.startswith("there is no gate verifed here: rehearsed, ")


def test_a_failure_shows_in_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    with failing(touches_switches):
        assert run("status")[0] == 1

    def busy(**options: Any) -> None:
        raise FenceBusy

    monkeypatch.setattr(transitions.fence, "close", busy)
    assert run("advance")[0] == 5


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (FenceBusy(), 5, "refused"),
        (TransitionRefused(), 5, "refused"),
        (NoSuchStep(), 2, "error"),
        (UnknownGate(), 2, "error"),
        (SwitchesUnreadable(), 1, "error"),
        (TimeIsUp(), 1, "error"),
        (OperationalError("a row of a user"), 1, "error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("check",),
        ("advance",),
        ("rollback",),
        ("canary", "5"),
        ("emergency",),
        ("resume",),
        ("history",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_with_json_every_failure_is_one_object(
    arguments: tuple[str, ...],
    error: Exception,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raising(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(transitions, arguments[0], raising)
    found, out, text = run(*arguments, "--json")
    assert found == code
    gates = {"gates": []} if said == "refused" else {}
    assert json.loads(out) == {said: text, **gates}
    assert "a row" not in out


def test_with_json_a_waiver_that_cannot_be_read_is_one_object() -> None:
    code, out, error = run("advance", "--waive", "verified", "--json")
    assert (code, json.loads(out)) == (2, {"error": error})


def test_an_emergency_that_cannot_be_recorded_says_so_in_json_too() -> None:
    with failing(lambda sql: sql.startswith('INSERT INTO "rollout_transitions"')):
        code, out, _ = run("emergency", "--json")
    assert (code, json.loads(out)) == (0, {"emergency": True, "recorded": False})
    assert status().last.kind == "noticed"


def test_an_operator_without_a_name_is_recorded_as_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("uid")

    monkeypatch.setattr(getpass, "getuser", nameless)
    run("advance")
    assert history()[0].actor == ""


def test_status_lists_live_processes_and_marks_those_on_an_old_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    epoch = status().last.epoch
    values = {"version": "1.2", "phase": 1, "seen_at": timezone.now()}
    for number, host in enumerate(["web1", "web2"]):
        ReportingProcess.objects.create(
            token=host, host=host, pid=7, epoch=epoch - number, **values
        )
    dead = {**values, "seen_at": timezone.now() - processes.EXPIRY}
    ReportingProcess.objects.create(token="dead", host="web3", pid=7, epoch=epoch, **dead)
    assert "OLD" not in run("status")[1], "the transition is too young to tell"
    monkeypatch.setattr(processes, "GRACE", timedelta(seconds=-1))
    first, second = (line for line in run("status")[1].splitlines() if "process" in line)
    assert first.startswith(f"process web1:7  version 1.2  dual_write, epoch {epoch}, ")
    assert first.endswith(" s ago")
    assert second.endswith(" s ago  ON AN OLD EPOCH")
    found = json.loads(run("status", "--json")[1])["processes"]
    ages = [each.pop("age") for each in found]
    assert all(0 <= age < 10 for age in ages)
    shared = {"pid": 7, "version": "1.2", "phase": "dual_write"}
    assert found == [
        {"host": "web1", "epoch": epoch, "old": False, **shared},
        {"host": "web2", "epoch": epoch - 1, "old": True, **shared},
    ]


def monitored() -> None:
    get_waffle_switch_model()._base_manager.filter(name="performance_monitoring").update(
        active=True
    )


def minute(**numbers: int) -> None:
    now = timezone.now().replace(second=0, microsecond=0)
    MeasuredMinute.objects.create(began_at=now, operation="load", store="legacy", **numbers)


def test_health_says_how_it_is_and_why() -> None:
    monitored()
    minute(count=120, errors=3)
    code, out, error = run("health")
    assert (code, error) == (0, "")
    rate = report().operations[0].rate
    assert out.splitlines() == [
        "warning",
        "warning  errors: load legacy: 2.5% of 120 failed.",
        "tables: answers",
        "legacy: answers",
        "operation store          count errors fallbacks stale  per s   p50   p95   p99 ms",
        f"load      legacy           120      3         0     0 {rate:6.1f}     -     -     -",
    ]
    data = json.loads(run("health", "--json")[1])
    assert data["status"] == "warning"
    assert data["can_serve"] == {"tables": True, "legacy": True}
    assert data["reasons"][0]["slug"] == "errors"
    assert data["operations"][0]["count"] == 120
    assert data["measured"] is True


def test_health_ends_with_3_when_it_is_critical_and_only_then() -> None:
    assert run("health")[::2] == (0, ""), "unknown, for nothing is measured"
    monitored()
    minute(count=20, errors=1)
    code, out, error = run("health")
    assert (code, error) == (3, "critical: see above.")
    assert out.startswith("critical\ncritical errors: load legacy: 5.0% of 20 failed.\n")
    assert run("health", "--json")[0] == 3


def test_health_names_no_conversation() -> None:
    only_in_legacy()
    with forced_phase(Phase.DUAL_WRITE):
        save_state("an id", state("a text"))
    ConversationConflict.rows.create(
        conversation=ConversationState.rows.get(),
        kind="merged",
        reason="a reason",
        revision=1,
        created_at=timezone.now(),
    )
    for arguments in (["health"], ["health", "--json"]):
        code, out, _ = run(*arguments)
        assert code == 3
        assert "conflicts" in out
        assert "an id" not in out
        assert "a text" not in out


def test_health_answers_where_nothing_else_does() -> None:
    with failing(lambda sql: "SELECT" in sql):
        code, out, _ = run("health")
    assert code == 3
    assert "tables: DOES NOT ANSWER" in out
