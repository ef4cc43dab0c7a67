"""How a run's progress is shown: a bar where stderr is a terminal and rich is there, else lines.

rich is optional: `pip install django-conversation-store[cli]`.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

from django.core.management.base import OutputWrapper

from conversations.runs.progress import Progress
from flags import durations

try:
    import rich.progress as rich_progress
except ImportError:
    # Lines say the same.
    rich_progress = None  # type: ignore[assignment]

# A line of progress at most so often.
LINE_EVERY_SECONDS = 5.0


class Shown(Protocol):
    """What shows progress, between `__enter__` and `__exit__`."""

    def __enter__(self) -> Shown: ...

    def __exit__(self, *error: Any) -> None: ...

    def update(self, found: Progress) -> None:
        """Show how the run stands now."""


def shown(stderr: OutputWrapper) -> Shown:
    """Return what shows progress on stderr."""
    terminal = stderr.isatty()
    return _Bar() if terminal and rich_progress is not None else _Lines(stderr)


def in_words(found: Progress) -> str:
    """Return how a run stands, in one line."""
    parts = [f"{found.conversations} conversations"]
    if found.failed:
        parts.append(f"{found.failed} failed")
    if found.rate is not None:
        parts.append(f"{found.rate:.0f}/s")
    if found.seconds_left is not None:
        parts.append(f"about {durations.in_words(found.seconds_left)} left")
    return ", ".join(parts) + standstill(found)


def standstill(found: Progress) -> str:
    """Return why a run does not go on, with what leads up to it, or ""."""
    if found.waiting:
        return f"; waits: {found.waiting}"
    if found.stuck_since is None:
        return ""
    where = "no worker is at work" if found.stuck_batch is None else f"in batch {found.stuck_batch}"
    return f"; stuck since {found.stuck_since:%Y-%m-%d %H:%M:%S %Z}, {where}"


class _Lines:
    """A line every few seconds."""

    def __init__(self, stderr: OutputWrapper) -> None:
        self.stderr = stderr
        self.last = float("-inf")

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: Any) -> None:
        return

    def update(self, found: Progress) -> None:
        if time.monotonic() - self.last < LINE_EVERY_SECONDS:
            return
        self.last = time.monotonic()
        self.stderr.write(f"run {found.run}: {in_words(found)}")


class _Bar:
    """A bar of rich. It pulses where nothing is known of the end."""

    def __init__(self) -> None:
        from rich.console import Console

        self.progress = rich_progress.Progress(
            rich_progress.TextColumn("run {task.fields[run]}"),
            rich_progress.BarColumn(),
            rich_progress.TaskProgressColumn(),
            rich_progress.TextColumn("{task.description}"),
            console=Console(stderr=True),
        )
        self.task = self.progress.add_task("", total=None, run="")

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.stop()

    def update(self, found: Progress) -> None:
        total = None if found.share is None else 1.0
        self.progress.update(
            self.task,
            total=total,
            completed=found.share or 0.0,
            description=in_words(found),
            run=str(found.run),
        )
