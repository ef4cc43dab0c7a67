"""`findings`: facts that a team should know before it trusts the tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from conversations.management.subcommands.base import Output, Subcommand
from conversations.rollout import findings


def print_findings(output: Output, *, quiet: bool = False) -> None:
    """Print the findings; as JSON, a line with the one key "findings".

    With `quiet`, nothing is printed if there are none.
    """
    found = findings.findings()
    asides = findings.quarantined()
    if output.as_json:
        data = asdict(found) | {"asides": [asdict(one) for one in asides]}
        output.stdout.json({"findings": data})
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
    """Yield a line for every count above zero."""
    left = found.leftovers
    last = f", last {found.last_foreign:%Y-%m-%d %H:%M:%S %Z}" if found.last_foreign else ""
    counts = {
        f"written by old code and ingested{last}": found.foreign_writes,
        "written by old code, not ingested yet": found.pending,
        "with messages left out by old code": found.omissions,
        **{f"conflict records: {kind}": count for kind, count in found.conflicts.items()},
        **{f"with blobs set aside: {kind}": count for kind, count in found.quarantined.items()},
        "not carried over by the latest finished sync": len(found.failures),
        "state blobs without a conversation": left.unnamed,
        "metadata rows without an object": left.bare_metadata,
        "state blobs of deleted conversations": left.of_deleted,
        f"overtaken state blobs ({left.overtaken_bytes} bytes)": left.overtaken,
    }
    yield from (f"{count:>8}  {name}" for name, count in counts.items() if count)


def _findings(output: Output) -> None:
    print_findings(output)


SUBCOMMANDS = (
    Subcommand(
        "findings",
        "Report old code's writes, conflicts, blobs that were set aside, and rows no load reads.",
        _findings,
    ),
)
