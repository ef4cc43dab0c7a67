"""`sync` and its runs: bring the tables, or legacy, to the truth."""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentParser
from dataclasses import asdict

from django.conf import settings
from django.core.management.base import CommandError

from conversations import sync
from conversations.management.subcommands.base import (
    DONE,
    FAILED,
    PAUSED,
    USAGE,
    Output,
    Row,
    Subcommand,
    with_dry_run,
    with_ids,
)
from conversations.sync import runs


def _sync(
    output: Output,
    *,
    to: str,
    ids: list[str],
    dry_run: bool,
    workers: int | None,
    max_seconds: float | None,
) -> None:
    if workers is not None:
        if ids or dry_run or workers < 1:
            raise CommandError(
                "--workers carries over everything: name no ids, and no --dry-run.",
                returncode=USAGE,
            )
        _at_scale(output, to, workers, max_seconds)
        return
    found = sync.sync(to, ids or None, dry_run=dry_run)
    output.report((_synced(one) for one in found), dry_run=dry_run)


def _synced(found: sync.Synced) -> Row:
    failed = found.action == sync.Action.FAILED
    text = f"{found.conversation_id}: {found.action}"
    return Row(
        count=found.action,
        text=f"{text}: {found.reason}" if found.reason else text,
        data={"conversation_id": found.conversation_id, "action": found.action}
        | ({"reason": found.reason} if found.reason else {}),
        notable=failed,
        exit_code=FAILED if failed else DONE,
    )


def _at_scale(output: Output, to: str, workers: int, max_seconds: float | None) -> None:
    """Begin or join a run, with other processes beside this one."""
    run = runs.begin(to)
    beside = [_helper(to, max_seconds) for _ in range(workers - 1)]
    try:
        for _ in runs.work(run, seconds=max_seconds):
            found = runs.progress(run)
            left = found.seconds_left
            more = "" if left is None else f", about {left:.0f} s left"
            output.stderr.write(f"run {run}: {found.conversations} conversations{more}")
    finally:
        for process in beside:
            process.wait()
    for conversation_id, reason in runs.failures(run):
        output.stdout.write(f"{conversation_id}: failed: {reason}")
    found = runs.progress(run)
    _standing(output, found)
    if found.failed or found.state == "failed":
        raise CommandError("not everything was done: see above.", returncode=FAILED)
    if found.state in ("running", "paused"):
        raise CommandError(f"run {run} is not finished: begin it again.", returncode=PAUSED)


def _helper(to: str, max_seconds: float | None) -> subprocess.Popen[bytes]:
    """Start another process that works on the same run."""
    more = [] if max_seconds is None else ["--max-seconds", str(max_seconds)]
    host = ["--settings", str(settings.SETTINGS_MODULE), "--pythonpath", sys.path[0] or "."]
    command = ["conversations", "sync", "--to", to, "--workers", "1", *more, *host]
    return subprocess.Popen(
        [sys.executable, "-m", "django", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _standing(output: Output, found: runs.Progress) -> None:
    share = "" if found.share is None else f", {found.share:.0%}"
    reason = f": {found.reason}" if found.reason else ""
    output.line(
        f"run {found.run} to {found.target}: {found.state}{share},"
        f" {found.conversations} conversations, {found.failed} failed{reason}",
        asdict(found),
    )


def _runs(output: Output) -> None:
    for found in runs.latest():
        _standing(output, found)


def _pause(output: Output, *, run: int) -> None:
    runs.pause(run)


def _resume(output: Output, *, run: int) -> None:
    runs.resume(run)


def _cancel(output: Output, *, run: int) -> None:
    runs.cancel(run)


def _sync_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--to", required=True, choices=list(map(str, sync.Target)), help="The store to bring up."
    )
    with_ids(parser)
    with_dry_run(parser)
    parser.add_argument(
        "--workers",
        type=int,
        help="At scale: begin or join a run that so many processes share, and that is resumed.",
    )
    parser.add_argument(
        "--max-seconds", type=float, help="With --workers: stop behind the batch that is at work."
    )


def _of_a_run(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=int, help="The number of the run: see `conversations runs`.")


SUBCOMMANDS = (
    Subcommand(
        "sync",
        "Bring the tables, or legacy, to the truth. May be repeated.",
        _sync,
        _sync_arguments,
    ),
    Subcommand("runs", "List the syncs at scale, the latest first.", _runs),
    Subcommand("pause", "Let the workers of a run stop behind their batches.", _pause, _of_a_run),
    Subcommand("resume", "Let the workers of a run go on; begin them again.", _resume, _of_a_run),
    Subcommand("cancel", "End a run; what it carried over stays.", _cancel, _of_a_run),
)
