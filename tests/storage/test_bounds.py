"""No text of ours repeats more than 50 characters of an argument, or what a wrong one holds.

Every public function, with every kind of wrong argument in every place.
"""

from __future__ import annotations

import ast
import inspect
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from asgiref.sync import async_to_sync
from django.core.management import call_command
from django.db import transaction
from django.test import override_settings
from django.utils.functional import SimpleLazyObject

import conversations
import flags.phases
import memory.selection
from conversations import aio, checks, formats, storage
from conversations.exceptions import InvalidOwner, InvalidState, KeyReused, StorageUnavailable
from conversations.rollout import retirement, sync, verification
from conversations.rollout.runs import records
from conversations.state import AgentState
from conversations.writing import retention
from flags import checks as flags_checks, health, transitions
from flags.phases import Phase
from flags.texts import MOST
from tests.api import FUNCTIONS
from tests.faults.injection import failing
from tests.flags.test_outlets import own_errors
from tests.support.chains import chain, raised_by, texts_of, told
from tests.support.factories import message, messages, state

pytestmark = pytest.mark.django_db
MARK = "ж"
LONG = MARK * 5000
SECRET = "said in confidence"


class Talkative:
    """An object that says everything, and is of no type that a function takes."""

    def __repr__(self) -> str:
        return f"{SECRET} {LONG}"

    __str__ = __repr__


# What stands in the place of every argument.
WRONG: dict[str, Any] = {
    "long text": LONG,
    "mapping": {SECRET: SECRET},
    "list": [SECRET],
    "tuple": (SECRET, {SECRET: SECRET}),
    "hashable tuple": (SECRET, SECRET),
    "set": {SECRET},
    "bytes": SECRET.encode(),
    "object": Talkative(),
    "list of objects": [Talkative()],
    "list of long texts": [LONG, LONG],
    "mapping of objects": {LONG: Talkative()},
    "error": ValueError(SECRET, LONG),
    "large number": 10**5000,
    "not a number": float("nan"),
    "lazy text": SimpleLazyObject(lambda: LONG),
    "lazy number": SimpleLazyObject(lambda: 10**5000),
}
# What stands in all other places.
RIGHT: dict[str, Any] = {
    "conversation_id": "c",
    "state": AgentState(user_input="x"),
    "messages": messages("x"),
    "message": message("x"),
    "updates": {"step_count": 1},
    "key_or_sequence": 1,
    "keys_or_sequences": [1],
    "last_timestamp": None,
}


def check(error: BaseException | None, about: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Assert that neither an error nor what was logged repeats much, or what was said."""
    logged = [record.getMessage() for record in caplog.records]
    for text in logged:
        assert text.count(MARK) <= MOST, about
        assert SECRET not in text, about
    caplog.clear()
    if error is None:
        return
    for one in chain(error):
        for text in texts_of(one):
            assert text.count(MARK) <= MOST, (about, type(one))
    assert SECRET not in told(error), about


def tried(call: Callable[[], Any]) -> BaseException | None:
    """Return what a call raises; what it does is undone."""
    with transaction.atomic():
        failure = raised_by(lambda: consumed(call()))
        transaction.set_rollback(True)
    return failure


def consumed(found: Any) -> Any:
    return list(found) if inspect.isgenerator(found) else found


# Functions of the storage


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_function_repeats_a_wrong_argument(
    new_only: None, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    storage.save_state("c", state("a", "b"))
    function = getattr(storage, name)
    parameters = inspect.signature(function).parameters
    given = {place: RIGHT[place] for place in parameters if place in RIGHT}
    if "user_id" in parameters and parameters["user_id"].default is inspect.Parameter.empty:
        given["user_id"] = 1
    refused = 0
    for place in parameters:
        for kind, value in WRONG.items():
            if place == "keys_or_sequences" and kind in ("list", "hashable tuple"):
                # These are keys, of which the one that is missing is named.
                value = [LONG]
            failure = tried(lambda: function(**given | {place: value}))  # noqa: B023
            refused += failure is not None
            if place in ("conversation_id", "user_id"):
                assert isinstance(failure, InvalidState | InvalidOwner), (place, kind)
            check(failure, (place, kind), caplog)
    assert refused >= 10


def test_no_coroutine_repeats_a_wrong_argument(
    new_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    for kind, value in WRONG.items():
        for call in (aio.load_state, storage.aload_state, aio.delete_conversation):
            check(tried(lambda: async_to_sync(call)("c", user_id=value)), kind, caplog)  # noqa: B023


def in_ids(name: str) -> bool:
    return "conversation_id" in inspect.signature(getattr(storage, name)).parameters


@pytest.mark.parametrize("name", list(filter(in_ids, FUNCTIONS)))
def test_a_long_id_is_repeated_in_short(
    phase: Phase, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As long as an id may be: missing, and where the database does not answer."""
    caplog.set_level(logging.DEBUG)
    function = getattr(storage, name)
    parameters = inspect.signature(function).parameters
    given = {place: RIGHT[place] for place in parameters if place in RIGHT}
    given |= {"user_id": 1} if parameters["user_id"].default is inspect.Parameter.empty else {}
    given["conversation_id"] = MARK * 255
    check(tried(lambda: function(**given)), "missing", caplog)

    def down() -> None:
        with failing(lambda sql: "waffle" not in sql):
            function(**given)

    failure = tried(down)
    assert isinstance(failure, StorageUnavailable)
    assert f"{MARK * 30}…{MARK * 20}" in str(failure)
    check(failure, "down", caplog)


NESTED = {LONG: {LONG: {LONG: Talkative()}}}
STATES: dict[str, Callable[[], Any]] = {
    "extra": lambda: AgentState(extra=NESTED),
    "a field's name": lambda: AgentState(extra={LONG: object()}),
    "extra that repeats": lambda: AgentState(extra={"focus": SECRET}),
    "a message": lambda: AgentState(conversation_history=[{LONG: Talkative()}]),
    "a nested message": lambda: AgentState(conversation_history=[NESTED]),
    "a key of another type": lambda: AgentState(last_tool_result={Talkative(): 1}),
    "a field of another type": lambda: AgentState(focus={SECRET: LONG}),  # type: ignore[arg-type]
    "keys that are one": lambda: AgentState(last_tool_result={LONG: {1: SECRET, "1": SECRET}}),
    "a baseline": lambda: AgentState.from_dict({"_baseline": {SECRET: LONG}}),
    "a baseline's digest": lambda: AgentState.from_dict(
        {"_baseline": {"message_digests": SECRET + LONG}}
    ),
}


@pytest.mark.parametrize("made", STATES.values(), ids=STATES)
def test_a_state_that_is_refused_is_named_by_its_place(
    made: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    failure = tried(lambda: storage.save_state("c", made()))
    assert isinstance(failure, InvalidState)
    check(failure, made, caplog)


def test_a_wrong_name_among_updates_is_not_repeated() -> None:
    with pytest.raises(InvalidState, match="entry 2 is none of user_input") as refused:
        storage.update_state_partial("c", {"step_count": 1, SECRET: 1})
    assert refused.value.path == "updates"
    with pytest.raises(InvalidState, match="did you mean focus_areas") as refused:
        storage.update_state_partial("c", {"focus_area": []})
    with pytest.raises(InvalidState) as refused:
        storage.update_state_partial("c", {"history": []})
    assert refused.value.path == "updates.history"


def test_a_reused_key_is_repeated_in_short(
    new_only: None, caplog: pytest.LogCaptureFixture
) -> None:
    key = MARK * 255
    storage.append_messages("c", messages("a"), keys=[key], create=True)
    failure = tried(lambda: storage.append_messages("c", messages(SECRET), keys=[key]))
    assert isinstance(failure, KeyReused)
    check(failure, "key", caplog)


# Functions of operators, and of the other apps

OPERATORS: dict[str, Callable[[Any], Any]] = {
    "sync": lambda value: sync.sync(value),
    "sync, ids": lambda value: sync.sync("tables", [value]),
    "verify": lambda value: verification.verify([value]),
    "verify, sample": lambda value: verification.runs.begin(sample=value),
    "export_lines": lambda value: formats.export_lines([value]),
    "import_lines": lambda value: formats.import_lines([value]),
    "user_key": lambda value: formats.user_key(value),
    "user_key, pk": lambda value: formats.user_key("pk:" + value),
    "read_conversations": lambda value: formats.read_conversations(value),
    "prune": lambda value: retention.prune([value]),
    "pause": lambda value: records.pause(value),
    "retire": lambda value: retirement.retire(waive=value),
    "restore_archive": lambda value: retirement.restore_archive(Path(value)),
}
# Where Python, or Django, refuses by itself what has no place there: its own words.
OTHERS = (OSError, TypeError, AttributeError)


@pytest.mark.parametrize("call", OPERATORS.values(), ids=OPERATORS)
def test_no_operators_function_repeats_a_wrong_argument(
    call: Callable[[Any], Any], settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    caplog.set_level(logging.DEBUG)
    for kind, value in WRONG.items():
        failure = tried(lambda: call(value))  # noqa: B023
        if not isinstance(failure, OTHERS):
            check(failure, kind, caplog)


PUBLIC = {
    f"{module.__name__}.{name}": function
    for module in (flags.phases, transitions, health, memory.selection)
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if inspect.unwrap(function).__module__ == module.__name__ and not name.startswith("_")
}
ARGUMENTS: dict[str, Any] = {
    "percent": 100,
    "switches": {},
    "plan": flags.phases.PLANS[Phase.LEGACY],
    "phase": Phase.LEGACY,
    "item": {},
    "threshold": 0.5,
    "results": (),
    "name": "probe",
    "probe": None,
}


@pytest.mark.parametrize("name", PUBLIC)
def test_no_function_of_flags_and_memory_repeats_a_wrong_argument(
    name: str, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.CONVERSATIONS = {"LEGACY": "memory_chunks"}
    caplog.set_level(logging.DEBUG)
    function, probes = PUBLIC[name], dict(health._probes)
    parameters = inspect.signature(function).parameters
    given = {place: ARGUMENTS[place] for place in parameters if place in ARGUMENTS}
    # Gates would look at every store, again and again.
    unasked = mock.patch.object(transitions, "_ask_all", return_value=[])
    with mock.patch.object(transitions, "not_in_a_transaction"), unasked:
        for place in parameters:
            recorded = place in ("reason", "actor")
            for kind, value in list(WRONG.items())[: 2 if recorded else None]:
                if place == "waive" and isinstance(value, dict):
                    # It names gates: what is none is repeated, and that is all.
                    value = {LONG: SECRET}
                check(tried(lambda: function(**given | {place: value})), (place, kind), caplog)  # noqa: B023
    health._probes.clear()
    health._probes.update(probes)


@pytest.mark.parametrize("kind", WRONG)
def test_no_check_repeats_a_wrong_setting(kind: str) -> None:
    known = [*checks.settings.DEFAULTS, LONG]
    for name in known:
        if (name, kind) == ("SWITCHES", "mapping"):
            # It names switches: one that is none is repeated, so that it is found.
            continue
        with override_settings(CONVERSATIONS={name: WRONG[kind]}):
            found = [
                *checks.settings.check_settings(),
                *checks.settings.check_state_class(),
                *checks.legacy.check_legacy(),
                *flags_checks.check_switches(),
            ]
        for one in found:
            for text in (str(one.msg), str(one.hint)):
                assert text.count(MARK) <= MOST, (name, text)
                assert SECRET not in text, (name, text)


def test_no_command_repeats_a_wrong_argument(
    new_only: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "users.json"
    broken.write_text('{"' + LONG, encoding="utf-8")
    missing = str(tmp_path / (MARK * 100))
    for line in (
        ("import", missing),
        ("import", str(broken)),
        ("import", str(broken), "--user-map", str(broken)),
        ("import", str(broken), "--assign", LONG),
        ("export", missing + "/x"),
        ("export", "--id", LONG),
        ("verify", LONG),
        ("sync", "--to", LONG),
        ("sync", "--to", "tables", LONG),
        ("pause", LONG),
        ("restore-legacy", missing),
        ("retire-legacy", "--yes", "--waive", LONG),
    ):
        failure = tried(
            lambda: call_command("conversations", *line, stdout=io.StringIO())  # noqa: B023
        )
        check(failure, line, caplog)


# The code itself

# What others choose, by the names that the code has for it.
CHOSEN = {"conversation_id", "owner", "reference", "user_id", "username", "value"}
# What has a text: our errors, those of commands, and the messages of checks.
ERRORS = {kind.__name__ for kind in own_errors()} | {"CommandError", "Error", "Warning", "Refused"}


def bare(node: ast.expr) -> bool:
    """Whether an expression is such a value itself, and not what `shown` makes of it."""
    last = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return last in CHOSEN


def unbounded(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield the values that are logged, or put into an error, at their full length."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("logger."):
            yield from filter(bare, node.args)
        if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS):
            continue
        for part in ast.walk(node):
            if isinstance(part, ast.FormattedValue):
                # A repr is as long as it likes.
                if bare(part.value) or part.conversion == ord("r"):
                    yield part.value


def test_values_of_others_reach_error_messages_through_one_place() -> None:
    found = []
    for package in (conversations, memory, flags):
        root = Path(package.__path__[0])
        for path in root.rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [
                (path.relative_to(root.parent).as_posix(), ast.unparse(each))
                for each in unbounded(tree)
            ]
    # Aliases of DATABASES, and names of ours.
    aliases = {"alias", "connection.alias", "used", "name", "near[0]"}
    assert [one for one in found if not (one[1] in aliases and "/checks" in one[0])] == []
