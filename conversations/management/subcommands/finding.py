"""`findings`: what a team should know before it trusts the tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from conversations import findings
from conversations.management.subcommands.base import Output, Subcommand


def print_findings(output: Output, *, quiet: bool = False) -> None:
    """Print what was found; as JSON, a line with the one key "findings".

    With `quiet`, where nothing was found nothing is said.
    """
    found = findings.findings()
    asides = findings.quarantined()
    if output.as_json:
        data = asdict(found) | {"asides": [asdict(one) for one in asides]}
        output.stdout.write(json.dumps({"findings": data}, default=str))
        return
    lines = list(_lines(found))
    if not lines and not quiet:
        lines = ["nothing to report"]
    for line in lines:
        output.stdout.write(line)
    for one in asides:
        output.stdout.write(f"{one.conversation_id}: {one.records} set aside: {one.reason}")
    for note in found.failures:
        output.stdout.write(f"{note.conversation_id}: not carried over: {note.reason}")


def _lines(found: findings.Findings) -> Iterator[str]:
    """Yield a line for everything that is not zero."""
    left = found.leftovers
    last = f", last {found.last_foreign:%Y-%m-%d %H:%M:%S %Z}" if found.last_foreign else ""
    counts = {
        f"written by old code and taken in{last}": found.foreign_writes,
        "written by old code, not taken in yet": found.pending,
        "of which old code left messages out": found.omissions,
        **{f"conflict records: {kind}": count for kind, count in found.conflicts.items()},
        **{f"with blobs set aside: {kind}": count for kind, count in found.quarantined.items()},
        "not carried over by the latest finished sync": len(found.failures),
        "state blobs without a conversation": left.unnamed,
        "metadata rows that belong to nothing": left.bare_metadata,
        "state blobs of deleted conversations": left.of_deleted,
        f"overtaken state blobs ({left.overtaken_bytes} bytes)": left.overtaken,
    }
    yield from (f"{count:>8}  {name}" for name, count in counts.items() if count)


def _findings(output: Output) -> None:
    print_findings(output)


SUBCOMMANDS = (
    Subcommand(
        "findings",
        "Report old code's writes, conflicts, what was set aside, and what no load reads.",
        _findings,
    ),
)
