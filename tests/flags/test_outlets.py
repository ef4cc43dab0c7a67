"""Logs, exceptions and terminals: no id of others' choice makes a line, or makes a terminal act."""

from __future__ import annotations

import importlib
import io
import json
import logging
import pkgutil
import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command, get_commands, load_command_class

import benchmarks
import config
import conversations
import flags
import memory
from conversations import exceptions
from conversations.exceptions import InvalidState
from conversations.formats import import_lines
from conversations.models import ConversationState
from conversations.storage import load_state, save_state
from flags import exceptions as flags_exceptions
from flags.exceptions import OwnError
from flags.management import output
from flags.texts import MOST, escaped, quoted, shortened, shown
from tests.faults.injection import failing
from tests.support.factories import state

# C0 and C1, DEL, the escapes of terminals, separators, and what turns a text around.
HOSTILE = (
    "id\x1b[2J\x1b]0;title\x07\r\n\tforged: line\x7f\x80\x9b31m\u2028\u2029\u202a\u202e\u2066\u2069"
)
# Joiners, direction marks and every script stay as they are.
ORDINARY = "Grüße, Привет, שלום\u200f, مرحبا\u200e, नमस्ते, ไทย, 你好, 👩\u200d👩\u200d👧, \u00a0é"
_ACTING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def acting(text: str) -> list[str]:
    """Return what in a text would make a terminal act; its own line ends are none."""
    return _ACTING.findall(text)


# The texts themselves


def test_every_control_character_is_escaped_and_nothing_else() -> None:
    assert escaped(HOSTILE) == (
        r"id\x1b[2J\x1b]0;title\x07\r\n\tforged: line\x7f\x80\x9b31m\u2028\u2029\u202a\u202e"
        r"\u2066\u2069"
    )
    assert escaped(ORDINARY) == ORDINARY
    assert escaped(escaped(HOSTILE)) == escaped(HOSTILE)
    escaped("\ud800").encode("utf-8")


class Talkative:
    def __repr__(self) -> str:
        return "said in confidence" * 100

    __str__ = __repr__


class Loud(str):
    def __str__(self) -> str:
        return "said in confidence" * 100


# By number: pytest would write ten thousand digits into an id.
VALUES: list[tuple[Any, str]] = [
    ("short", "short"),
    ("x" * 50, "x" * 50),
    ("a" * 40 + "b" * 40, "a" * 30 + "…" + "b" * 20),
    (Loud("short"), "short"),
    ("\n" * 60, r"\n" * 30 + "…" + r"\n" * 20),
    (7, "7"),
    (True, "True"),
    (None, "None"),
    (1.5, "1.5"),
    (10**60, "1" + "0" * 29 + "…" + "0" * 20),
    (10**5000, "an int of 16610 bits"),
    ({"said": "in confidence"}, "a dict of 1"),
    (["said in confidence"] * 3, "a list of 3"),
    (b"said in confidence", "a bytes of 18"),
    (Talkative(), "a Talkative"),
    (ValueError("said in confidence"), "a ValueError"),
]


@pytest.mark.parametrize(("value", "expected"), VALUES, ids=range(len(VALUES)))
def test_a_message_repeats_little_of_a_value(value: Any, expected: str) -> None:
    assert shown(value) == expected
    assert quoted(value) == (f"'{expected}'" if isinstance(value, str) else expected)
    assert len(shortened("x" * 1000).replace("…", "")) == MOST


# Exceptions


def own_errors(kind: type[OwnError] = OwnError) -> Iterator[type[OwnError]]:
    for each in kind.__subclasses__():
        yield each
        yield from own_errors(each)


def test_every_error_of_ours_has_the_base_that_escapes() -> None:
    for module in (exceptions, flags_exceptions):
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, Exception):
                assert issubclass(kind, OwnError), kind


@pytest.mark.parametrize("kind", sorted(set(own_errors()), key=lambda kind: kind.__qualname__))
def test_an_exceptions_text_is_one_line_of_plain_characters(kind: Any) -> None:
    assert str(kind(HOSTILE)) == escaped(HOSTILE)
    assert str(kind(ORDINARY)) == ORDINARY


def test_the_place_in_an_exception_is_escaped_too() -> None:
    error = InvalidState("is wrong", path=f"extra.{HOSTILE}")
    assert not acting(error.path)
    assert str(error) == f"{error.path}: is wrong"


# Logs


def modules_of(*packages: Any) -> Iterator[Any]:
    for package in packages:
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "migrations" not in found.name and "integrations" not in found.name:
                yield importlib.import_module(found.name)


def test_every_logger_of_ours_is_one_that_escapes() -> None:
    named = {
        logger.name
        for module in modules_of(conversations, memory, flags)
        for logger in vars(module).values()
        if isinstance(logger, logging.Logger)
    }
    assert named == {"conversations", "flags"}
    for name in named | {"memory"}:
        found = logging.getLogger(name).filters
        assert [type(each).__name__ for each in found] == ["Escaping"], name


@pytest.mark.parametrize("name", ["conversations", "flags", "memory"])
def test_a_logged_value_is_one_line_of_plain_characters(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, name)
    logger = logging.getLogger(name)
    logger.info("%s and %d of %r: %.1f", HOSTILE, 7, HOSTILE, 0.5)
    logger.info("%(id)s", {"id": HOSTILE})
    logger.info(HOSTILE)
    logger.info("%s", ORDINARY)
    logger.info("%.1f, %d", Decimal("0.25"), Fraction(7, 2))
    lines = [record.getMessage() for record in caplog.records]
    assert not acting("".join(lines))
    assert "\n" not in "".join(lines)
    assert lines[1:] == [escaped(HOSTILE)] * 2 + [ORDINARY, "0.2, 3"]


@pytest.mark.django_db
def test_an_id_in_a_log_line_forges_no_other(
    new_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    save_state(HOSTILE, state("a"))
    with (
        failing(lambda sql: "waffle" not in sql),
        pytest.raises(exceptions.StorageUnavailable) as failure,
    ):
        load_state(HOSTILE)
    (line,) = {record.getMessage() for record in caplog.records}
    assert line == f"conversation {shown(HOSTILE)}: OperationalError"
    assert not acting(str(failure.value))
    assert "\n" not in str(failure.value)


# Terminals

COMMANDS = {
    name: app
    for name, app in get_commands().items()
    if app in ("conversations", "memory", "flags", "config", "benchmarks")
}


def test_every_command_writes_by_lines() -> None:
    assert set(COMMANDS) == {"conversations", "rollout", "bench", "demo"}
    for name, app in COMMANDS.items():
        assert isinstance(load_command_class(app, name), output.Command), name
    written = [
        path
        for package in (conversations, memory, flags, config, benchmarks)
        for path in Path(package.__path__[0]).rglob("management/**/*.py")
        if re.search(r"print\(|sys\.std(out|err)", path.read_text(encoding="utf-8"))
    ]
    assert written == []


def command_lines() -> Iterator[tuple[str, ...]]:
    """Yield the beginning of every command's line: its name, and that of a sub-command."""
    for name, app in COMMANDS.items():
        parser: Any = load_command_class(app, name).create_parser("manage.py", name)
        parsers = [action.choices for action in parser._actions if action.dest == "command"]
        yield from ((name, sub) for choices in parsers for sub in choices)
        yield (name,)


def ran(*args: str) -> tuple[str, str]:
    """Return what a command writes, and says, on a terminal."""
    out, err = io.StringIO(), io.StringIO()
    try:
        call_command(*args, stdout=out, stderr=err)
    except CommandError as error:
        err.write(f"{error}\n")
    return out.getvalue(), err.getvalue()


@pytest.mark.parametrize("line", list(command_lines()), ids=" ".join)
def test_a_refused_command_line_is_repeated_in_short(line: tuple[str, ...]) -> None:
    long = "ж" * 1000
    for wrong in (f"--{long}", f"--unknown={long}", f"--json={long}", "--\x1b[2J\n\u202e"):
        with pytest.raises(CommandError) as refused:
            call_command(*line, wrong)
        assert str(refused.value).count("ж") <= MOST
        assert not acting(str(refused.value))
        assert "\n" not in str(refused.value)


class Refusing(output.Command):
    requires_system_checks = ()

    def run(self, **options: Any) -> None:
        self.stdout.write(HOSTILE)
        self.stderr.write(HOSTILE)
        try:
            raise KeyError("said in confidence")
        except KeyError as error:
            raise CommandError(HOSTILE, returncode=3) from error


def test_output_and_refusals_of_a_command_are_one_line_of_plain_characters() -> None:
    out, err = io.StringIO(), io.StringIO()
    with pytest.raises(CommandError) as refused:
        call_command(Refusing(), stdout=out, stderr=err)
    assert str(refused.value) == escaped(HOSTILE)
    assert refused.value.returncode == 3
    assert out.getvalue() == err.getvalue() == f"{escaped(HOSTILE)}\n"
    assert str(refused.value.__cause__).startswith("KeyError: its text is left out")


@pytest.mark.django_db
def test_ids_on_a_terminal_are_on_their_lines(new_only: None) -> None:
    save_state(HOSTILE, state("a"))
    save_state(ORDINARY, state("a"))
    ConversationState.rows.filter(conversation_id__in=[HOSTILE, ORDINARY]).update(message_count=7)
    out, err = ran("conversations", "verify", HOSTILE, ORDINARY)
    assert not acting(out + err)
    assert f"{escaped(HOSTILE)}: " in out
    assert f"{ORDINARY}: " in out
    assert "forged" not in [line[:6] for line in (out + err).splitlines()]
    out, err = ran("conversations", "export", "-", "--id", HOSTILE + "?")
    assert not acting(out + err)
    assert "forged" in err


@pytest.mark.django_db
def test_json_and_exports_say_ids_as_they_are(new_only: None, tmp_path: Path) -> None:
    for name in (HOSTILE, ORDINARY):
        save_state(name, state(f"say {name}"))
    ConversationState.rows.filter(conversation_id=HOSTILE).update(verified_revision=-1)
    out, _ = ran("conversations", "verify", HOSTILE, "--json")
    assert not acting(out)
    [json.loads(line) for line in out.splitlines()]
    out, _ = ran("conversations", "export")
    assert sorted(json.loads(line)["conversation_id"] for line in out.splitlines()) == sorted(
        [HOSTILE, ORDINARY]
    )
    file = tmp_path / "all.jsonl"
    ran("conversations", "export", str(file))
    assert file.read_text(encoding="ascii") == out
    assert {str(one.result) for one in import_lines(out.splitlines())} == {"unchanged"}


def test_a_line_of_json_stays_json_with_any_content() -> None:
    stream = io.StringIO()
    lines = output.Lines(stream)
    lines.json({HOSTILE: ORDINARY})
    lines.write(HOSTILE)
    lines.data("as\tit is")
    first, second, third = stream.getvalue().splitlines()
    assert json.loads(first) == {HOSTILE: ORDINARY}
    assert (second, third) == (escaped(HOSTILE), "as\tit is")
    assert not acting(first)
