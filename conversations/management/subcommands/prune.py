"""`prune`: remove superseded messages by the retention rule, or overtaken blobs."""

from __future__ import annotations

import time
from argparse import ArgumentParser

from django.core.management.base import CommandError

from conversations import conf
from conversations.management.subcommands.base import (
    Output,
    Row,
    Subcommand,
    with_dry_run,
    with_ids,
)
from conversations.rollout import overtaken
from conversations.writing import retention
from flags.management.output import DONE, FAILED, PAUSED, USAGE

_STAYS = (
    "the newest state of a conversation always stays, since old code reads it, and so do states"
    " that old code wrote; nothing reads an earlier one, except a process that began to read it"
    " before {keep} later ones were saved"
)


def _prune(
    output: Output,
    *,
    ids: list[str],
    dry_run: bool,
    overtaken_blobs: bool,
    keep: int | None,
    max_seconds: float | None,
) -> None:
    if overtaken_blobs:
        _prune_blobs(output, ids, keep=keep, dry_run=dry_run, max_seconds=max_seconds)
        return
    if keep is not None or max_seconds is not None:
        raise CommandError(
            "--keep and --max-seconds belong to --overtaken-blobs.", returncode=USAGE
        )
    found = retention.prune(ids or None, dry_run=dry_run)
    output.report((_pruned(one) for one in found), dry_run=dry_run)


def _pruned(found: retention.Pruned) -> Row:
    return Row(
        count="failed" if found.reason else "superseded versions pruned",
        text=f"{found.conversation_id}: {found.reason or f'{found.versions} versions'}",
        data={"conversation_id": found.conversation_id}
        | ({"reason": found.reason} if found.reason else {"versions": found.versions}),
        notable=bool(found.reason),
        exit_code=FAILED if found.reason else DONE,
    )


def _prune_blobs(
    output: Output,
    ids: list[str],
    *,
    keep: int | None,
    dry_run: bool,
    max_seconds: float | None,
) -> None:
    keep = conf.get("KEEP_BLOBS") if keep is None else keep
    if keep is None or keep < 1:
        raise CommandError(
            "say how many blobs of each conversation stay: --keep N, 1 or more.", returncode=USAGE
        )
    output.stderr.write(_STAYS.format(keep=keep))
    ends = float("inf") if max_seconds is None else time.monotonic() + max_seconds
    stopped = False

    def until() -> bool:
        nonlocal stopped
        stopped = time.monotonic() >= ends
        return stopped

    counts = {"overtaken blobs pruned": 0, "bytes of them": 0}
    failed = 0
    pruned = overtaken.prune_overtaken(ids or None, keep=keep, dry_run=dry_run, until=until)
    for number, found in enumerate(pruned, start=1):
        counts["overtaken blobs pruned"] += found.blobs
        counts["bytes of them"] += found.bytes
        if found.reason:
            failed += 1
            data = {"conversation_id": found.conversation_id, "reason": found.reason}
            output.line(f"{found.conversation_id}: {found.reason}", data)
        output.progress(number)
    if failed:
        counts["failed"] = failed
    more = {"keep": keep, **({"dry_run": True} if dry_run else {})}
    output.summary({name: count for name, count in counts.items() if count}, more)
    if failed:
        raise CommandError("not everything was done: see above.", returncode=FAILED)
    if stopped:
        raise CommandError("it is not finished: run it again.", returncode=PAUSED)


def _arguments(parser: ArgumentParser) -> None:
    with_ids(parser)
    with_dry_run(parser)
    parser.add_argument(
        "--overtaken-blobs",
        action="store_true",
        help="Remove blobs of ours in memory_chunks that later ones have overtaken, instead.",
    )
    parser.add_argument(
        "--keep",
        type=int,
        metavar="N",
        help="How many blobs of a conversation stay; KEEP_BLOBS if left out. The newest stays.",
    )
    parser.add_argument(
        "--max-seconds", type=float, help="Stop after the present batch then; run it again."
    )


SUBCOMMANDS = (
    Subcommand(
        "prune",
        "Remove superseded messages by the retention rule, or overtaken blobs of legacy.",
        _prune,
        _arguments,
    ),
)
