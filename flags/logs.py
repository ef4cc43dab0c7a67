"""Escaping the logs of the three apps: an id that a caller chose starts no line and no command.

The filter is on our loggers, so it runs before every handler of a host. A logger's filter does
not see the records of its children, so all our modules log by the name of their app.
"""

from __future__ import annotations

import logging
from numbers import Number
from typing import Any

from flags.texts import escaped


class Escaping(logging.Filter):
    """Escapes the control characters in a message and its arguments, and passes every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(map(_escaped, record.args))
        elif record.args:
            record.args = {name: _escaped(value) for name, value in record.args.items()}
        record.msg = _escaped(record.msg)
        return True


def _escaped(value: Any) -> Any:
    # A number has no characters to escape, and a format may need it as a number.
    return value if isinstance(value, Number) else escaped(str(value))


_FILTER = Escaping()


def escape(name: str) -> None:
    """Escape every record of the logger with this name."""
    logging.getLogger(name).addFilter(_FILTER)
