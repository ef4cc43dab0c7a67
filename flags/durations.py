"""Durations in words, for the reader of a message. Pure."""

from __future__ import annotations

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def in_words(seconds: float) -> str:
    """Return a duration in a readable unit: "40 s", "12 min", "3.5 h", "7 days"."""
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        return f"{round(seconds / _HOUR, 1):g} h"
    return f"{round(seconds / _DAY, 1):g} days"
