"""The bar of a run and what is logged meanwhile leave each other whole, on a real terminal."""

from __future__ import annotations

import io
import logging
import os
import pty
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.management.base import OutputWrapper
from django.utils import timezone

from conversations.management.subcommands import progress
from conversations.rollout.runs.progress import Progress

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def standing(state: str = "running", **values: Any) -> Progress:
    now = timezone.now()
    found = {
        "run": 7,
        "target": "tables",
        "state": state,
        "stage": 0,
        "conversations": 12,
        "looks": 12,
        "failed": 0,
        "batches": 1,
        "open_batches": 0,
        "share": 0.5,
        "started_at": now,
        "finished_at": None,
        "reason": "",
    }
    return Progress(**(found | values))


@contextmanager
def terminal() -> Iterator[tuple[Any, Any]]:
    """Give a stream that is a terminal, and a function that gives what was shown on it."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    stream = os.fdopen(theirs, "w", encoding="utf-8", buffering=1)
    seen: list[bytes] = []

    def shown() -> str:
        stream.flush()
        while True:
            try:
                seen.append(os.read(ours, 65_536))
            except BlockingIOError:
                return b"".join(seen).decode("utf-8")

    try:
        yield stream, shown
    finally:
        stream.close()
        os.close(ours)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give a function that lets a logger of the host's log to a stream."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    logger, handlers = logging.getLogger("tests.bars"), []

    def to(stream: Any) -> logging.Logger:
        handlers.append(logging.StreamHandler(stream))
        logger.addHandler(handlers[-1])
        return logger

    yield to
    for handler in handlers:
        logger.removeHandler(handler)


def play(stream: Any, logger: logging.Logger) -> None:
    with progress.shown(OutputWrapper(stream)) as bar:
        bar.update(standing())
        for number in range(3):
            logger.warning("conversation c%s: StorageUnavailable", number)
            bar.update(standing(conversations=100 + number))
        bar.finish(standing("finished", conversations=373, share=1.0))


def test_a_line_that_is_logged_stands_alone_above_the_bar(logged: Any) -> None:
    with terminal() as (stream, shown):
        logger = logged(stream)
        (handler,) = logger.handlers
        play(stream, logger)
        assert handler.stream is stream
        text = shown()
    assert "\x1b[" in text
    lines = CONTROL.sub("", text).replace("\r", "\n").split("\n")
    for number in range(3):
        assert f"conversation c{number}: StorageUnavailable" in [line.rstrip() for line in lines]


def test_the_last_frame_says_done(logged: Any) -> None:
    with terminal() as (stream, shown):
        play(stream, logged(stream))
        frames = [line for line in CONTROL.sub("", shown()).splitlines() if "run 7" in line]
    assert "373 conversations, done" in frames[-1]
    assert "100%" in frames[-1]


def test_without_rich_there_are_plain_lines(logged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "rich_progress", None)
    with terminal() as (stream, shown):
        play(stream, logged(stream))
        lines = shown().splitlines()
    assert lines[0] == "run 7: 12 conversations"
    assert lines[-1] == "run 7: 373 conversations, done"
    assert not any(CONTROL.search(line) for line in lines)


def test_where_it_is_no_terminal_there_are_no_control_codes(logged: Any) -> None:
    stream = io.StringIO()
    play(stream, logged(stream))
    assert stream.getvalue().splitlines() == [
        "run 7: 12 conversations",
        *(f"conversation c{number}: StorageUnavailable" for number in range(3)),
        "run 7: 373 conversations, done",
    ]


def test_a_log_file_is_left_alone(logged: Any) -> None:
    file = io.StringIO()
    logger = logged(file)
    with terminal() as (stream, shown):
        play(stream, logger)
        assert "StorageUnavailable" not in shown()
    assert len(file.getvalue().splitlines()) == 3


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (standing(rate=3.2, seconds_left=90), "12 conversations, 3/s, about 90 s left"),
        (
            standing(target="verification", stage=1, looks=15, seconds_left=90),
            "12 conversations, 15 looks, about 90 s left of walk 2",
        ),
        (standing("paused"), "12 conversations, paused"),
        (standing("failed", failed=3), "12 conversations, 3 failed, failed"),
    ],
)
def test_numbers_are_named_in_words(found: Progress, said: str) -> None:
    assert progress.in_words(found) == said
