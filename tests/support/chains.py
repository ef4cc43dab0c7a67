"""What an error says: by itself, by what it came from, and where people and programs read it."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from django.views.debug import ExceptionReporter


def chain(error: BaseException) -> list[BaseException]:
    """Return an error and everything that it came from, by cause and by context."""
    found: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is not None and all(one is not each for each in found):
            found.append(one)
            pending += [one.__cause__, one.__context__]
    return found


def texts_of(error: BaseException) -> Iterator[str]:
    """Yield what a program may read of an error: its texts, its attributes, and its `diag`."""
    yield from (str(error), repr(error), repr(error.args), repr(vars(error)))
    diag = getattr(error, "diag", None)
    for name in dir(diag) if diag is not None else ():
        if not name.startswith("_"):
            yield str(getattr(diag, name))
    for name in ("doc", "object", "path"):
        yield repr(getattr(error, name, None))


def values_behind(error: BaseException) -> Iterator[str]:
    """Yield the local variables that error pages show of what an error came from.

    Not those of the operation's own frames, which hold what its caller passed, as the caller's do.
    """
    own = {frame for frame, _ in traceback.walk_tb(error.__traceback__)}
    for cause in chain(error)[1:]:
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            if frame not in own:
                yield from map(repr, frame.f_locals.values())


def errors_at_hand(error: BaseException) -> Iterator[str]:
    """Yield the errors among the local variables of a traceback, as error pages show them."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        yield from (repr(value) for value in frame.f_locals.values() if _is_error(value))


def _is_error(value: Any) -> bool:
    return isinstance(value, BaseException)


def told(error: BaseException) -> str:
    """Return everything that an error and its chain say, and what a traceback prints of them."""
    parts = [text for one in chain(error) for text in texts_of(one)]
    return "\n".join([*parts, *traceback.format_exception(error)])


def reported(error: BaseException) -> str:
    """Return what logging and Django's error e-mails say of an error."""
    about = (type(error), error, error.__traceback__)
    record = logging.LogRecord("host", logging.ERROR, "views.py", 1, "failed", (), about)
    mail = ExceptionReporter(None, *about, is_email=True).get_traceback_text()
    return f"{logging.Formatter().format(record)}\n{mail}"


def raised_by(call: Callable[[], Any]) -> BaseException | None:
    """Return what a call raises, as its caller's handler has it."""
    try:
        call()
    except Exception:
        return sys.exception()
    return None
