"""The shared parts of the commands: how they write lines and report errors.

People read lines on a terminal; programs read data. A line may hold ids, names and reasons that
callers chose. None of these controls the terminal or looks like another line.
"""

from __future__ import annotations

import getpass
import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser, OutputWrapper

from flags.causes import clean
from flags.exceptions import (
    FenceBusy,
    FlagsError,
    NoSuchStep,
    TransitionRefused,
    UnknownGate,
    UnreadableWaiver,
)
from flags.gates import GateResult
from flags.texts import MOST, escaped, quoted, shown

# Exit codes, the same for every command of the project. MISMATCHES is a finding, also a critical
# health, so that a pipeline may stop there.
DONE, FAILED, USAGE, MISMATCHES, PAUSED, REFUSED = 0, 1, 2, 3, 4, 5


class Lines(OutputWrapper):
    """A command's stream: `write` writes a line for people, `data` a line for programs."""

    @classmethod
    def of(cls, stream: OutputWrapper) -> Lines:
        """Return a stream of lines over the same output."""
        made = cls(vars(stream)["_out"])
        made.style_func = stream.style_func
        return made

    def write(self, msg: str = "", style_func: Any = None, ending: str | None = None) -> Any:
        """Write one line, with control characters escaped."""
        super().write(escaped(msg), style_func, ending)

    def data(self, line: str) -> None:
        """Write a line of data unchanged, such as one of an export."""
        super().write(line)

    def json(self, value: Any) -> None:
        """Write a line of JSON: printable ASCII, as json escapes everything else."""
        self.data(json.dumps(value, default=str))


class ShortParser(CommandParser):
    """A parser that repeats only the ends of a refused argument."""

    given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = sys.argv[1:] if args is None else args
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> Any:
        words = {word for each in self.given for word in (each, each.partition("=")[2])}
        for word in sorted(filter(_is_long, words), key=len, reverse=True):
            message = message.replace(repr(word), quoted(word)).replace(word, shown(word))
        try:
            super().error(escaped(message))
        except CommandError as error:
            # argparse's error quotes the whole argument.
            error.__context__ = None
            raise


def _is_long(word: str) -> bool:
    return len(word) > MOST


class Command(BaseCommand):
    """A command of the project; a subclass implements `run`."""

    stdout: Lines
    stderr: Lines

    def add_arguments(self, parser: ArgumentParser) -> None:
        # Django makes the parser; parsers of sub-commands get the same class.
        parser.__class__ = ShortParser

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout, self.stderr = Lines.of(self.stdout), Lines.of(self.stderr)
        outer = sys.exception()
        try:
            self.run(**options)
        except CommandError as error:
            error.args = (escaped(str(error)),)
            clean(error, outer=outer)
            raise

    def run(self, *args: Any, **options: Any) -> None:
        """Do the work of the command."""
        raise NotImplementedError


def text_of(error: Exception) -> str:
    """Return a command's text for an error of ours, or for a system error about a file."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {quoted(str(error.filename))}"
    return str(error)


def gates(results: Sequence[GateResult]) -> list[dict[str, Any]]:
    """Return the JSON of the answers of gates."""
    return [asdict(result) for result in results]


def add_waivers(parser: ArgumentParser, *, text: str = "") -> None:
    """Add the option that overrules gates; `waivers_of` reads its values."""
    parser.add_argument(
        "--waive",
        action="append",
        default=[],
        metavar="GATE=REASON",
        help=text
        or "Overrule a gate that refuses, GATE:ID for one conversation of it. Put a name with"
        """ a "=" in double quotes, as in JSON: --waive '"verified:a=b"=REASON'.""",
    )


def exit_code_of(error: FlagsError) -> int:
    """Return the exit code of a command that raised this error."""
    if isinstance(error, (NoSuchStep, UnknownGate)):
        return USAGE
    return REFUSED if isinstance(error, (TransitionRefused, FenceBusy)) else FAILED


def said_by(error: FlagsError) -> dict[str, Any]:
    """Return the JSON of an error: "refused" with the answers of the gates, or "error"."""
    if exit_code_of(error) != REFUSED:
        return {"error": str(error)}
    return {"refused": str(error), "gates": gates(getattr(error, "results", ()))}


def operator_name() -> str:
    """Return the system's name of the user who runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user may have no name.
        return ""


def waivers_of(chosen: Sequence[str]) -> dict[str, str]:
    """Return the reasons by gate, from texts such as "soak=rehearsed on a copy".

    The name ends at the first "=". A name in double quotes ends with them, so it may hold a "=":
    '"verified:a=b"=why'. No gate's own name begins with a quote.

    Raises: UnreadableWaiver.
    """
    waived = dict(_waiver(text) for text in chosen)
    if not all(waived.values()):
        raise UnreadableWaiver
    return waived


def _waiver(text: str) -> tuple[str, str]:
    if not text.startswith('"'):
        name, _, reason = text.partition("=")
        return name, reason
    with suppress(ValueError):
        name, end = json.JSONDecoder().raw_decode(text)
        return name, text[end + 1 :] if text[end:].startswith("=") else ""
    # Not in a handler: json's error holds the text, and would become the context.
    raise UnreadableWaiver("--waive: quote the name as in JSON.")
