"""`manage.py conversations`: data on stdout, progress on stderr, exit codes that scripts read."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.test import override_settings
from django.utils import timezone

from conversations.management.subcommands import progress
from conversations.models import ConversationMessage, ConversationState, SyncRun
from conversations.rollout.runs import records, working
from conversations.rollout.sync import runs as sync_runs
from conversations.rollout.verification import runs as verification_runs
from conversations.routing import ids
from conversations.state import AgentState
from conversations.storage import (
    append_messages,
    delete_conversation,
    load_state,
    replace_message,
    save_state,
)
from conversations.stores.chunks.store import ChunkStore
from flags import durations
from flags.phases import Phase
from flags.switches import forced_phase
from memory.models import MemoryChunk
from tests.support.legacy_schema import old_save

pytestmark = pytest.mark.django_db(transaction=True)

SECRET = "nobody reads this on a terminal"


def stored(conversation_id: str, phase: Phase = Phase.DUAL_WRITE) -> None:
    message = {"role": "user", "content": SECRET}
    with forced_phase(phase):
        save_state(conversation_id, AgentState(conversation_history=[message]))


def run(*arguments: str) -> tuple[int, str]:
    """Run `manage.py conversations`. Returns: its exit code, and what it wrote to stdout."""
    out = io.StringIO()
    try:
        call_command("conversations", *arguments, stdout=out, stderr=io.StringIO())
    except CommandError as error:
        return error.returncode, out.getvalue()
    return 0, out.getvalue()


def lines_of_json(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
    return stream


def test_sync_counts_what_it_did() -> None:
    stored("a", Phase.LEGACY)
    stored("b")
    assert run("sync", "--to", "tables") == (0, "       1  taken in\n       1  unchanged\n")
    code, out = run("sync", "--to", "tables", "--json")
    (last,) = lines_of_json(out)
    assert (code, last["counts"], last["state"]) == (0, {"unchanged": 2}, "finished")


def test_sync_of_named_conversations_leaves_the_others() -> None:
    stored("a", Phase.LEGACY)
    stored("b", Phase.LEGACY)
    assert run("sync", "--to", "tables", "b") == (0, "       1  taken in\n")
    assert ConversationState.objects.get().conversation_id == "b"


def test_sync_says_what_it_would_do() -> None:
    stored("a", Phase.LEGACY)
    code, out = run("sync", "--to", "tables", "--dry-run")
    assert (code, out) == (0, "       1  taken in\ndry run: nothing was written\n")
    assert not ConversationState.objects.exists()


@pytest.mark.parametrize("ids", [(), ("a", "b")])
def test_a_dry_run_says_that_what_cannot_be_read_would_fail(ids: tuple[str, ...]) -> None:
    """Not "taken in", which the sync then does not do."""
    stored("a", Phase.LEGACY)
    stored("b", Phase.LEGACY)
    MemoryChunk.objects.filter(metadata__value="a").update(content="{")
    code, out = run("sync", "--to", "tables", "--dry-run", "--json", *ids)
    assert code == 1
    assert lines_of_json(out)[-1]["counts"] == {"failed": 1, "taken in": 1}
    assert not ConversationState.objects.exists()


def test_sync_exits_with_1_and_names_what_failed() -> None:
    stored("a", Phase.LEGACY)
    stored("b", Phase.LEGACY)
    MemoryChunk.objects.filter(metadata__value="a").update(content="{")
    code, out = run("sync", "--to", "tables", "--json")
    failed, counts = lines_of_json(out)
    assert code == 1
    assert (failed["conversation_id"], failed["action"]) == ("a", "failed")
    assert failed["reason_class"] == "unreadable"
    assert counts["counts"] == {"failed": 1, "taken in": 1}


@pytest.mark.parametrize(
    "arguments",
    [
        ("sync",),
        ("sync", "--to", "nowhere"),
        ("verify", "--unknown"),
        ("fly",),
        (),
        # No column holds these: a terminal that is not UTF-8, or a NUL.
        ("sync", "--to", "tables", "\udcfc"),
        ("verify", "good", "\udcfc"),
        ("prune", "a\0b"),
        ("export", "--id", "\udcfc"),
    ],
    ids=lambda arguments: ascii(" ".join(arguments)),
)
def test_unknown_arguments_exit_with_2(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    from django.core.management import execute_from_command_line

    with pytest.raises(SystemExit) as exit_:
        execute_from_command_line(["manage.py", "conversations", *arguments])
    assert exit_.value.code == 2
    assert capsys.readouterr().out == ""


def test_sync_without_a_legacy_store_exits_with_1() -> None:
    with override_settings(CONVERSATIONS={}):
        assert run("sync", "--to", "tables") == (1, "")


def test_a_database_that_does_not_answer_exits_with_1_and_quotes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def down(*args: Any, **options: Any) -> Any:
        raise OperationalError(SECRET)

    monkeypatch.setattr(ids, "in_batches", down)
    monkeypatch.setattr(records, "find_run", down)
    monkeypatch.setattr(working, "find_run", down)
    for arguments in (["sync", "--to", "tables"], ["verify"], ["export"]):
        with pytest.raises(CommandError) as raised:
            call_command("conversations", *arguments, stdout=io.StringIO())
        assert raised.value.returncode == 1
        assert str(raised.value) == (
            "the database did not answer (OperationalError): try again, finished work is kept."
        )


def test_verify_exits_with_0_when_both_stores_are_equal() -> None:
    stored("a")
    assert run("verify") == (0, "       1  equal in both stores\n")


def test_verify_exits_with_3_and_names_the_mismatch_without_its_content() -> None:
    stored("a")
    stored("b")
    ConversationMessage.rows.filter(conversation__conversation_id="b").update(content="other")
    code, out = run("verify")
    assert code == 3
    assert out.startswith(
        "b: different in the two stores, rows that differ from their digests or counts"
        " (conversation_history[0]; messages: sequence 1, version of revision 1)\n"
    )
    assert SECRET not in out
    code, out = run("verify", "--json")
    mismatch, counts, reported = lines_of_json(out)
    assert (code, list(reported)) == (3, ["findings"])
    assert mismatch == {
        "conversation_id": "b",
        "kinds": ["different", "digest_lies"],
        "places": ["conversation_history[0]", "messages: sequence 1, version of revision 1"],
    }
    assert sum(counts["counts"].values()) == 2


def test_verify_of_named_conversations_looks_at_no_others() -> None:
    stored("a")
    stored("b", Phase.LEGACY)
    assert run("verify", "a")[0] == 0
    assert run("verify", "b")[0] == 3
    assert run("verify", "nowhere") == (1, "nowhere: in no store\n       1  in no store\n")


def test_a_failed_verification_outweighs_a_mismatch() -> None:
    stored("a", Phase.LEGACY)
    assert run("verify", "a", "nowhere")[0] == 1


def test_an_export_goes_to_stdout_and_comes_back_from_stdin(stdin: io.BytesIO) -> None:
    stored("a")
    with forced_phase(Phase.DUAL_WRITE):
        append_messages("a", [{"role": "assistant", "content": "b"}], keys=["k"])
        replace_message("a", "k", {"role": "assistant", "content": "c"})
    code, exported = run("export")
    assert (code, len(exported.splitlines())) == (0, 1)
    call_command("flush", verbosity=0, interactive=False)
    stdin.write(exported.encode())
    stdin.seek(0)
    assert run("import", "-") == (0, "       1  created\n")
    assert run("export", "-") == (0, exported)


def test_a_gzipped_export_is_the_same_file_after_a_round_trip(tmp_path: Path) -> None:
    for name in "abc":
        stored(name)
    first, second = tmp_path / "first.jsonl.gz", tmp_path / "second.jsonl.gz"
    assert run("export", str(first)) == (0, "       3  exported\n")
    call_command("flush", verbosity=0, interactive=False)
    assert run("import", str(first))[0] == 0
    assert run("export", str(second))[0] == 0
    assert first.read_bytes() == second.read_bytes()
    assert len(gzip.decompress(first.read_bytes()).splitlines()) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, second.name]


def test_an_export_of_named_conversations_leaves_out_the_others() -> None:
    stored("a")
    stored("b")
    (line,) = lines_of_json(run("export", "--id", "b")[1])
    assert line["conversation_id"] == "b"


def test_an_export_that_fails_leaves_no_file_that_looks_whole(tmp_path: Path) -> None:
    stored("a")
    path = tmp_path / "out.jsonl"
    path.write_text("the last good export\n")
    assert run("export", str(path), "--id", "a", "nowhere")[0] == 1
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [
        ("out.jsonl", "the last good export\n")
    ]


def test_an_import_can_be_repeated(tmp_path: Path) -> None:
    stored("a")
    path = tmp_path / "out.jsonl"
    run("export", str(path))
    before = list(ConversationMessage.rows.values())
    code, out = run("import", str(path), "--json")
    assert (code, len(lines_of_json(out))) == (0, 1)
    assert list(ConversationMessage.rows.values()) == before


def test_an_import_names_bad_lines_and_exits_with_1(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    good = {"id": "good", "messages": [{"role": "user", "content": "hello"}]}
    bad = {"id": "bad", "messages": {"role": 7, "content": SECRET}}
    path.write_text(f"{json.dumps(bad)}\n\n{{\n{json.dumps(good)}\n")
    code, out = run("import", str(path))
    assert code == 1
    first, second = out.splitlines()[:2]
    assert first.startswith("line 1: ")
    assert "messages: is a dict, not a list" in first
    assert second.startswith("line 3: ")
    assert SECRET not in out
    assert load_state("good").conversation_history == good["messages"]


def test_an_import_refuses_other_content_unless_it_may_replace_it(tmp_path: Path) -> None:
    stored("a", Phase.NEW_ONLY)
    path = tmp_path / "out.jsonl"
    run("export", str(path))
    with forced_phase(Phase.NEW_ONLY):
        append_messages("a", [{"role": "user", "content": "more"}])
    assert run("import", str(path))[0] == 1
    assert len(load_state("a").conversation_history) == 2
    assert run("import", str(path), "--replace")[0] == 0
    assert len(load_state("a").conversation_history) == 1


def test_an_import_brings_nothing_back_that_was_deleted(tmp_path: Path) -> None:
    stored("a")
    path = tmp_path / "out.jsonl"
    run("export", str(path))
    with forced_phase(Phase.DUAL_WRITE):
        delete_conversation("a")
    assert run("import", str(path), "--replace")[0] == 1
    assert not ConversationState.objects.exists()
    assert not ChunkStore().owner("a")[0]


def test_an_import_that_is_only_tried_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('[{"role": "user", "content": "hello"}]\n')
    code, out = run("import", str(path), "--dry-run")
    assert (code, out.splitlines()[-1]) == (0, "dry run: nothing was written")
    assert not ConversationState.objects.exists()
    assert not MemoryChunk.objects.exists()


def test_a_file_that_is_not_there_exits_with_1() -> None:
    assert run("import", "/nowhere/at/all.jsonl") == (1, "")


def test_prune_counts_versions_and_says_what_it_would_do() -> None:
    stored("a", Phase.NEW_ONLY)
    with forced_phase(Phase.NEW_ONLY):
        for text in "bcd":
            replace_message("a", 1, {"role": "user", "content": text})
    pruning = override_settings(CONVERSATIONS={"LEGACY": "memory_chunks", "KEEP_VERSIONS": 1})
    with pruning:
        assert run("prune", "--dry-run") == (
            0,
            "       2  superseded versions pruned\ndry run: nothing was written\n",
        )
        assert ConversationMessage.rows.count() == 4
        assert run("prune") == (0, "       2  superseded versions pruned\n")
        assert run("prune") == (0, "nothing to do\n")
    assert ConversationMessage.rows.count() == 2


def test_progress_goes_to_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    from conversations.management.subcommands import base

    monkeypatch.setattr(base, "PROGRESS_EVERY", 2)
    names = list("abcde")
    for name in names:
        old_save(connection, name, None, AgentState(user_input=name).to_dict())
    out, errors = io.StringIO(), io.StringIO()
    call_command("conversations", "sync", "--to", "tables", *names, stdout=out, stderr=errors)
    assert out.getvalue() == "       5  taken in\n"
    # What earlier tests rolled back may have left tables large, and without statistics.
    said = [line for line in errors.getvalue().splitlines() if not line.startswith("warning: ")]
    assert said == ["2 conversations", "4 conversations"]


def test_a_sync_at_scale_says_how_it_stands_and_is_resumed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "FIRST_BATCH", 1)
    for name in ("a", "b", "c"):
        stored(name, Phase.LEGACY)
    assert run("sync", "--to", "tables", "--workers", "1", "--max-seconds", "0")[0] == 4
    (found,) = lines_of_json(run("runs", "--json")[1])
    assert (found["state"], found["target"], found["conversations"]) == ("running", "tables", 1)
    number = str(found["run"])
    assert run("pause", number) == (0, "")
    assert run("sync", "--to", "tables", "--workers", "1")[0] == 4
    assert run("resume", number) == (0, "")
    code, out = run("sync", "--to", "tables", "--workers", "1")
    assert (code, out) == (0, "       3  taken in\n")
    assert run("runs")[1] == (
        f"run {number}, to tables: finished, 100%, 3 conversations, 0 failed\n"
    )
    assert run("cancel", number)[0] == 1
    assert run("cancel", "4711")[0] == 1


@pytest.mark.parametrize(
    ("module", "command"),
    [(sync_runs, ["sync", "--to", "tables"]), (verification_runs, ["verify"])],
)
def test_a_cancelled_run_is_not_done(
    module: Any, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored("a", Phase.LEGACY)
    work = module.work

    def cancelled(run: int, **options: Any) -> Any:
        records.cancel(run)
        return work(run, **options)

    monkeypatch.setattr(module, "work", cancelled)
    assert run(*command)[0] == 1


def test_a_sync_at_scale_names_what_failed() -> None:
    stored("a", Phase.LEGACY)
    MemoryChunk.objects.update(content="{")
    code, out = run("sync", "--to", "tables", "--workers", "1")
    assert code == 1
    assert out.startswith("a: failed: legacy chunk ")
    assert out.endswith("       1  failed\n")
    assert "finished, 100%, 1 conversations, 1 failed" in run("runs")[1]


@pytest.mark.parametrize("more", [["a"], ["--dry-run"]])
def test_a_sync_at_scale_is_of_everything(more: list[str]) -> None:
    assert run("sync", "--to", "tables", "--workers", "2", *more)[0] == 2
    assert run("sync", "--to", "tables", "--workers", "0")[0] == 2


def test_other_processes_work_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    class Helper:
        def __init__(self, command: list[str], **options: Any) -> None:
            started.append(command[1:])

        def wait(self) -> None:
            return

    monkeypatch.setattr(subprocess, "Popen", Helper)
    stored("a", Phase.LEGACY)
    assert run("sync", "--to", "tables", "--workers", "3", "--max-seconds", "60")[0] == 0
    command = "-m django conversations sync --to tables --workers 1 --max-seconds 60.0"
    host = ["--settings", "tests.support.settings", "--pythonpath", sys.path[0] or "."]
    assert started == [[*command.split(), *host]] * 2


def test_an_estimate_says_what_is_counted_and_what_is_measured() -> None:
    for name in ("a", "b", "c"):
        stored(name, Phase.LEGACY)
    code, out = run("sync", "--to", "tables", "--estimate")
    assert code == 0
    assert out.split()[0] == "3"
    assert [line.rsplit("(", 1)[1].split(" on ")[0] for line in out.splitlines()] == [
        "counted)",
        "counted)",
        "measured",
        "measured",
        "measured",
    ]
    (found,) = lines_of_json(run("sync", "--to", "tables", "--estimate", "--json")[1])
    assert (found["conversations"], found["sampled"], found["target"]) == (3, 3, "tables")
    assert not ConversationState.objects.exists()
    assert run("sync", "--to", "tables", "--estimate", "a")[0] == 2
    assert run("sync", "--to", "tables", "--estimate", "--dry-run")[0] == 2


def test_a_verification_is_left_and_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "FIRST_BATCH", 1)
    for name in ("a", "b", "c"):
        stored(name)
    assert run("verify", "--max-seconds", "0") == (4, "       1  equal in both stores\n")
    assert "verification: running" in run("runs")[1]
    code, out = run("verify", "--workers", "1")
    assert (code, out) == (0, "       3  equal in both stores\n")
    assert "verification: finished, 100%, 3 conversations" in run("runs")[1]


def test_a_sample_is_verified() -> None:
    stored("a")
    stored("b")
    assert run("verify", "--sample", "0.3") == (0, "       1  equal in both stores\n")
    for arguments in (["--sample", "0"], ["--sample", "2"], ["--sample", "0.5", "a"]):
        assert run("verify", *arguments)[0] == 2
    assert run("verify", "a", "--max-seconds", "3")[0] == 2


def test_a_whole_verification_ends_with_the_findings() -> None:
    stored("a")
    old_save(connection, "a", None, {"conversation_history": [], "user_input": SECRET})
    code, out = run("verify")
    assert code == 0
    assert "written by old code, not ingested yet" in out
    assert SECRET not in out


def test_runs_say_why_they_wait_and_that_they_are_stuck() -> None:
    stored("a", Phase.LEGACY)
    sync_runs.begin("tables")
    now = timezone.now()
    SyncRun.rows.update(waiting="saves take 100 ms, 10 ms before the run", waited_at=now)
    assert run("runs")[1].endswith("; waits: saves take 100 ms, 10 ms before the run\n")
    SyncRun.rows.update(waiting="", waited_at=None, started_at=datetime(2024, 5, 1, tzinfo=UTC))
    assert run("runs")[1].endswith("; stuck since 2024-05-01 00:00:00 UTC, no worker is at work\n")
    assert lines_of_json(run("runs", "--json")[1])[0]["stuck"] is True


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("rich", [True, False])
def test_a_run_shows_a_bar_on_a_terminal_and_lines_elsewhere(
    terminal: bool, rich: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        stored(name, Phase.LEGACY)
    if not rich:
        monkeypatch.setattr(progress, "rich_progress", None)
    errors = Terminal() if terminal else io.StringIO()
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    call_command("conversations", "sync", "--to", "tables", stdout=out, stderr=errors)
    assert out.getvalue() == "       2  taken in\n"
    shown = errors.getvalue()
    # What is shown last is the end, not where the run stood a moment ago.
    last = [line for line in shown.splitlines() if "run " in line][-1]
    assert "2 conversations, " in last
    assert "done" in last
    assert ("\x1b[" in shown or "━" in shown) is (terminal and rich)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (119, "119 s"), (720, "12 min"), (12_600, "3.5 h"), (604_800, "7 days")],
)
def test_durations_are_said_as_people_do(seconds: float, words: str) -> None:
    assert durations.in_words(seconds) == words
