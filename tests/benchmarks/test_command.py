"""`manage.py bench` prints tables or JSON, and touches nothing."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from benchmarks.contenders import FLOOR
from benchmarks.results import Results
from benchmarks.rounds import Run
from benchmarks.workloads import WORKLOADS
from conversations.models import ConversationState
from tests.benchmarks.said import MESSAGES

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.django_db(transaction=True)


def bench(*arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    try:
        call_command("bench", *arguments, stdout=out, stderr=io.StringIO())
    except CommandError as error:
        return error.returncode, f"{out.getvalue()}{error}"
    return 0, out.getvalue()


def test_the_command_prints_tables_or_json_and_touches_nothing(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(
        json.dumps({"id": "a", "messages": [m for _ in range(4) for m in MESSAGES[:3]]})
    )
    arguments = ("--workload", "short", "--rounds", "1", "--data", str(path))
    code, text = bench(*arguments)
    assert code == 0, text
    assert "save: tables / floor" in text
    assert str(tmp_path) not in text
    code, text = bench(*arguments, "--json", "--prepare", "--note", "the machine was shared")
    assert code == 0, text
    found = json.loads(text)
    assert found["note"] == "the machine was shared"
    assert found["command"].endswith("--data chats.jsonl --prepare")
    assert [workload["workload"] for workload in found["workloads"]] == ["short"]
    counts = {
        (measure["operation"], measure["contender"]): measure["statements"]
        for measure in found["workloads"][0]["measures"]
    }
    assert counts["load", FLOOR] == (1 if connection.vendor == "postgresql" else 2)
    assert [row.conversation_id for row in ConversationState.objects.all()] == ["here before"]


def test_the_command_refuses_senseless_arguments(tmp_path: Path) -> None:
    assert bench("--rounds", "0")[0] == 2
    assert bench("--from", "a.json")[0] == 2
    assert bench("--data", str(tmp_path / "absent.jsonl"))[0] == 1
    assert bench("--chart", "x.svg", "--from", str(tmp_path / "absent.json"))[0] == 1


def test_the_command_fails_when_something_is_not_equal(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unequal(run: Run, results: Results) -> None:
        results.problems.append("a does not load as put in")

    row = replace(WORKLOADS["short"], play=unequal, beside=None)
    monkeypatch.setitem(WORKLOADS, "short", row)  # type: ignore[arg-type]
    code, text = bench("--workload", "short")
    assert (code, "1 things were not equal" in text) == (1, True)


def test_the_page_of_results_says_what_each_workload_does() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.M))
    assert said == {name: workload.says for name, workload in WORKLOADS.items()}


def test_kept_results_name_their_command_and_report_no_loss() -> None:
    paths = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert paths
    for path in paths:
        run = json.loads(path.read_text(encoding="utf-8"))
        assert {"date", "command", "data", "database", "python", "django", "cores"} <= set(run)
        assert run["command"].startswith("manage.py bench ")
        for found in run["workloads"]:
            assert found["workload"] in WORKLOADS
            assert found["problems"] == []
            assert found["figures"]


def test_every_command_of_the_page_of_results_measures_a_workload() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    table = page.partition("## Figures")[2].partition("## ")[0]
    named = re.findall(
        r"^\|.*\| `--workload (\w+)(?: --prepare)?` \| \d{4}-\d\d-\d\d \|$", table, re.M
    )
    assert len(named) == len(re.findall(r"^\|", table, re.M)) - 2
    assert set(named) == set(WORKLOADS)
