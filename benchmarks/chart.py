"""The chart of the README, drawn from the JSON of runs. Pure.

Static and without scripts; one drawing for light pages and dark ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.contenders import FLOOR, FRESH, OLD

# Workload and operation of each group of bars, and what it is called.
GROUPS = (
    ("short", "save", "save a turn, up to 20 turns"),
    ("short", "load", "load, up to 20 turns"),
    ("long", "save at 2000", "save a turn, 2,000 messages"),
    ("long", "load at 2000", "load 2,000 messages"),
)
WAYS = {FLOOR: "one hand-written statement", FRESH: "this store", OLD: "JSON blobs (old code)"}
_CLASSES = {FLOOR: "floor", FRESH: "ours", OLD: "legacy"}
_NAMES = {"postgresql": "PostgreSQL", "sqlite": "SQLite"}

WIDTH, COLUMN, LEFT, TOP = 1028, 490, 24, 96
BAR, ROW, GROUP, LONGEST = 16, 21, 104, 360

_STYLE = """
    .page { fill: #ffffff } .ours { fill: #2f6296 } .legacy { fill: #c98a2b }
    .floor { fill: #9aa4b0 }
    text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
      fill: #1d2733; font-size: 13px }
    .head { font-size: 17px; font-weight: 600 } .name { font-weight: 600 } .note { fill: #4b5866 }
    @media (prefers-color-scheme: dark) {
      .page { fill: #12161b } .ours { fill: #7fb2e2 } .legacy { fill: #dcae60 }
      .floor { fill: #6b7683 } text { fill: #e9eef4 } .note { fill: #b3bfcb }
    }
"""


def drawn(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the chart of runs of the workloads short and long: a column for each run.

    Raises: ValueError when a run lacks a figure.
    """
    columns = [_figures(run) for run in runs]
    height = TOP + 32 + GROUP * len(GROUPS)
    said = "; ".join(
        f"{_title(run)}: {_described(figures)}" for run, figures in zip(runs, columns, strict=True)
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
        f' height="{height}" role="img" aria-labelledby="title desc">',
        '<title id="title">Milliseconds of a save and of a load</title>',
        f'<desc id="desc">{escape(said)}</desc>',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        f'<text class="head" x="{LEFT}" y="34">Milliseconds, medians; less is better</text>',
        *_legend(),
    ]
    for place, (run, figures) in enumerate(zip(runs, columns, strict=True)):
        lines += _column(LEFT + COLUMN * place, _title(run), figures)
    return "\n".join([*lines, "</svg>", ""])


def _title(run: Mapping[str, Any]) -> str:
    vendor, _, version = str(run["database"]).partition(" ")
    return f"{_NAMES.get(vendor, vendor)} {version}".strip()


def _figures(run: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Return milliseconds by the title of a group and a way."""
    known = {
        (workload["workload"], measure["operation"], measure["contender"]): float(
            measure["median_ms"]
        )
        for workload in run["workloads"]
        for measure in workload["measures"]
    }
    try:
        return {
            (title, way): known[workload, operation, way]
            for workload, operation, title in GROUPS
            for way in WAYS
        }
    except KeyError as error:
        raise ValueError(f"the run has not measured {error}.") from error


def _described(figures: Mapping[tuple[str, str], float]) -> str:
    return ", ".join(
        f"{title}: " + " and ".join(f"{WAYS[way]} {figures[title, way]:.2f} ms" for way in WAYS)
        for _, _, title in GROUPS
    )


def _legend() -> Iterator[str]:
    x = LEFT
    for way, said in WAYS.items():
        yield f'<rect class="{_CLASSES[way]}" x="{x}" y="50" width="12" height="12"/>'
        yield f'<text x="{x + 18}" y="61">{escape(said)}</text>'
        x += 40 + 7 * len(said)


def _column(left: int, title: str, figures: Mapping[tuple[str, str], float]) -> Iterator[str]:
    yield f'<text class="name" x="{left}" y="{TOP}">{escape(title)}</text>'
    for number, (_, _, group) in enumerate(GROUPS):
        top = TOP + 28 + GROUP * number
        longest = max(figures[group, way] for way in WAYS)
        yield f'<text class="note" x="{left}" y="{top}">{escape(group)}</text>'
        for place, way in enumerate(WAYS):
            value, y = figures[group, way], top + 8 + ROW * place
            width = max(round(LONGEST * value / longest, 1), 1)
            yield (
                f'<rect class="{_CLASSES[way]}" x="{left}" y="{y}" width="{width}"'
                f' height="{BAR}" rx="2"/>'
            )
            yield f'<text x="{left + width + 8}" y="{y + 13}">{value:.2f}</text>'
