"""`import` and `export`: conversations as lines of JSON."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from django.core.management.base import CommandError

from conversations import formats
from conversations.exceptions import InvalidOwner, InvalidState
from conversations.management.subcommands.base import (
    Output,
    Row,
    Subcommand,
    leave_with,
    named_id,
    with_dry_run,
)
from flags.management.output import DONE, FAILED, USAGE
from flags.texts import shown

STANDARD = "-"
MOST_ERRORS = 20
_UNREAD = object()
_BAD_RESULTS = frozenset(
    {
        formats.Result.INVALID,
        formats.Result.REFUSED,
        formats.Result.DELETED,
    }
)


def _import(
    output: Output,
    *,
    path: str,
    replace: bool,
    replace_any_owner: bool,
    user_map: str | None,
    assign: str | None,
    ownerless: bool,
    errors: int,
    dry_run: bool,
) -> None:
    if errors < 0:
        raise CommandError("--errors is how many are printed: 0 (all) or more.", returncode=USAGE)
    owners = _owners(user_map, assign, ownerless=ownerless)
    seen: Counter[str] = Counter()
    with _reading(path) as stream, _named(output):
        found = formats.import_records(
            formats.read_records(stream),
            replace=replace or replace_any_owner,
            any_owner=replace_any_owner,
            dry_run=dry_run,
            together=formats.TOGETHER,
            owners=owners,
        )
        try:
            output.report(
                (_imported(one, seen) for one in found), dry_run=dry_run, most=errors or None
            )
        finally:
            _say_of_owners(output, seen)


@contextmanager
def _named(output: Output) -> Iterator[None]:
    """Report a problem of the file itself among the data, too."""
    try:
        yield
    except InvalidState as error:
        if output.as_json:
            output.line(str(error), {"error": str(error)})
        raise


def _owners(user_map: str | None, assign: str | None, *, ownerless: bool) -> formats.Owners:
    """Return the owners that the options name. Raises: CommandError, before reading the file."""
    try:
        assigned = None if assign is None else formats.user_key(assign)
        mapping = {} if user_map is None else _mapping(Path(user_map))
    except InvalidOwner as error:
        raise CommandError(str(error), returncode=USAGE) from error
    return formats.Owners(mapping, assigned, ownerless)


def _mapping(path: Path) -> dict[str, str | None]:
    """Return a file's users, and the primary key here of each, or None for no owner."""
    file, found = shown(str(path)), _UNREAD
    with suppress(ValueError):
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    if found is _UNREAD:
        raise CommandError(f"--user-map: {file} is no JSON.", returncode=USAGE)
    if not isinstance(found, dict) or not all(
        isinstance(name, str | None) for name in found.values()
    ):
        raise CommandError(
            f"--user-map: {file} is no JSON object of users of the file and users here"
            ' (a name, "pk:" and a primary key, or null for no owner).',
            returncode=USAGE,
        )
    keys: dict[str, str | None] = {}
    problems = []
    for said, name in found.items():
        try:
            keys[said] = None if name is None else formats.user_key(name)
        except InvalidOwner as error:
            problems.append(str(error))
    if problems:
        more = f" And {len(problems) - MOST_ERRORS} more." if len(problems) > MOST_ERRORS else ""
        raise InvalidOwner(f"--user-map: {' '.join(problems[:MOST_ERRORS])}{more}")
    return keys


def _say_of_owners(output: Output, seen: Counter[str]) -> None:
    """Report conversations without an owner, and what to do about owners who are not here."""
    if seen["ownerless"]:
        count = seen["ownerless"]
        output.stderr.write(
            f"{count} of the created conversations have no owner: see claim_conversation."
        )
    if seen["unknown_owner"] or seen["no_owner"]:
        output.stderr.write(
            "Owners that are not here: name them with --user-map FILE, give their conversations to"
            " one user with --assign USER, or leave them without an owner with --ownerless."
        )


def _imported(found: formats.ImportOutcome, seen: Counter[str]) -> Row:
    bad = found.result in _BAD_RESULTS
    seen[found.reason_class] += 1
    seen["ownerless"] += found.ownerless
    about = f" ({found.conversation_id})" if found.conversation_id else ""
    place = f", {found.place}" if found.place else ""
    return Row(
        count=found.result,
        text=f"line {found.line}{place}{about}: {found.result}: {found.reason}",
        data={
            "line": found.line,
            "place": found.place,
            "conversation_id": found.conversation_id,
            "result": found.result,
            "reason": found.reason,
            "reason_class": found.reason_class,
        },
        notable=bad or bool(found.reason),
        exit_code=FAILED if bad else DONE,
    )


@contextmanager
def _reading(path: str) -> Iterator[BinaryIO]:
    if path == STANDARD:
        yield sys.stdin.buffer
        return
    with formats.opened(Path(path)) as file:
        yield file


def _export(output: Output, *, path: str, ids: list[str] | None) -> None:
    """Write every readable conversation, name the others, and then fail."""
    failures = _Failures(output, to_stdout=output.as_json and path != STANDARD)
    lines = formats.export_lines(ids, failed=failures.tell)
    if path == STANDARD:
        for line in lines:
            output.stdout.data(line)
    else:
        count = _write(output, Path(path), lines, failures)
        output.summary({"exported": count} | failures.counted())
    leave_with([FAILED] if failures.count else [])


@dataclass(slots=True)
class _Failures:
    """Conversations that were not exported: each is named at once, on stderr or among the data."""

    output: Output
    to_stdout: bool
    count: int = 0

    def tell(self, found: formats.NotExported) -> None:
        self.count += 1
        text = f"{found.conversation_id}: not exported ({found.reason_class}): {found.reason}"
        stream = self.output.stdout if self.to_stdout else self.output.stderr
        if self.output.as_json:
            stream.json(asdict(found))
        else:
            stream.write(text)

    def counted(self) -> dict[str, int]:
        return {"not exported": self.count} if self.count else {}


def _write(output: Output, path: Path, lines: Iterator[str], failures: _Failures) -> int:
    """Write these lines to the file. Returns: how many."""
    count = 0
    with formats.open_for_writing(path) as file:
        for count, line in enumerate(lines, start=1):
            file.write(line.encode("ascii") + b"\n")
            output.progress(count)
        if failures.count and not count:
            # An existing file may be an earlier export that worked: do not replace it.
            raise CommandError("nothing could be exported: see above.", returncode=FAILED)
    return count


def _import_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", help="A file, gzipped or not, or - for the standard input.")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="Save over conversations with other content, if the owner is the same.",
    )
    parser.add_argument(
        "--replace-any-owner",
        action="store_true",
        help="The same, also if they belong to another owner here, who stays their owner.",
    )
    parser.add_argument(
        "--user-map",
        metavar="FILE",
        help="A JSON object: the file's name of a user, and a user here (null: no owner).",
    )
    owners = parser.add_mutually_exclusive_group()
    owners.add_argument(
        "--assign",
        metavar="USER",
        help='The new owner of conversations without an owner here: a name, or "pk:7".',
    )
    owners.add_argument(
        "--ownerless", action="store_true", help="Leave these without an owner instead."
    )
    parser.add_argument(
        "--errors",
        type=int,
        default=MOST_ERRORS,
        metavar="N",
        help=f"How many errors are printed; 0: all. Default: {MOST_ERRORS}.",
    )
    with_dry_run(parser)


def _export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "path", nargs="?", default=STANDARD, help="A file (.gz: gzipped); - is standard output."
    )
    # An option, because an id without a path before it would be taken for the path.
    parser.add_argument(
        "--id",
        action="extend",
        nargs="+",
        type=named_id,
        dest="ids",
        metavar="ID",
        help="Conversations; all if left out.",
    )


SUBCOMMANDS = (
    Subcommand(
        "import",
        "Create conversations from JSON Lines or a JSON document. May be repeated.",
        _import,
        _import_arguments,
    ),
    Subcommand("export", "Write every conversation as a line of JSON.", _export, _export_arguments),
)
