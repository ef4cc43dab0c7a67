"""Switches that were made before LEGACY was set begin no rollout until that is answered."""

from __future__ import annotations

import html
import io
import json
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.db import DEFAULT_DB_ALIAS, connection, transaction
from django.test import Client

from conversations.checks.legacy import check_legacy
from conversations.models import ConversationState
from conversations.rollout.verification import verify
from conversations.storage import append_messages, load_state, save_state
from conversations.stores.registry import configured_store
from flags import beginnings, transitions
from flags.exceptions import TransitionRefused
from flags.phases import Phase, Switch, switches_for
from flags.signals import create_switches
from flags.switches import snapshot
from tests.faults.injection import failing
from tests.flags.test_switches import Rows, set_rows
from tests.machine.oldcode import OldChunks, OldSession
from tests.support.factories import UserFactory, messages, state, texts
from tests.support.rollout import EASED

pytestmark = pytest.mark.django_db(transaction=True)
SAID = {switch: on for switch, on in switches_for(Phase.NEW_ONLY).items() if on}


@pytest.fixture(params=[OldChunks(), OldSession()], ids=["chunks", "jsonfield"])
def old(request: pytest.FixtureRequest, settings: Any) -> Any:
    """Old code and its store; LEGACY was set after the first migrate."""
    Rows._base_manager.all().delete()
    settings.CONVERSATIONS = {}
    snapshot.forget()
    create_switches(sender=None, using=DEFAULT_DB_ALIAS)
    settings.CONVERSATIONS = {"LEGACY": request.param.settings, **EASED}
    snapshot.forget()
    assert transitions.status().phase == Phase.NEW_ONLY
    return request.param


def run(command: str, *arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    try:
        call_command(command, *arguments, stdout=out, stderr=io.StringIO())
    except CommandError as error:
        return error.returncode, out.getvalue() + str(error)
    return 0, out.getvalue()


def errors() -> list[str]:
    found = run_checks(databases=[DEFAULT_DB_ALIAS])
    return [str(one.id) for one in found if one.id == "flags.E003"]


STEPS = [
    ("advance",),
    ("advance", "--canary", "5"),
    ("check",),
    ("canary", "50"),
    ("canary", "100"),
    ("rollback", "--rehearse"),
]


def test_an_error_and_every_step_say_it_and_name_what_mends_it(old: Any) -> None:
    assert (errors(), beginnings.unanswered()) == ([], False)
    old.write("theirs", state("a").to_dict())
    assert errors() == ["flags.E003"]
    with pytest.raises(CommandError, match="rollout rollback --to legacy"):
        call_command("check", "--database", DEFAULT_DB_ALIAS)
    for step in STEPS:
        code, said = run("rollout", *step)
        assert (code, "rollout rollback --to legacy" in said) == (5, True), step
    code, said = run("rollout", "advance", "--json")
    assert beginnings.QUESTION in json.loads(said.splitlines()[0])["refused"]
    code, said = run("rollout", "status")
    assert (code, beginnings.QUESTION in said, beginnings.ANSWER in said) == (0, True, True)
    assert json.loads(run("rollout", "status", "--json")[1])["unanswered"] == beginnings.QUESTION
    assert transitions.status().phase == Phase.NEW_ONLY
    assert {one.kind for one in transitions.history()} == {"noticed"}


def test_an_emergency_and_its_end_work_and_answer_nothing(old: Any) -> None:
    old.write("theirs", state("a").to_dict())
    assert transitions.emergency() is not None
    save_state("theirs", load_state("theirs"))
    assert errors() == ["flags.E003"]
    assert not transitions.resume().emergency
    assert errors() == ["flags.E003"]
    with pytest.raises(TransitionRefused, match="rollback --to legacy"):
        transitions.canary(50)
    assert run("conversations", "sync", "--to", "legacy")[0] == 0
    assert run("rollout", "rollback", "--to", "legacy")[0] == 0
    assert errors() == []


def test_the_command_that_mends_it_loses_nothing(old: Any) -> None:
    """What was written to the tables meanwhile is brought to legacy on the way, by a sync."""
    for name in ("theirs", "both"):
        old.write(name, state("of old code").to_dict())
    append_messages("theirs", messages("ours"))
    # Begun anew, because no operation looked into legacy then.
    save_state("new", state("ours"))
    forget_legacy("both", "ours")
    wanted = {
        "theirs": ["of old code", "ours"],
        "new": ["ours"],
        "both": ["of old code", "ours"],
    }
    code, said = run("rollout", "rollback", "--to", "legacy", "--reason", "LEGACY came late")
    assert code == 5
    assert "conversations sync --to legacy" in said
    assert transitions.status().phase == Phase.NEW_READS
    assert (errors(), {name: sorted(texts(load_state(name))) for name in wanted}) == ([], wanted)
    # Others go on meanwhile.
    append_messages("new", messages("later"))
    wanted["new"].append("later")
    assert run("conversations", "sync", "--to", "legacy")[0] == 0
    assert run("rollout", "rollback", "--to", "legacy", "--reason", "LEGACY came late")[0] == 0
    assert transitions.status().phase == Phase.LEGACY
    for name, lines in wanted.items():
        found = old.read(name)
        read = [each["content"] for each in found["conversation_history"]]
        assert sorted(read) == sorted(texts(load_state(name))) == sorted(lines)
    made = [one for one in transitions.history() if one.kind == "rollback"]
    assert [(one.source, one.target) for one in reversed(made)] == [
        (Phase(phase), Phase(phase - 1)) for phase in (4, 3, 2, 1)
    ]
    assert {one.reason for one in made} == {"LEGACY came late"}
    assert errors() == []
    assert "unanswered" not in json.loads(run("rollout", "status", "--json")[1])
    # And from here on the rollout begins as it should.
    save_state("in legacy", state("x"))
    assert not ConversationState.rows.filter(conversation_id="in legacy").exists()
    assert run("conversations", "sync", "--to", "tables")[0] == 0
    assert all(one.in_order for one in verify())


def forget_legacy(name: str, line: str) -> None:
    """Save as without LEGACY: unaware of the conversations in legacy."""
    save_state("stand-in", state(line))
    ConversationState.rows.filter(conversation_id="stand-in").update(conversation_id=name)


def test_legacy_is_not_retired_before_it_is_answered(old: Any) -> None:
    """What old code writes there would be out of reach of every step back."""
    old.write("theirs", state("a").to_dict())
    assert run("conversations", "sync", "--to", "tables")[0] == 0
    for option in ("--dry-run", "--yes"):
        code, said = run("conversations", "retire-legacy", option)
        assert (code, beginnings.QUESTION in said, beginnings.ANSWER in said) == (5, True, True)
    assert not transitions.status().retired
    assert run("rollout", "rollback", "--to", "legacy")[0] == 0
    code, said = run("conversations", "retire-legacy", "--yes")
    assert (code, beginnings.QUESTION in said) == (5, False)


def test_the_admin_of_the_switches_says_it(old: Any, client: Client) -> None:
    client.force_login(UserFactory(is_staff=True, is_superuser=True))
    switch = Rows._base_manager.order_by("pk")[0]
    pages = [f"/admin/waffle/switch/{page}" for page in ("", f"{switch.pk}/change/")]
    assert beginnings.QUESTION not in html.unescape(client.get(pages[0]).content.decode())
    old.write("theirs", state("a").to_dict())
    for page in pages:
        shown = html.unescape(client.get(page).content.decode())
        assert beginnings.QUESTION in shown
        assert beginnings.ANSWER in shown


def test_where_nothing_was_written_one_command_is_enough(old: Any) -> None:
    old.write("theirs", state("a").to_dict())
    assert run("rollout", "rollback", "--to", "legacy")[0] == 0
    assert (transitions.status().phase, errors()) == (Phase.LEGACY, [])
    assert texts(load_state("theirs")) == ["a"]


def test_new_only_that_the_settings_spell_is_meant(old: Any, settings: Any) -> None:
    old.write("theirs", state("a").to_dict())
    settings.CONVERSATIONS = {**settings.CONVERSATIONS, "SWITCHES": SAID}
    assert (errors(), beginnings.unanswered()) == ([], False)
    assert "last phase" in run("rollout", "advance")[1]


def test_a_rollout_that_was_moved_by_hand_is_not_asked(old: Any) -> None:
    old.write("theirs", state("a").to_dict())
    for phase in (Phase.DUAL_WRITE, Phase.NEW_ONLY):
        set_rows(phase)
        snapshot.forget()
        transitions.status()
    assert (errors(), beginnings.unanswered()) == ([], False)


def test_other_phases_and_teams_without_legacy_are_not_asked(old: Any, settings: Any) -> None:
    old.write("theirs", state("a").to_dict())
    set_rows(Phase.LEGACY)
    snapshot.forget()
    assert not beginnings.unanswered()
    settings.CONVERSATIONS = {}
    assert not beginnings.unanswered()
    assert "flags.E003" not in errors()


@pytest.mark.parametrize(
    "settings_of",
    [
        {"LEGACY": {"model": "no.Such", "conversation_id": "a", "owner": "b", "state": "c"}},
        {"LEGACY": "memory_chunks", "SWITCHES": [1]},
        {"LEGACY": "memory_chunks", "SWITCHES": None},
    ],
)
def test_settings_that_say_nothing_raise_nothing(settings: Any, settings_of: Any) -> None:
    set_rows(Phase.NEW_ONLY)
    settings.CONVERSATIONS = settings_of
    snapshot.forget()
    assert errors() == []
    assert check_legacy() is not None


def test_a_legacy_that_does_not_answer_is_not_taken_for_an_empty_one_for_good(
    old: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no answer; what asks next is told by gates that the store is down."""
    old.write("theirs", state("a").to_dict())

    def down(self: Any, **options: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM no_such_table")

    with monkeypatch.context() as patched:
        patched.setattr(type(configured_store()), "ids", down)
        assert not beginnings.unanswered()
        assert transitions.status().phase == Phase.NEW_ONLY
        with transaction.atomic():
            assert not beginnings.unanswered()
            # The caller's transaction goes on.
            assert transitions.status().phase == Phase.NEW_ONLY
    assert beginnings.unanswered()


def test_switches_that_cannot_be_read_are_no_answer(
    old: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The checks of the first migrate come before its tables: nothing is logged."""
    old.write("theirs", state("a").to_dict())
    with failing(lambda sql: "waffle_switch" in sql) as failed:
        assert errors() == []
        assert not beginnings.unanswered()
    assert failed
    assert caplog.text == ""
    assert Switch.USE_NEW_STORAGE in SAID
