"""`manage.py rollout`: show where the rollout stands, and move it, by `flags.transitions`."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError
from django.db import Error
from django.utils import timezone

from flags import beginnings, processes, transitions
from flags.connections import replacing_lost
from flags.exceptions import (
    FlagsError,
)
from flags.health import Health, Level, Operation, report
from flags.management import output
from flags.phases import EVERYTHING, Phase, switches_for
from flags.processes import Process
from flags.schema import named
from flags.transitions import Record


class Command(output.Command):
    help = "Show where the rollout stands, and move it from phase to phase."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        commands = parser.add_subparsers(dest="command", required=True, metavar="command")
        for name, help_text, arguments in _COMMANDS:
            child = commands.add_parser(name, help=help_text, description=help_text)
            child.add_argument(
                "--json", action="store_true", dest="as_json", help="Print JSON instead of text."
            )
            for argument in arguments:
                argument(child)

    def run(self, *, command: str, **options: Any) -> None:
        run: Callable[..., None] = getattr(self, f"_{command}")
        try:
            with replacing_lost():
                run(**options)
        except FlagsError as error:
            if options["as_json"]:
                self._json(output.said_by(error))
            raise CommandError(str(error), returncode=output.exit_code_of(error)) from error
        except Error as error:
            text = (
                f"the database did not answer ({named(error)}): see `rollout status`"
                " for the steps that were made."
            )
            if options["as_json"]:
                self._json({"error": text})
            raise CommandError(text, returncode=output.FAILED) from error

    def _status(self, *, as_json: bool, **options: Any) -> None:
        found = transitions.status()
        unanswered = beginnings.unanswered()
        live = processes.live()
        old = processes.on_old_epoch(live, found.last, now=timezone.now())
        turn = {
            name: on for name, on in switches_for(found.phase).items() if found.switches[name] != on
        }
        if as_json:
            self._json(
                {
                    "phase": found.phase.label,
                    "mixed": found.mixed,
                    "emergency": found.emergency,
                    "canary": found.canary,
                    "retired": found.retired,
                    "epoch": found.last.epoch,
                    "since": found.since.isoformat(),
                    "switches": dict(found.switches),
                    "processes": [_process(each, old=each in old) for each in live],
                    **({"unanswered": beginnings.QUESTION} if unanswered else {}),
                }
            )
            return
        overruled = ", EMERGENCY ROLLBACK" if found.emergency else ""
        overruled += ", legacy is retired" if found.retired else ""
        share = "" if found.canary >= EVERYTHING else f" for {found.canary:g} %"
        self.stdout.write(f"{found.phase.label}{share}, epoch {found.last.epoch}{overruled}")
        self.stdout.write(_line(found.last))
        if unanswered:
            self.stdout.write(f"UNANSWERED: {beginnings.QUESTION}")
            self.stdout.write(beginnings.ANSWER)
        for name, on in turn.items():
            self.stdout.write(
                f"mixed switches: turn {name} {'on' if on else 'off'} for {found.phase.label}"
            )
        for each in live:
            late = "  ON AN OLD EPOCH" if each in old else ""
            self.stdout.write(
                f"process {each.host}:{each.pid}  version {each.version}  {each.phase.label},"
                f" epoch {each.epoch}, {each.age.total_seconds():.1f} s ago{late}"
            )

    def _health(self, *, as_json: bool, **options: Any) -> None:
        found = report()
        if as_json:
            self._json(asdict(found))
        else:
            for line in _health_lines(found):
                self.stdout.write(line)
        if found.status == Level.CRITICAL:
            raise CommandError("critical: see above.", returncode=output.MISMATCHES)

    def _check(self, *, to: str | None, waive: list[str], as_json: bool, **options: Any) -> None:
        results = transitions.check(_phase(to), waive=output.waivers_of(waive))
        if as_json:
            self._json({"gates": output.gates(results)})
        for result in () if as_json else results:
            verdict = "passed" if result.passed else "waived" if result.waived else "REFUSED"
            self.stdout.write(f"{verdict:8} {result.gate}: {result.message}")
            if not result.holds:
                self.stdout.write(f"{'':8} {result.fix}")
        if not all(result.holds for result in results):
            raise CommandError("a gate refuses: see above.", returncode=output.REFUSED)

    def _advance(
        self, *, reason: str, waive: list[str], canary: float, as_json: bool, **options: Any
    ) -> None:
        made = transitions.advance(
            reason=reason,
            actor=output.operator_name(),
            waive=output.waivers_of(waive),
            percent=canary,
        )
        self._made([made], as_json=as_json)

    def _rollback(
        self,
        *,
        to: str | None,
        reason: str,
        waive: list[str],
        rehearsal: bool,
        as_json: bool,
        **options: Any,
    ) -> None:
        words: dict[str, Any] = {
            "reason": reason,
            "actor": output.operator_name(),
            "waive": output.waivers_of(waive),
        }
        phase = _phase(to)
        if rehearsal:
            made = [transitions.rehearse(Phase.LEGACY if phase is None else phase, **words)]
        else:
            made = transitions.rollback(phase, **words)
        self._made(made, as_json=as_json)

    def _emergency(self, *, reason: str, as_json: bool, **options: Any) -> None:
        found = transitions.emergency(reason=reason, actor=output.operator_name())
        if found is None:
            if as_json:
                self._json({"emergency": True, "recorded": False})
            self.stderr.write(
                "The emergency is in force, but not recorded. `rollout status` records it later."
            )
            return
        self._made([found.last], as_json=as_json)

    def _canary(self, *, percent: float, reason: str, as_json: bool, **options: Any) -> None:
        made = transitions.canary(percent, reason=reason, actor=output.operator_name())
        self._made([made], as_json=as_json)

    def _resume(self, *, reason: str, waive: list[str], as_json: bool, **options: Any) -> None:
        found = transitions.resume(
            reason=reason, actor=output.operator_name(), waive=output.waivers_of(waive)
        )
        self._made([found.last], as_json=as_json)

    def _history(self, *, limit: int, as_json: bool, **options: Any) -> None:
        self._made(transitions.history(limit=limit), as_json=as_json)

    def _made(self, records: Sequence[Record], *, as_json: bool) -> None:
        for record in records:
            if as_json:
                labels = {"source": record.source.label, "target": record.target.label}
                self._json(asdict(record) | labels)
            else:
                self.stdout.write(_line(record))

    def _json(self, data: Mapping[str, Any]) -> None:
        self.stdout.json(data)


def _line(record: Record) -> str:
    share = "" if record.canary >= EVERYTHING else f" for {record.canary:g} %"
    by = f" by {record.actor}" if record.actor else ""
    why = f": {record.reason}" if record.reason else ""
    return (
        f"{record.epoch:>5}  {record.at:%Y-%m-%d %H:%M:%S %Z}  {record.kind}"
        f"  {record.source.label} to {record.target.label}{share}{by}{why}"
    )


def _process(process: Process, *, old: bool) -> dict[str, Any]:
    return {
        **asdict(process),
        "phase": process.phase.label,
        "age": process.age.total_seconds(),
        "old": old,
    }


def _health_lines(found: Health) -> Iterator[str]:
    yield str(found.status)
    for reason in found.reasons:
        yield f"{reason.level:8} {reason.slug}: {reason.message}"
    for store, serves in found.can_serve.items():
        yield f"{store}: {'answers' if serves else 'DOES NOT ANSWER'}"
    if found.operations:
        yield "operation store          count errors fallbacks stale  per s   p50   p95   p99 ms"
        yield from map(_operation_line, found.operations)


def _operation_line(each: Operation) -> str:
    times = (each.p50, each.p95, each.p99)
    shown = " ".join(f"{'-' if t is None else f'{t * 1000:.1f}':>5}" for t in times)
    return (
        f"{each.operation:9} {each.store:12} {each.count:7} {each.errors:6} {each.fallbacks:9}"
        f" {each.stale:5} {each.rate:6.1f} {shown}"
    )


def _phase(label: str | None) -> Phase | None:
    return None if label is None else Phase[label.upper()]


def _to(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--to", choices=[phase.label for phase in Phase], help="The phase to reach."
    )


def _reason(parser: ArgumentParser) -> None:
    parser.add_argument("--reason", default="", help="Why, for the record.")


def _number(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ArgumentTypeError("a number from 0")
    return number


def _limit(parser: ArgumentParser) -> None:
    parser.add_argument("--limit", type=_number, default=50, help="How many, the newest first.")


def _percent(parser: ArgumentParser) -> None:
    parser.add_argument("percent", type=float, help="0 to 100, to one decimal.")


def _canary(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--canary",
        type=float,
        default=EVERYTHING,
        metavar="PERCENT",
        help="Make the step for this share of the conversations.",
    )


def _rehearsal(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--rehearse",
        action="store_true",
        dest="rehearsal",
        help="Play the way back with a test conversation, and change nothing.",
    )


_Arguments = tuple[Callable[[ArgumentParser], None], ...]
_COMMANDS: tuple[tuple[str, str, _Arguments], ...] = (
    ("status", "Show the phase in force, and since when.", ()),
    (
        "check",
        "Ask the gates of the next step, or of the step --to a phase.",
        (_to, output.add_waivers),
    ),
    ("advance", "Make the next step, if its gates hold.", (_reason, output.add_waivers, _canary)),
    (
        "rollback",
        "Go back one step, or step by step --to a phase.",
        (_to, _reason, output.add_waivers, _rehearsal),
    ),
    ("canary", "Let the phase be in force for a share of the conversations.", (_percent, _reason)),
    ("emergency", "Write legacy alone and prefer it, at once.", (_reason,)),
    ("resume", "End an emergency.", (_reason, output.add_waivers)),
    (
        "health",
        "Show the health of the stores, and why; critical exits with 3.",
        (),
    ),
    ("history", "List the transitions, newest first.", (_limit,)),
)
