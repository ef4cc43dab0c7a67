"""The shared parts of the commands: how they write lines and report errors.

People read lines on a terminal; programs read data. A line may hold ids, names and reasons that
callers chose. None of these controls the terminal or looks like another line.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser, OutputWrapper

from flags.causes import clean
from flags.texts import MOST, escaped, quoted, shown


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
