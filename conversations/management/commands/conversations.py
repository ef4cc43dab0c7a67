"""`manage.py conversations`: the sub-commands of `conversations.management.subcommands`."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError
from django.db import Error

from conversations.exceptions import ConversationStoreError
from conversations.management.subcommands import (
    findings,
    import_export,
    prune,
    retire_legacy,
    runs,
    sync,
    verify,
)
from conversations.management.subcommands.base import Output, Subcommand
from flags.connections import replacing_lost
from flags.management import output
from flags.management.output import FAILED
from flags.schema import named

# In the order of the help.
SUBCOMMANDS: tuple[Subcommand, ...] = (
    *sync.SUBCOMMANDS,
    *verify.SUBCOMMANDS,
    *runs.SUBCOMMANDS,
    *findings.SUBCOMMANDS,
    *import_export.SUBCOMMANDS,
    *prune.SUBCOMMANDS,
    *retire_legacy.SUBCOMMANDS,
)
# Django's own options of every command.
_DJANGOS = frozenset(
    {
        "settings",
        "pythonpath",
        "traceback",
        "verbosity",
        "no_color",
        "force_color",
        "skip_checks",
        "stdout",
        "stderr",
    }
)


class Command(output.Command):
    help = "Sync, verify, import, export and prune conversations, and retire legacy."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        commands = parser.add_subparsers(dest="command", required=True, metavar="command")
        for found in SUBCOMMANDS:
            child = commands.add_parser(found.name, help=found.help, description=found.help)
            found.arguments(child)
            child.add_argument(
                "--json",
                action="store_true",
                dest="as_json",
                help="Print lines of JSON instead of text.",
            )

    def run(self, *, command: str, as_json: bool, **options: Any) -> None:
        (found,) = (each for each in SUBCOMMANDS if each.name == command)
        to = Output(self.stdout, self.stderr, as_json)
        own = {name: value for name, value in options.items() if name not in _DJANGOS}
        try:
            with replacing_lost():
                found.run(to, **own)
        except (ConversationStoreError, OSError) as error:
            raise CommandError(output.text_of(error), returncode=FAILED) from error
        except Error as error:
            # The error's own text may quote rows.
            reason = f"the database did not answer ({named(error)}): try again,"
            raise CommandError(f"{reason} finished work is kept.", returncode=FAILED) from error
