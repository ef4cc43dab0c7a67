"""`manage.py conversations`: sync, verify, import, export and prune. The packages do the work."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import Error

from conversations import formats, retention, sync, verification
from conversations.exceptions import ConversationStoreError
from conversations.sync import runs

# Exit codes, the same for every command of the project.
DONE, FAILED, USAGE, MISMATCHES, PAUSED = 0, 1, 2, 3, 4

STANDARD = "-"
# How many conversations pass between two lines of progress.
PROGRESS_EVERY = 500
_BAD_RESULTS = frozenset(
    {
        formats.Result.INVALID,
        formats.Result.REFUSED,
        formats.Result.DELETED,
    }
)


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation of a report: counted as `count`, and printed if `notable`."""

    count: str
    text: str
    data: dict[str, Any]
    notable: bool
    exit_code: int = DONE


class Command(BaseCommand):
    help = "Sync, verify, import, export and prune conversations."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="command", required=True, metavar="command")
        for name, help_text, arguments in _COMMANDS:
            child = commands.add_parser(name, help=help_text, description=help_text)
            arguments(child)

    def handle(self, *args: Any, command: str, **options: Any) -> None:
        run: Callable[..., None] = getattr(self, f"_{command}")
        try:
            run(**options)
        except (ConversationStoreError, OSError) as error:
            raise CommandError(str(error), returncode=FAILED) from error
        except Error as error:
            # Its text may quote rows.
            reason = f"the database did not answer ({type(error).__name__}): try again,"
            raise CommandError(f"{reason} what was done is kept.", returncode=FAILED) from error

    def _sync(
        self,
        *,
        to: str,
        ids: list[str],
        dry_run: bool,
        workers: int | None,
        max_seconds: float | None,
        **options: Any,
    ) -> None:
        if workers is not None:
            if ids or dry_run or workers < 1:
                raise CommandError(
                    "--workers carries over everything: name no ids, and no --dry-run.",
                    returncode=USAGE,
                )
            self._at_scale(to, workers, max_seconds, as_json=options["as_json"])
            return
        found = sync.sync(to, ids or None, dry_run=dry_run)
        self._report((_synced(one) for one in found), options, dry_run=dry_run)

    def _at_scale(self, to: str, workers: int, max_seconds: float | None, *, as_json: bool) -> None:
        """Begin or join a run, with other processes beside this one."""
        run = runs.begin(to)
        beside = [_helper(to, max_seconds) for _ in range(workers - 1)]
        try:
            for _ in runs.work(run, seconds=max_seconds):
                found = runs.progress(run)
                left = found.seconds_left
                more = "" if left is None else f", about {left:.0f} s left"
                self.stderr.write(f"run {run}: {found.conversations} conversations{more}")
        finally:
            for process in beside:
                process.wait()
        for conversation_id, reason in runs.failures(run):
            self.stdout.write(f"{conversation_id}: failed: {reason}")
        found = runs.progress(run)
        self._standing(found, as_json=as_json)
        if found.failed or found.state == "failed":
            raise CommandError("not everything was done: see above.", returncode=FAILED)
        if found.state in ("running", "paused"):
            raise CommandError(f"run {run} is not finished: begin it again.", returncode=PAUSED)

    def _runs(self, *, as_json: bool, **options: Any) -> None:
        for found in runs.latest():
            self._standing(found, as_json=as_json)

    def _pause(self, *, run: int, **options: Any) -> None:
        runs.pause(run)

    def _resume(self, *, run: int, **options: Any) -> None:
        runs.resume(run)

    def _cancel(self, *, run: int, **options: Any) -> None:
        runs.cancel(run)

    def _standing(self, found: runs.Progress, *, as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps(asdict(found), default=str))
            return
        share = "" if found.share is None else f", {found.share:.0%}"
        reason = f": {found.reason}" if found.reason else ""
        self.stdout.write(
            f"run {found.run} to {found.target}: {found.state}{share},"
            f" {found.conversations} conversations, {found.failed} failed{reason}"
        )

    def _verify(self, *, ids: list[str], **options: Any) -> None:
        self._report((_verified(one) for one in verification.verify(ids or None)), options)

    def _prune(self, *, ids: list[str], dry_run: bool, **options: Any) -> None:
        found = retention.prune(ids or None, dry_run=dry_run)
        self._report((_pruned(one) for one in found), options, dry_run=dry_run)

    def _import(self, *, path: str, replace: bool, dry_run: bool, **options: Any) -> None:
        with _reading(path) as stream:
            records = formats.read_records(formats.lines_of(stream))
            found = formats.import_records(records, replace=replace, dry_run=dry_run)
            self._report((_imported(one) for one in found), options, dry_run=dry_run)

    def _export(self, *, path: str, ids: list[str] | None, **options: Any) -> None:
        lines = formats.export_lines(ids)
        if path == STANDARD:
            for line in lines:
                self.stdout.write(line)
            return
        count = 0
        with formats.open_for_writing(Path(path)) as file:
            for count, line in enumerate(lines, start=1):
                file.write(line.encode("ascii") + b"\n")
                self._progress(count)
        self._summary({"exported": count}, {}, as_json=options["as_json"])

    def _report(
        self, rows: Iterable[Row], options: dict[str, Any], *, dry_run: bool = False
    ) -> None:
        """Print what is notable and the counts; leave with the worst exit code.

        A mismatch outweighs nothing but success: what failed was not looked at.
        """
        counts: Counter[str] = Counter()
        codes = set()
        for number, row in enumerate(rows, start=1):
            counts[row.count] += row.data.get("versions", 1)
            codes.add(row.exit_code)
            if row.notable and options["as_json"]:
                self.stdout.write(json.dumps(row.data))
            elif row.notable:
                self.stdout.write(row.text)
            self._progress(number)
        more = {"dry_run": True} if dry_run else {}
        self._summary(counts, more, as_json=options["as_json"])
        if FAILED in codes:
            raise CommandError("not everything was done: see above.", returncode=FAILED)
        if MISMATCHES in codes:
            raise CommandError("there are mismatches: see above.", returncode=MISMATCHES)

    def _progress(self, number: int) -> None:
        if number % PROGRESS_EVERY == 0:
            self.stderr.write(f"{number} conversations", self.style.NOTICE)

    def _summary(self, counts: dict[str, int], more: dict[str, Any], *, as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps({"counts": dict(counts), **more}))
            return
        for name, count in counts.items():
            self.stdout.write(f"{count:>8}  {name}")
        if not counts:
            self.stdout.write("nothing to do")
        if more.get("dry_run"):
            self.stdout.write("dry run: nothing was written")


def _helper(to: str, max_seconds: float | None) -> subprocess.Popen[bytes]:
    """Start another process that works on the same run."""
    more = [] if max_seconds is None else ["--max-seconds", str(max_seconds)]
    host = ["--settings", str(settings.SETTINGS_MODULE), "--pythonpath", sys.path[0] or "."]
    command = ["conversations", "sync", "--to", to, "--workers", "1", *more, *host]
    return subprocess.Popen(
        [sys.executable, "-m", "django", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


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
        notable=found.mismatched or found.failed or verification.Kind.QUARANTINED in found.kinds,
        exit_code=FAILED if found.failed else code,
    )


def _pruned(found: retention.Pruned) -> Row:
    return Row(
        count="failed" if found.reason else "superseded versions pruned",
        text=f"{found.conversation_id}: {found.reason or f'{found.versions} versions'}",
        data={"conversation_id": found.conversation_id}
        | ({"reason": found.reason} if found.reason else {"versions": found.versions}),
        notable=bool(found.reason),
        exit_code=FAILED if found.reason else DONE,
    )


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


def _common(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", dest="as_json", help="Print lines of JSON instead of text."
    )


def _with_ids(parser: ArgumentParser) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID", help="Conversations; all if left out.")


def _dry(parser: ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="Say what would be done.")


def _sync_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--to", required=True, choices=list(map(str, sync.Target)), help="The store to bring up."
    )
    _with_ids(parser)
    _dry(parser)
    parser.add_argument(
        "--workers",
        type=int,
        help="At scale: begin or join a run that so many processes share, and that is resumed.",
    )
    parser.add_argument(
        "--max-seconds", type=float, help="With --workers: stop behind the batch that is at work."
    )
    _common(parser)


def _run_argument(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=int, help="The number of the run: see `conversations runs`.")
    _common(parser)


def _verify_arguments(parser: ArgumentParser) -> None:
    _with_ids(parser)
    _common(parser)


def _import_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", help="A file, gzipped or not, or - for the standard input.")
    parser.add_argument(
        "--replace", action="store_true", help="Save over conversations with other content."
    )
    _dry(parser)
    _common(parser)


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
    _common(parser)


def _prune_arguments(parser: ArgumentParser) -> None:
    _with_ids(parser)
    _dry(parser)
    _common(parser)


_COMMANDS: tuple[tuple[str, str, Callable[[ArgumentParser], None]], ...] = (
    ("sync", "Bring the tables, or legacy, to the truth. May be repeated.", _sync_arguments),
    ("runs", "List the syncs at scale, the latest first.", _common),
    ("pause", "Let the workers of a run stop behind their batches.", _run_argument),
    ("resume", "Let the workers of a run go on; begin them again.", _run_argument),
    ("cancel", "End a run; what it carried over stays.", _run_argument),
    ("verify", "Hold both stores against their digests and each other.", _verify_arguments),
    ("import", "Create conversations from lines of JSON. May be repeated.", _import_arguments),
    ("export", "Write every conversation as a line of JSON.", _export_arguments),
    ("prune", "Remove superseded messages by the retention rule.", _prune_arguments),
)
