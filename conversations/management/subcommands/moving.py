"""`import` and `export`: conversations as lines of JSON."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from conversations import formats
from conversations.management.subcommands.base import (
    DONE,
    FAILED,
    Output,
    Row,
    Subcommand,
    with_dry_run,
)

STANDARD = "-"
_BAD_RESULTS = frozenset(
    {
        formats.Result.INVALID,
        formats.Result.REFUSED,
        formats.Result.DELETED,
    }
)


def _import(output: Output, *, path: str, replace: bool, dry_run: bool) -> None:
    with _reading(path) as stream:
        records = formats.read_records(formats.lines_of(stream))
        found = formats.import_records(
            records, replace=replace, dry_run=dry_run, together=formats.TOGETHER
        )
        output.report((_imported(one) for one in found), dry_run=dry_run)


def _imported(found: formats.ImportOutcome) -> Row:
    bad = found.result in _BAD_RESULTS
    about = f" ({found.conversation_id})" if found.conversation_id else ""
    return Row(
        count=found.result,
        text=f"line {found.line}{about}: {found.result}: {found.reason}",
        data={
            "line": found.line,
            "conversation_id": found.conversation_id,
            "result": found.result,
            "reason": found.reason,
        },
        notable=bad or bool(found.reason),
        exit_code=FAILED if bad else DONE,
    )


@contextmanager
def _reading(path: str) -> Iterator[BinaryIO]:
    if path == STANDARD:
        yield sys.stdin.buffer
        return
    with Path(path).open("rb") as file:
        yield file


def _export(output: Output, *, path: str, ids: list[str] | None) -> None:
    lines = formats.export_lines(ids)
    if path == STANDARD:
        for line in lines:
            output.stdout.write(line)
        return
    count = 0
    with formats.open_for_writing(Path(path)) as file:
        for count, line in enumerate(lines, start=1):
            file.write(line.encode("ascii") + b"\n")
            output.progress(count)
    output.summary({"exported": count})


def _import_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", help="A file, gzipped or not, or - for the standard input.")
    parser.add_argument(
        "--replace", action="store_true", help="Save over conversations with other content."
    )
    with_dry_run(parser)


def _export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "path", nargs="?", default=STANDARD, help="A file (.gz: gzipped); - is standard output."
    )
    # An option: an id without a path before it would be taken for the path.
    parser.add_argument(
        "--id",
        action="extend",
        nargs="+",
        dest="ids",
        metavar="ID",
        help="Conversations; all if left out.",
    )


SUBCOMMANDS = (
    Subcommand(
        "import",
        "Create conversations from lines of JSON. May be repeated.",
        _import,
        _import_arguments,
    ),
    Subcommand("export", "Write every conversation as a line of JSON.", _export, _export_arguments),
)
