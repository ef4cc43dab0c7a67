"""Checks of `settings.CONVERSATIONS`, except LEGACY and SWITCHES."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from conversations.conf import DEFAULTS
from conversations.storage.arguments import shortcoming
from conversations.stores.sql.prepared import AUTO
from flags.checks import configured, try_import
from flags.texts import quoted

# json.dumps raises RecursionError somewhat above a depth of 1,000.
DEEPEST = 1000


def _whole(least: int, most: float = float("inf")) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _factor(value: Any) -> bool:
    return type(value) in (int, float) and value > 1


def _duration(value: Any) -> bool:
    return isinstance(value, timedelta) and value >= timedelta(0)


def _share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _limits(value: Any) -> bool:
    if not isinstance(value, Mapping) or set(value) - set(DEFAULTS["HEALTH"]):
        return False
    chosen = {**DEFAULTS["HEALTH"], **value}
    shares = (chosen["WARNING"], chosen["CRITICAL"])
    return _whole(1)(chosen["MINIMUM"]) and all(map(_share, shares)) and 0 < shares[0] <= shares[1]


def _preparing(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value == AUTO)


# The condition of a value, and its words. LEGACY, SWITCHES and STATE_CLASS have their own checks.
RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "DATABASE": (lambda value: isinstance(value, str), "the alias of a database"),
    "REPLICA": (lambda value: isinstance(value, str), "the alias of a streaming replica"),
    "PREPARE_STATEMENTS": (_preparing, '"auto", True or False'),
    "REQUIRE_OWNER": (lambda value: isinstance(value, bool), "True or False"),
    "MAX_DEPTH": (_whole(1, DEEPEST), f"a whole number from 1 to {DEEPEST}"),
    "MAX_MESSAGE_BYTES": (_whole(1), "a whole number of bytes, 1 or more"),
    "MAX_STATE_BYTES": (_whole(1), "a whole number of bytes, 1 or more"),
    "RESUME_WITHIN": (_duration, "a timedelta, not negative"),
    "KEEP_SUPERSEDED": (_duration, "a timedelta, not negative"),
    "KEEP_VERSIONS": (_whole(0), "a whole number, 0 or more"),
    "KEEP_BLOBS": (_whole(1), "a whole number, 1 or more: the newest blob always stays"),
    "SOAK_TIME": (_duration, "a timedelta, not negative"),
    "RETIRE_AFTER": (_duration, "a timedelta, not negative"),
    "SYNC_MAX_REPLICA_LAG": (_duration, "a timedelta, not negative"),
    "SYNC_MAX_SLOWDOWN": (_factor, "a number above 1"),
    "LEGACY_SETTLES_WITHIN": (_duration, "a timedelta, not negative"),
    "MAX_P95": (_duration, "a timedelta, not negative"),
    "FOREIGN_QUIET": (_duration, "a timedelta, not negative"),
    "SHADOW_READS": (_whole(0), "a whole number, 0 or more"),
    "SHADOW_SHARE": (_share, "a number from 0 to 1"),
    "HEALTH": (
        _limits,
        "a mapping of MINIMUM (1 or more), WARNING and CRITICAL (shares above 0, in this order)",
    ),
    "READ_BREAKER": (lambda value: isinstance(value, bool), "True or False"),
}


@register("conversations")
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Check the keys and the types of the values; None means the default."""
    value = getattr(settings, "CONVERSATIONS", None)
    if value is not None and not isinstance(value, Mapping):
        return [
            Error(
                f"CONVERSATIONS is a {type(value).__name__}, not a mapping.",
                hint="Write CONVERSATIONS = {...} in your settings, or leave it out.",
                id="conversations.E007",
            )
        ]
    return list(_problems(configured()))


def _problems(chosen: Mapping[Any, Any]) -> Iterator[CheckMessage]:
    for name, value in chosen.items():
        if name not in DEFAULTS:
            near = difflib.get_close_matches(str(name), DEFAULTS, n=1)
            yield Error(
                f"CONVERSATIONS has the unknown key {quoted(name)}.",
                hint=f"Did you mean {near[0]!r}?" if near else f"Use {', '.join(DEFAULTS)}.",
                id="conversations.E008",
            )
        elif value is not None and name in RULES and not RULES[name][0](value):
            yield Error(
                f'CONVERSATIONS["{name}"] is {quoted(value)}.',
                hint=f"Set it to {RULES[name][1]}.",
                id="conversations.E007",
            )


@register("conversations")
def check_state_class(**kwargs: Any) -> list[CheckMessage]:
    """Check that `load_state` can build the configured class and remember what it loaded."""
    path = configured().get("STATE_CLASS")
    if path is None:
        return []
    found, failure = try_import(path)
    problem = failure or shortcoming(found)
    if problem is None:
        return []
    return [
        Error(
            f'CONVERSATIONS["STATE_CLASS"] {problem}.',
            hint="Name a class with from_dict(mapping), to_dict() and room for the attributes"
            " `_baseline` and `load_info`, such as a subclass of conversations.state.AgentState.",
            id="conversations.E006",
        )
    ]
