"""`verify`: compare both stores with their digests and with each other."""

from __future__ import annotations

from argparse import ArgumentParser

from django.core.management.base import CommandError

from conversations.management.subcommands.base import Output, Row, Subcommand, leave_with, with_ids
from conversations.management.subcommands.findings import print_findings
from conversations.management.subcommands.runs import (
    drive,
    leave,
    warn,
    with_workers,
    without_workers,
)
from conversations.rollout import verification
from conversations.rollout.runs import records
from conversations.rollout.verification import Kind, runs
from flags.management.output import DONE, FAILED, MISMATCHES, USAGE


def _verify(
    output: Output,
    *,
    ids: list[str],
    sample: float | None,
    workers: int,
    max_seconds: float | None,
) -> None:
    if ids:
        if sample is not None:
            raise CommandError("--sample draws the ids: name none.", returncode=USAGE)
        without_workers(workers, max_seconds)
        warn(output)
        output.report(_verified(one) for one in verification.verify(ids))
        return
    if sample is not None and not 0 < sample <= 1:
        raise CommandError("--sample is a share above 0 and up to 1.", returncode=USAGE)
    warn(output)
    run = runs.begin(sample=sample)
    again = ["verify", *([] if sample is None else ["--sample", str(sample)])]
    found = drive(output, run, runs.work, again=again, workers=workers, max_seconds=max_seconds)
    tally = records.tally(run)
    codes = {_noted(output, note) for note in tally.notes}
    counts = {_in_words(name): count for name, count in tally.counts.items()}
    output.summary(counts, {"run": run, "state": found.state})
    leave(found)
    if sample is None:
        print_findings(output, quiet=True)
    leave_with(codes)


def _noted(output: Output, note: records.Note) -> int:
    """Print a conversation that is not in order, if it is notable. Returns: its exit code."""
    names = note.count.split("+")
    found = verification.Verified(
        note.conversation_id,
        tuple(Kind[name.upper()] for name in names),
        tuple(note.reason.split("; ")) if note.reason else (),
    )
    row = _verified(found)
    if row.notable:
        output.line(row.text, row.data)
    return row.exit_code


def _in_words(count: str) -> str:
    return ", ".join(Kind[name.upper()] for name in count.split("+"))


def _verified(found: verification.Verified) -> Row:
    text = f"{found.conversation_id}: {', '.join(found.kinds)}"
    code = MISMATCHES if found.mismatched else DONE
    return Row(
        count=found.kinds[0] if len(found.kinds) == 1 else ", ".join(found.kinds),
        text=f"{text} ({'; '.join(found.places)})" if found.places else text,
        data={
            "conversation_id": found.conversation_id,
            "kinds": [kind.name.lower() for kind in found.kinds],
            "places": list(found.places),
        },
        notable=found.mismatched or found.failed or Kind.QUARANTINED in found.kinds,
        exit_code=FAILED if found.failed else code,
    )


def _arguments(parser: ArgumentParser) -> None:
    with_ids(parser)
    parser.add_argument(
        "--sample",
        type=float,
        metavar="SHARE",
        help="Verify this share of the conversations (above 0, up to 1), always the same ones.",
    )
    with_workers(parser)


SUBCOMMANDS = (
    Subcommand(
        "verify", "Compare both stores with their digests and each other.", _verify, _arguments
    ),
)
