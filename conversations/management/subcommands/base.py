"""What every sub-command shares: exit codes, reports, counts, progress and common arguments.

Data goes to stdout, as text or as lines of JSON; progress goes to stderr.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.core.management.base import CommandError, OutputWrapper

# Exit codes, the same for every command of the project.
DONE, FAILED, USAGE, MISMATCHES, PAUSED, REFUSED = 0, 1, 2, 3, 4, 5

# How many conversations pass between two lines of progress.
PROGRESS_EVERY = 500


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation of a report: counted as `count`, and printed if `notable`."""

    count: str
    text: str
    data: dict[str, Any]
    notable: bool
    exit_code: int = DONE


@dataclass(frozen=True, slots=True)
class Output:
    """Where a sub-command writes. With `as_json`, every line of stdout is a JSON value."""

    stdout: OutputWrapper
    stderr: OutputWrapper
    as_json: bool = False

    def line(self, text: str, data: Mapping[str, Any]) -> None:
        """Write a line of data: its text, or the JSON of it."""
        self.stdout.write(json.dumps(data, default=str) if self.as_json else text)

    def progress(self, number: int) -> None:
        """Say now and then how many conversations are done."""
        if number % PROGRESS_EVERY == 0:
            self.stderr.write(f"{number} conversations")

    def report(self, rows: Iterable[Row], *, dry_run: bool = False) -> None:
        """Print what is notable and the counts; leave with the worst exit code.

        A mismatch outweighs nothing but success: what failed was not looked at.
        """
        counts: Counter[str] = Counter()
        codes = set()
        for number, row in enumerate(rows, start=1):
            counts[row.count] += row.data.get("versions", 1)
            codes.add(row.exit_code)
            if row.notable:
                self.line(row.text, row.data)
            self.progress(number)
        self.summary(counts, {"dry_run": True} if dry_run else {})
        leave_with(codes)

    def summary(self, counts: Mapping[str, int], more: Mapping[str, Any] | None = None) -> None:
        """Print counts, and what else there is to say of them (`dry_run`)."""
        more = more or {}
        if self.as_json:
            self.stdout.write(json.dumps({"counts": dict(counts), **more}))
            return
        for name, count in counts.items():
            self.stdout.write(f"{count:>8}  {name}")
        if not counts:
            self.stdout.write("nothing to do")
        if more.get("dry_run"):
            self.stdout.write("dry run: nothing was written")


def leave_with(codes: Iterable[int]) -> None:
    """Raise the CommandError of the worst of these exit codes, if one is not DONE."""
    found = set(codes)
    if FAILED in found:
        raise CommandError("not everything was done: see above.", returncode=FAILED)
    if MISMATCHES in found:
        raise CommandError("there are mismatches: see above.", returncode=MISMATCHES)


@dataclass(frozen=True, slots=True)
class Subcommand:
    """One sub-command: `run(output, **options)` does it, `arguments` adds its own options."""

    name: str
    help: str
    run: Callable[..., None]
    arguments: Callable[[ArgumentParser], None] = lambda parser: None


def with_ids(parser: ArgumentParser) -> None:
    """Add the conversations that are meant."""
    parser.add_argument("ids", nargs="*", metavar="ID", help="Conversations; all if left out.")


def with_dry_run(parser: ArgumentParser) -> None:
    """Add --dry-run."""
    parser.add_argument("--dry-run", action="store_true", help="Say what would be done.")
