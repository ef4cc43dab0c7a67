"""Read the time that a message, a context item or a chat states. Pure.

Texts are ISO 8601. Numbers are seconds or milliseconds since 1970. Their size tells which: seconds
from 1973 to 5138 are below 10**11, milliseconds of these years are not. Smaller numbers are
offsets or turn numbers; larger ones are no time of a chat.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

# The keys under which real formats keep a message's time; the first possible time counts.
TIME_KEYS = ("timestamp", "created_at", "createdAt", "create_time")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_SECOND, _FIRST_MILLISECOND, _END = 10**8, 10**11, 10**14
# Webhooks of messengers send seconds as text. Digits of other lengths may as well be a date.
_DIGITS = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_SECONDS_AS_TEXT = re.compile(r"\d{10}(?:\.\d{1,9})?|\d{13}(?:\.\d{1,6})?", re.ASCII)


def parse_timestamp(value: Any) -> datetime | None:
    """Return the moment of an ISO 8601 string, in UTC, or None if it is not one.

    A time without a zone is taken as UTC. Years stay two away from the limits of `datetime`: a
    time that overflows in some zone raises on every later read of its row.
    """
    if not isinstance(value, str) or not 10 <= len(value) <= 40 or _DIGITS.fullmatch(value):
        return None
    try:
        moment = datetime.fromisoformat(value)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return moment if 3 <= moment.year <= 9997 else None


def moment_of(value: Any) -> datetime | None:
    """Return the moment of a text or a number, in UTC, or None if it is no time.

    Text of 10 digits is taken as seconds, and of 13 as milliseconds.
    """
    if isinstance(value, str):
        if not _SECONDS_AS_TEXT.fullmatch(value):
            return parse_timestamp(value)
        value = float(value)
    # True equals 1, but is no time.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if _FIRST_SECOND <= value < _FIRST_MILLISECOND:
        return _EPOCH + timedelta(seconds=value)
    if _FIRST_MILLISECOND <= value < _END:
        return _EPOCH + timedelta(milliseconds=value)
    return None


def states_time(value: Any, keys: Sequence[str] = TIME_KEYS) -> bool:
    """Whether a message or an item states a time, possible or not."""
    return isinstance(value, dict) and any(value.get(key) is not None for key in keys)


def stated_moment(value: Mapping[str, Any], keys: Sequence[str] = TIME_KEYS) -> datetime | None:
    """Return the first possible moment under these keys of a mapping, or None."""
    moments = (moment_of(value.get(key)) for key in keys)
    return next((moment for moment in moments if moment is not None), None)
