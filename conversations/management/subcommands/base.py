"""The shared parts of all sub-commands: reports, counts, progress and arguments.

Data goes to stdout, as text or as lines of JSON; progress goes to stderr.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.core.management.base import CommandError

from conversations.content.codec import storable
from flags.management.output import DONE, FAILED, MISMATCHES, Lines
from flags.texts import quoted

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
    """The streams of a sub-command. With `as_json`, every line of stdout is a JSON value."""

    stdout: Lines
    stderr: Lines
    as_json: bool = False

    def line(self, text: str, data: Mapping[str, Any]) -> None:
        """Write a line of data: its text, or its JSON."""
        if self.as_json:
            self.stdout.json(data)
        else:
            self.stdout.write(text)

    def progress(self, number: int, *, unit: str = "conversations") -> None:
        """Say now and then how many of the counted units are done."""
        if number % PROGRESS_EVERY == 0:
            self.stderr.write(f"{number} {unit}")

    def report(
        self,
        rows: Iterable[Row],
        *,
        dry_run: bool = False,
        most: int | None = None,
        unit: str = "conversations",
    ) -> None:
        """Print the first `most` notable rows, and the counts; exit with the worst code.

        `unit` is the meaning of a row. If that is not a conversation, the number of conversations
        is printed beside the counts.

        A failure outweighs a mismatch, since a failed row was not checked.
        """
        counts: Counter[str] = Counter()
        codes, names = set(), set()
        notable = 0
        for number, row in enumerate(rows, start=1):
            counts[row.count] += row.data.get("versions", 1)
            codes.add(row.exit_code)
            notable += row.notable
            if row.notable and (most is None or notable <= most):
                self.line(row.text, row.data)
            names.add(row.data.get("conversation_id"))
            self.progress(number, unit=unit)
        if most is not None and notable > most:
            self.line(f"and {notable - most} more", {"more": notable - most})
        more: dict[str, Any] = {"dry_run": True} if dry_run else {}
        if unit != "conversations":
            more |= {"unit": unit, "conversations": len(names - {None, ""})}
        self.summary(counts, more)
        leave_with(codes)

    def summary(self, counts: Mapping[str, int], more: Mapping[str, Any] | None = None) -> None:
        """Print counts, and any other facts about them (`dry_run`)."""
        more = more or {}
        if self.as_json:
            self.stdout.json({"counts": dict(counts), **more})
            return
        unit = f"{more['unit']} " if "unit" in more else ""
        for name, count in counts.items():
            self.stdout.write(f"{count:>8}  {unit}{name}")
        if counts and unit:
            self.stdout.write(f"{more['conversations']:>8}  conversations in all")
        if not counts:
            self.stdout.write("nothing to do")
        if more.get("dry_run"):
            self.stdout.write("dry run: nothing was written")


def leave_with(codes: Iterable[int]) -> None:
    """Raise the CommandError of the worst of these exit codes, unless all are DONE."""
    found = set(codes)
    if FAILED in found:
        raise CommandError("not everything was done: see above.", returncode=FAILED)
    if MISMATCHES in found:
        raise CommandError("there are mismatches: see above.", returncode=MISMATCHES)


@dataclass(frozen=True, slots=True)
class Subcommand:
    """One sub-command: `run(output, **options)` runs it, `arguments` adds its own options."""

    name: str
    help: str
    run: Callable[..., None]
    arguments: Callable[[ArgumentParser], None] = lambda parser: None


def with_ids(parser: ArgumentParser) -> None:
    """Add the argument for conversations."""
    parser.add_argument(
        "ids", nargs="*", type=named_id, metavar="ID", help="Conversations; all if left out."
    )


def named_id(text: str) -> str:
    """Return an id of a command line. Raises: ArgumentTypeError if no store can hold it."""
    if not storable(text):
        raise ArgumentTypeError(f"{quoted(text)} is no id: are the terminal's texts UTF-8?")
    return text


def with_dry_run(parser: ArgumentParser) -> None:
    """Add --dry-run."""
    parser.add_argument("--dry-run", action="store_true", help="Say what would be done.")
