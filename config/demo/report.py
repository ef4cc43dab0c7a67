"""The demo's figures as text. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from config.demo.measures import Measure
from config.demo.rollout import Step

STEP_COLUMNS = f"{'step':<20}{'legacy':>33}   {'tables':>33}   done"
STEP_UNITS = f"{'':<20}" + f"{'rows':>10}{'bytes':>13}{'time':>10}   " * 2
WAYS = ("old code", "legacy", "tables")
_FACTORS = {"ms": 1000.0, "kB": 1 / 1000}


def step_lines(step: Step) -> list[str]:
    """Return a step as a line, and a line for each of its problems."""
    stores = "".join(
        f"{size.rows:>10,}{size.bytes:>13,}{step.seconds[name]:>8.2f} s   "
        for name, size in step.sizes.items()
    )
    return [f"{step.name:<20}{stores}{step.done}", *(f"  ! {line}" for line in step.problems)]


def comparison_lines(measures: Sequence[Measure], *, turns: int, weighed: str) -> list[str]:
    """Return the closing table; `weighed` names the kind of bytes."""
    lines = [
        f"The same {turns} turns (load, add, save) in three ways, interleaved in this run:",
        "  old code  its statements as bare SQL, nine commits a save, no lock and no check",
        "  legacy    save_state and load_state in phase legacy",
        "  tables    save_state and load_state in phase new_only",
        "Peak memory is that of the longest conversation's last turn (tracemalloc); bytes are",
        f"{weighed}.",
        "",
        f"{'':<22}" + "".join(f"{name:>15}" for name in WAYS),
    ]
    for measure in measures:
        factor = _FACTORS[measure.unit]
        values = "".join(f"{measure.values[name] * factor:>12,.2f} {measure.unit}" for name in WAYS)
        lines.append(f"{measure.name:<22}{values}")
    lines += ["", f"{'':<22}{'floor':>15}{'against legacy':>25}{'against old code':>25}"]
    for measure in measures:
        verdicts = "".join(f"{_verdict(measure, name):>25}" for name in ("legacy", "old code"))
        lines.append(f"{measure.name:<22}{f'>{measure.floor:.0%} less':>15}{verdicts}")
    return [*lines, "", floor_line(measures)]


def floor_line(measures: Sequence[Measure]) -> str:
    """Return whether every floor is met: the tables against legacy, in this run."""
    missed = [measure.name for measure in measures if not measure.met("legacy")]
    verdict = f"not met ({', '.join(missed)})" if missed else "met"
    return (
        "Our floor (saves >20 % and loads >30 % faster, >15 % less memory, >25 %"
        f" smaller), tables against legacy: {verdict}."
    )


def _verdict(measure: Measure, against: str) -> str:
    tables = measure.values["tables"]
    ratio = measure.values[against] / tables if tables else 1.0
    met = "met" if measure.met(against) else "not met"
    return f"{measure.saving(against):.0%} ({ratio:.1f}x) {met}"
