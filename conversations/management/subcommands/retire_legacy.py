"""`retire-legacy` and `restore-legacy`: the end of a rollout, and the way back from it."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from django.core.management.base import CommandError

from conversations.management.subcommands.base import Output, Row, Subcommand, with_dry_run
from conversations.rollout import retirement
from conversations.rollout.retirement import Removed, Restored, Result
from flags import transitions
from flags.exceptions import FlagsError
from flags.gates import GateResult
from flags.management.output import (
    DONE,
    FAILED,
    PAUSED,
    REFUSED,
    USAGE,
    add_waivers,
    exit_code_of,
    operator_name,
    said_by,
    waivers_of,
)


def _retire(
    output: Output,
    *,
    archive: str | None,
    dry_run: bool,
    yes: bool,
    waive: list[str],
    reason: str,
    max_seconds: float | None,
) -> None:
    if not dry_run and not yes:
        raise CommandError("say --dry-run to see what is removed, or --yes.", returncode=USAGE)
    with _refusals(output):
        held = retirement.holdings()
        _say_what(output, held, dry_run=dry_run)
        if dry_run:
            if not held.retired:
                found = retirement.conditions(waivers_of(waive), progress=output.stderr.write)
                _say_conditions(output, found)
            return
        removed = retirement.retire(
            archive=None if archive is None else Path(archive),
            waive=waivers_of(waive),
            reason=reason,
            actor=operator_name(),
            seconds=max_seconds,
            least=1,
            progress=output.stderr.write,
        )
        output.report(_removed(one) for one in removed)
        if not retirement.finished():
            raise CommandError("it is not finished: run it again.", returncode=PAUSED)


def _restore(output: Output, *, path: str | None, reason: str) -> None:
    failed: CommandError | None = None
    with _refusals(output):
        if path is not None:
            try:
                found = map(_restored, retirement.restore_archive(Path(path)))
                output.report(found, unit="blobs")
            except CommandError as error:
                # Take legacy back in any case: the tables still hold the truth.
                failed = error
        if path is None or transitions.status().retired:
            retirement.restore(reason=reason, actor=operator_name())
    if failed is not None:
        raise failed


@contextmanager
def _refusals(output: Output) -> Iterator[None]:
    """Exit with the code of a refusal of `flags`; with --json, its message is a line of data."""
    try:
        yield
    except FlagsError as error:
        if output.as_json:
            output.line(str(error), said_by(error))
        raise CommandError(str(error), returncode=exit_code_of(error)) from error


def _say_what(output: Output, held: retirement.Holdings, *, dry_run: bool) -> None:
    if not held.removable:
        text = "legacy is a table of your own: it is retired, but nothing of it is removed"
    else:
        text = (
            f"{held.blobs} blobs of {held.conversations} conversations, {held.content_bytes} bytes,"
            f" with {held.metadata_rows} metadata rows"
        )
        if held.unnamed:
            text += f"; {held.unnamed} state blobs name no conversation, and stay"
    tail = "; dry run: nothing is changed" if dry_run else ""
    output.line(f"{text}{tail}", asdict(held) | {"dry_run": dry_run})


def _say_conditions(output: Output, results: list[GateResult]) -> None:
    for result in results:
        verdict = "passed" if result.passed else "waived" if result.waived else "REFUSED"
        output.line(f"{verdict:8} {result.gate}: {result.message}", asdict(result))
    if not all(result.holds for result in results):
        fixes = " ".join(result.fix for result in results if not result.holds)
        raise CommandError(f"it would be refused: {fixes}", returncode=REFUSED)


def _removed(found: Removed) -> Row:
    return Row(
        count="conversations stay" if found.reason else "conversations removed",
        text=f"{found.conversation_id}: stays: {found.reason}",
        data={"conversation_id": found.conversation_id, "blobs": found.blobs}
        | ({"reason": found.reason} if found.reason else {}),
        notable=bool(found.reason),
        exit_code=FAILED if found.reason else DONE,
    )


def _restored(found: Restored) -> Row:
    failed = found.result == Result.FAILED
    return Row(
        count=found.result,
        text=f"blob {found.key} ({found.conversation_id}): {found.result}: {found.reason}",
        data={
            "blob": found.key,
            "conversation_id": found.conversation_id,
            "result": found.result,
            "reason": found.reason,
        },
        notable=failed,
        exit_code=FAILED if failed else DONE,
    )


def _retire_arguments(parser: ArgumentParser) -> None:
    with_dry_run(parser)
    parser.add_argument("--yes", action="store_true", help="Do it: it cannot be undone.")
    parser.add_argument(
        "--archive", metavar="PATH", help="First write every blob there (.gz: gzipped)."
    )
    add_waivers(parser, text="Waive a condition: soak, quarantined or unchanged.")
    parser.add_argument("--reason", default="", help="Why, for the record.")
    parser.add_argument(
        "--max-seconds", type=float, help="Stop removing then; run it again to continue."
    )


def _restore_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "path", nargs="?", help="An archive of retire-legacy; without it no blob is put back."
    )
    parser.add_argument("--reason", default="", help="Why, for the record.")


SUBCOMMANDS = (
    Subcommand(
        "retire-legacy",
        "Give legacy up, and remove its state blobs; see docs/rollout.md.",
        _retire,
        _retire_arguments,
    ),
    Subcommand(
        "restore-legacy",
        "Take legacy back, with the blobs of an archive if one is named.",
        _restore,
        _restore_arguments,
    ),
)
