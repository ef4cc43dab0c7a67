"""Runs at scale: processes that share one, and `runs`, `pause`, `resume` and `cancel`."""

from __future__ import annotations

import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from django.conf import settings
from django.core.management.base import CommandError

from conversations.management.subcommands.base import Output, Subcommand
from conversations.management.subcommands.progress import shown, standstill
from conversations.rollout import statistics
from conversations.rollout.runs import progress, records
from flags.management.output import FAILED, PAUSED, USAGE

# How often the display is updated, which costs three queries.
SHOW_EVERY_SECONDS = 0.2


class Work(Protocol):
    """A function that works on a run: `conversations.rollout.sync.runs.work` and its like."""

    def __call__(self, run: int, *, seconds: float | None = None) -> Iterable[Any]: ...


def drive(
    output: Output,
    run: int,
    work: Work,
    *,
    again: Sequence[str],
    workers: int,
    max_seconds: float | None,
) -> progress.Progress:
    """Work on a run, with other processes beside this one. Returns: its progress after that.

    `again` is the sub-command, with its options, that joins the run.

    Raises: CommandError if there is no worker.
    """
    if workers < 1:
        raise CommandError("--workers is a number from 1.", returncode=USAGE)
    beside = [_helper(again, max_seconds) for _ in range(workers - 1)]
    with shown(output.stderr) as bar:
        try:
            shown_at = float("-inf")
            for _ in work(run, seconds=max_seconds):
                if time.monotonic() - shown_at >= SHOW_EVERY_SECONDS:
                    bar.update(progress.progress(run))
                    shown_at = time.monotonic()
        finally:
            for process in beside:
                process.wait()
        found = progress.progress(run)
        bar.finish(found)
    return found


def warn(output: Output) -> None:
    """Warn on stderr if missing statistics would make a walk over everything slow."""
    missing = statistics.warning()
    if missing:
        output.stderr.write(f"warning: {missing}")


def leave(found: progress.Progress) -> None:
    """Raise the CommandError of an unfinished run."""
    if found.state == "failed":
        raise CommandError("not everything was done: see above.", returncode=FAILED)
    if found.state == "cancelled":
        raise CommandError(
            f"run {found.run} was cancelled before its end: its work stays.", returncode=FAILED
        )
    if found.state in ("running", "paused"):
        raise CommandError(f"run {found.run} is not finished: begin it again.", returncode=PAUSED)


def _helper(again: Sequence[str], max_seconds: float | None) -> subprocess.Popen[bytes]:
    """Start another process that works on the same run."""
    more = [] if max_seconds is None else ["--max-seconds", str(max_seconds)]
    host = ["--settings", str(settings.SETTINGS_MODULE), "--pythonpath", sys.path[0] or "."]
    command = ["conversations", *again, "--workers", "1", *more, *host]
    return subprocess.Popen(
        [sys.executable, "-m", "django", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def with_workers(parser: ArgumentParser) -> None:
    """Add the options of runs at scale."""
    parser.add_argument(
        "--workers", type=int, default=1, help="How many processes share the run. Default: 1."
    )
    parser.add_argument(
        "--max-seconds",
        type=float,
        help="Stop after the present batch then; call it again to resume the run.",
    )


def without_workers(workers: int, max_seconds: float | None) -> None:
    """Raise a CommandError for options that only a run over everything has."""
    if workers != 1 or max_seconds is not None:
        raise CommandError(
            "--workers and --max-seconds are for a run over everything, which writes its record:"
            " name no ids, and no --dry-run or --estimate.",
            returncode=USAGE,
        )


def standing(output: Output, found: progress.Progress) -> None:
    """Write a run's progress."""
    share = "" if found.share is None else f", {found.share:.0%}"
    reason = f": {found.reason}" if found.reason else ""
    what = found.target if found.target == "verification" else f"to {found.target}"
    output.line(
        f"run {found.run}, {what}: {found.state}{share}, {found.conversations} conversations,"
        f" {found.failed} failed{reason}{standstill(found)}",
        asdict(found) | {"stuck": found.stuck},
    )


def _runs(output: Output) -> None:
    for found in progress.latest():
        standing(output, found)


def _change(change: Callable[[int], None]) -> Callable[..., None]:
    def run_it(output: Output, *, run: int) -> None:
        change(run)

    return run_it


def _of_a_run(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=int, help="The number of the run: see `conversations runs`.")


SUBCOMMANDS = (
    Subcommand("runs", "List the syncs and verifications, the latest first.", _runs),
    Subcommand(
        "pause",
        "Make the workers of a run stop after their batches.",
        _change(records.pause),
        _of_a_run,
    ),
    Subcommand(
        "resume",
        "Let a run's workers continue; begin them again.",
        _change(records.resume),
        _of_a_run,
    ),
    Subcommand("cancel", "End a run; its work stays.", _change(records.cancel), _of_a_run),
)
