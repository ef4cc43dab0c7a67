"""The display of a run's progress: a bar if stderr is a terminal and rich is there, else lines.

rich is optional: `pip install django-conversation-store[cli]`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any, Protocol

from conversations.rollout.runs.progress import Progress
from flags import durations
from flags.management.output import Lines
from flags.texts import escaped

try:
    import rich.progress as rich_progress
except ImportError:
    # Without rich, lines say the same.
    rich_progress = None  # type: ignore[assignment]

VERIFICATION = "verification"
# At most one line of progress in this time.
LINE_EVERY_SECONDS = 5.0


class Shown(Protocol):
    """A display of progress, between `__enter__` and `__exit__`."""

    def __enter__(self) -> Shown: ...

    def __exit__(self, *error: Any) -> None: ...

    def update(self, found: Progress) -> None:
        """Show the run's present progress."""

    def finish(self, found: Progress) -> None:
        """Show the run's final progress."""


def shown(stderr: Lines) -> Shown:
    """Return a display of progress on stderr."""
    terminal = stderr.isatty()
    return _Bar(stderr) if terminal and rich_progress is not None else _Lines(stderr)


def in_words(found: Progress) -> str:
    """Return a run's progress in one line."""
    parts = [f"{found.conversations} conversations"]
    if found.looks > found.conversations:
        parts.append(f"{found.looks} looks")
    if found.failed:
        parts.append(f"{found.failed} failed")
    if found.rate is not None:
        parts.append(f"{found.rate:.0f}/s")
    if found.seconds_left is not None:
        walk = f" of walk {found.stage + 1}" if found.target == VERIFICATION else ""
        parts.append(f"about {durations.in_words(found.seconds_left)} left{walk}")
    if found.state != "running":
        parts.append("done" if found.state == "finished" else found.state)
    return ", ".join(parts) + standstill(found)


def standstill(found: Progress) -> str:
    """Return why a run does not continue, with the punctuation before it, or ""."""
    if found.waiting:
        return f"; waits: {found.waiting}"
    if found.stuck_since is None:
        return ""
    where = "no worker is at work" if found.stuck_batch is None else f"in batch {found.stuck_batch}"
    return f"; stuck since {found.stuck_since:%Y-%m-%d %H:%M:%S %Z}, {where}"


class _Lines:
    """A line every few seconds."""

    def __init__(self, stderr: Lines) -> None:
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
        self.finish(found)

    def finish(self, found: Progress) -> None:
        self.stderr.write(f"run {found.run}: {in_words(found)}")


class _Bar:
    """A bar of rich. It pulses while the end is unknown.

    The same console prints log lines above it meanwhile, or both would break.
    """

    def __init__(self, stderr: Lines) -> None:
        from rich.console import Console

        # Django's wrapper ends every write with a newline, which a bar does not.
        inside: Any = vars(stderr)["_out"]
        self.console = Console(file=inside)
        self.progress = rich_progress.Progress(
            rich_progress.TextColumn("run {task.fields[run]}"),
            rich_progress.BarColumn(),
            rich_progress.TaskProgressColumn(),
            rich_progress.TextColumn("{task.description}", markup=False),
            console=self.console,
        )
        self.task = self.progress.add_task("", total=None, run="")
        self.streams: list[tuple[logging.StreamHandler[Any], Any]] = []

    def __enter__(self) -> _Bar:
        from rich.file_proxy import FileProxy

        for handler in _terminal_handlers():
            self.streams.append((handler, handler.stream))
            handler.setStream(FileProxy(self.console, handler.stream))
        self.progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.stop()
        for handler, stream in self.streams:
            handler.setStream(stream)

    def update(self, found: Progress) -> None:
        total = None if found.share is None else 1.0
        self.progress.update(
            self.task,
            total=total,
            completed=found.share or 0.0,
            description=escaped(in_words(found)),
            run=str(found.run),
        )

    def finish(self, found: Progress) -> None:
        self.update(found)


def _terminal_handlers() -> Iterator[logging.StreamHandler[Any]]:
    """Yield the handlers that log to a terminal."""
    found: set[logging.Handler] = set()
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        # A name that only has children is a placeholder.
        found.update(getattr(logger, "handlers", ()))
    for handler in found:
        if isinstance(handler, logging.StreamHandler) and _is_terminal(handler.stream):
            yield handler


def _is_terminal(stream: Any) -> bool:
    # A host's handler may have any stream, even a closed one.
    return not getattr(stream, "closed", True) and bool(stream.isatty())
