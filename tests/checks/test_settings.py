"""The checks of `CONVERSATIONS`: each fires on its mistake and is silent without it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from conversations.checks import settings as settings_checks
from conversations.conf import DEFAULTS
from tests.support.checks import convert, found


class Plain:
    """A state class with room for everything."""

    @classmethod
    def from_dict(cls, data: Any) -> Plain:
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {}


class Slotted(Plain):
    """A class whose instances have a __dict__, because Plain's have one."""

    __slots__ = ()


class Tight:
    """A class with no room for what a load remembers."""

    __slots__ = ("data",)
    from_dict = to_dict = classmethod(lambda cls, *args: {})


class Roomy:
    """A class that declares the room."""

    __slots__ = ("_baseline", "load_info")
    from_dict = to_dict = classmethod(lambda cls, *args: {})


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (5, "is 5, no dotted path"),
        ("nowhere.State", "cannot be imported"),
        (f"{convert.__module__}.convert", "is no class"),
        ("datetime.timedelta", "has no method from_dict"),
        (f"{__name__}.Tight", "__slots__ leave no room"),
    ],
)
def test_conversations_E006(configure: Any, path: Any, text: str) -> None:
    configure(STATE_CLASS=path)
    (message,) = found(settings_checks.check_state_class(), "conversations.E006")
    assert text in message


@pytest.mark.parametrize(
    "path",
    [None, DEFAULTS["STATE_CLASS"], *(f"{__name__}.{n}" for n in ("Plain", "Slotted", "Roomy"))],
)
def test_conversations_E006_is_silent(configure: Any, path: Any) -> None:
    configure(STATE_CLASS=path)
    assert settings_checks.check_state_class() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE", 5),
        ("REQUIRE_OWNER", "False"),
        ("MAX_DEPTH", 0),
        ("MAX_DEPTH", 5000),
        ("MAX_DEPTH", True),
        ("MAX_MESSAGE_BYTES", 1.5),
        ("MAX_STATE_BYTES", "1"),
        ("RESUME_WITHIN", 3600),
        ("KEEP_SUPERSEDED", timedelta(days=-1)),
        ("KEEP_VERSIONS", -1),
        ("LEGACY_SETTLES_WITHIN", "1h"),
    ],
)
def test_conversations_E007(configure: Any, name: str, value: Any) -> None:
    configure(**{name: value})
    assert found(settings_checks.check_settings(), "conversations.E007") == [
        f'CONVERSATIONS["{name}"] is {value!r}.'
    ]


def test_conversations_E007_is_silent_about_every_default(configure: Any) -> None:
    configure(**DEFAULTS)
    assert settings_checks.check_settings() == []
    configure(**dict.fromkeys(DEFAULTS))
    assert settings_checks.check_settings() == []


def test_conversations_E007_knows_every_setting() -> None:
    elsewhere = {"LEGACY", "SWITCHES", "STATE_CLASS"}
    assert set(settings_checks.RULES) | elsewhere == set(DEFAULTS)


def test_conversations_E007_names_settings_that_are_no_mapping(settings: Any) -> None:
    settings.CONVERSATIONS = ["LEGACY"]
    assert found(settings_checks.check_settings(), "conversations.E007") == [
        "CONVERSATIONS is a list, not a mapping."
    ]


def test_conversations_E008(configure: Any) -> None:
    configure(LEGACI="memory_chunks")
    (message,) = settings_checks.check_settings()
    assert (message.id, message.hint) == ("conversations.E008", "Did you mean 'LEGACY'?")
    configure(**{"?": 1})
    assert len(found(settings_checks.check_settings(), "conversations.E008")) == 1
    configure(LEGACY="memory_chunks")
    assert settings_checks.check_settings() == []
