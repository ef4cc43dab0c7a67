"""What the tests of system checks share: their ids, a mapping, and the messages of one check."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from django.core.checks import CheckMessage

from tests.support.processes import ROOT

APPS = ("conversations", "memory", "flags")

# A host's model that happens to be installed: a unique name, an owner, a text.
MAPPING = {
    "model": "auth.User",
    "conversation_id": "username",
    "owner": "id",
    "state": "first_name",
}


def convert(value: Any) -> Any:
    """Stand in for a host's function."""
    return value


def found(messages: Iterable[CheckMessage], check_id: str) -> list[str]:
    """Return the texts of one check's messages; each must say what to do."""
    chosen = [message for message in messages if message.id == check_id]
    assert all(message.hint for message in chosen)
    return [message.msg for message in chosen]


def identifiers() -> set[str]:
    """Return the ids of every system check, as the code spells them."""
    sources = [path.read_text("utf-8") for app in APPS for path in (ROOT / app).rglob("*.py")]
    return {found for text in sources for found in re.findall(r'"(\w+\.[EW]\d{3})"', text)}
