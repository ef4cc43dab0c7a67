"""`sync`: bring the tables, or legacy, to the truth."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import asdict

from django.core.management.base import CommandError

from conversations.management.subcommands.base import (
    Output,
    Row,
    Subcommand,
    leave_with,
    with_dry_run,
    with_ids,
)
from conversations.management.subcommands.runs import (
    drive,
    leave,
    warn,
    with_workers,
    without_workers,
)
from conversations.rollout import sync
from conversations.rollout.runs import records
from conversations.rollout.sync import estimating, planning, runs
from flags import durations
from flags.management.output import DONE, FAILED, USAGE


def _sync(
    output: Output,
    *,
    to: str,
    ids: list[str],
    dry_run: bool,
    estimate: bool,
    workers: int,
    max_seconds: float | None,
) -> None:
    if estimate and (ids or dry_run):
        raise CommandError(
            "--estimate is for everything: name no ids, and no --dry-run.", returncode=USAGE
        )
    if ids or dry_run or estimate:
        without_workers(workers, max_seconds)
    warn(output)
    if estimate:
        _estimate(output, to)
    elif ids:
        output.report(map(_synced, sync.sync(to, ids, dry_run=dry_run)), dry_run=dry_run)
    elif dry_run:
        counts = planning.plan(to, progress=output.progress)
        output.summary({str(name): count for name, count in counts.items()}, {"dry_run": True})
        leave_with([FAILED] if counts[sync.Action.FAILED] else [])
    else:
        _at_scale(output, to, workers, max_seconds)


def _at_scale(output: Output, to: str, workers: int, max_seconds: float | None) -> None:
    """Begin or join a run, with other processes beside this one."""
    run = runs.begin(to)
    again = ["sync", "--to", to]
    found = drive(output, run, runs.work, again=again, workers=workers, max_seconds=max_seconds)
    tally = records.tally(run)
    for note in tally.notes:
        data = {
            "conversation_id": note.conversation_id,
            "action": note.count,
            "reason": note.reason,
            "reason_class": note.reason_class,
        }
        output.line(f"{note.conversation_id}: {note.count}: {note.reason}", data)
    output.summary(tally.counts, {"run": run, "state": found.state})
    leave(found)
    leave_with([FAILED] if tally.notes else [])


def _estimate(output: Output, to: str) -> None:
    found = estimating.estimate(to)
    if output.as_json:
        output.stdout.json(asdict(found))
        return
    for line in _in_words(found):
        output.stdout.write(line)


def _in_words(found: estimating.Estimate) -> Iterator[str]:
    measured = f"measured on {found.sampled} of them, carried over and rolled back"
    yield f"{found.conversations:>8}  conversations to carry over (counted)"
    yield f"{_size(found.legacy_bytes):>8}  in legacy's blobs of all conversations (counted)"
    if found.overtaken:
        yield (
            f"{found.overtaken:>8}  of legacy's blobs are overtaken by later ones,"
            f" {_size(found.overtaken_bytes)} (counted); each save in the dual phases adds one:"
            " see `conversations prune --overtaken-blobs`"
        )
    if not found.sampled:
        return
    yield f"{_size(found.disk_bytes):>8}  more on disk ({measured}{found.disk_note})"
    yield f"{_size(found.wal_bytes):>8}  of write-ahead log ({measured}{found.wal_note})"
    yield f"{durations.in_words(found.seconds):>8}  with one worker ({measured})"


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 10_000:
            return f"{count} {unit}"
        count //= 1000
    return f"{count} TB"


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


def _sync_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--to", required=True, choices=list(map(str, sync.Target)), help="The store to bring up."
    )
    with_ids(parser)
    with_dry_run(parser)
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="Measure on a sample how much a sync would do, and what it would cost.",
    )
    with_workers(parser)


SUBCOMMANDS = (
    Subcommand(
        "sync",
        "Bring the tables, or legacy, to the truth. May be repeated.",
        _sync,
        _sync_arguments,
    ),
)
