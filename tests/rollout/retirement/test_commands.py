"""`conversations retire-legacy` and `restore-legacy`: their texts and exit codes."""

from __future__ import annotations

import io
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection

from flags import transitions
from flags.exceptions import FenceBusy
from tests.commands.test_conversations import run
from tests.support.factories import state
from tests.support.legacy_schema import old_save
from tests.support.retirement import CHUNKS, state_chunks, written

pytestmark = pytest.mark.django_db(transaction=True)


def test_the_command_says_what_goes_and_wants_a_yes(tmp_path: Path) -> None:
    written("c")
    assert run("retire-legacy")[0] == 2
    code, out = run("retire-legacy", "--dry-run")
    assert code == 0
    assert "2 blobs of 1 conversations" in out
    assert "dry run: nothing is changed" in out
    assert "passed   verified" in out
    assert not transitions.status().retired
    assert state_chunks() == 2
    path = tmp_path / "archive.jsonl.gz"
    code, out = run("retire-legacy", "--yes", "--archive", str(path), "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1]) == {"counts": {"conversations removed": 1}}
    assert path.exists()
    assert "legacy is retired" in status_text()
    assert run("retire-legacy", "--yes")[0] == 0
    code, out = run("restore-legacy", str(path))
    assert (code, out) == (0, "       2  blobs restored\n       1  conversations in all\n")
    assert "legacy is retired" not in status_text()
    assert run("restore-legacy")[0] == 5


def status_text() -> str:
    out = io.StringIO()
    call_command("rollout", "status", stdout=out)
    return out.getvalue()


def test_the_command_refuses_with_five_and_pauses_with_four(settings: Any) -> None:
    settings.CONVERSATIONS = CHUNKS | {"RETIRE_AFTER": timedelta(days=7)}
    written("c", "d")
    code, out = run("retire-legacy", "--dry-run")
    assert code == 5
    assert "REFUSED  soak" in out
    assert run("retire-legacy", "--yes")[0] == 5
    assert run("retire-legacy", "--yes", "--waive", "soak")[0] == 2
    assert run("retire-legacy", "--yes", "--waive", "verified=x")[0] == 2
    code, out = run("retire-legacy", "--yes", "--json")
    assert code == 5
    said = json.loads(out.splitlines()[-1])
    assert said["refused"].startswith("refused by soak: ")
    assert [gate["gate"] for gate in said["gates"] if not gate["passed"]] == ["soak"]
    waived = ("--waive", "soak=a rehearsal")
    # One of them went: a loop over calls that are too short comes to its end.
    code, out = run("retire-legacy", "--yes", *waived, "--max-seconds", "0")
    assert (code, out.splitlines()[-1]) == (4, "       1  conversations removed")
    assert run("retire-legacy", "--yes", *waived)[0] == 0
    old_save(connection, "late", None, state("late").to_dict())
    code, out = run("retire-legacy", "--yes")
    assert code == 1
    assert "late: stays: only legacy holds it" in out


def test_with_json_a_busy_fence_is_a_line_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(**options: Any) -> None:
        raise FenceBusy

    written("c")
    monkeypatch.setattr(transitions.fence, "close", busy)
    code, out = run("retire-legacy", "--yes", "--json")
    assert (code, json.loads(out.splitlines()[-1])) == (
        5,
        {"refused": str(FenceBusy()), "gates": []},
    )
