"""What the documents say of names, and show as code, is true."""

from __future__ import annotations

import ast
import json
import re
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import fields
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import PermissionDenied
from django.core.management import call_command
from django.http import Http404
from django.test import RequestFactory
from django.utils import timezone

from conversations.conf import DEFAULTS
from conversations.content import codec
from conversations.content.validation import check_document
from conversations.exceptions import InvalidState
from conversations.management.commands import conversations
from conversations.rollout.sync import Target
from conversations.state import AgentState, LoadInfo
from conversations.storage import create_new_conversation, get_conversation_id, load_state
from flags.gates import Step, guarding
from flags.management.commands import rollout
from flags.phases import SWITCHES_OF, Phase, StoreName, Switch
from flags.signals import create_switches
from flags.switches import snapshot
from tests.support.checks import identifiers
from tests.support.factories import UserFactory, texts
from tests.support.legacy_schema import TABLES

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
GUIDES = {path.name: path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
RUNBOOK = GUIDES["rollout.md"]


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


EXAMPLE, VIEW = re.findall(r"```python\n(.*?)```", section("Install it in your project"), re.S)


def named(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", text))


@pytest.mark.django_db
def test_the_example_of_the_readme_runs() -> None:
    user = UserFactory()
    exec(EXAMPLE, {"user": user})
    conversation_id = get_conversation_id(user)
    assert texts(load_state(conversation_id, user_id=user)) == ["Hello", "Hi"]


def answered(messages: list[Any]) -> dict[str, str]:
    return {"role": "assistant", "content": f"{len(messages)} read"}


async def answered_later(messages: list[Any]) -> dict[str, str]:
    return answered(messages)


def in_async_code(view: str) -> str:
    """Return the view as the sentence behind it says that an async one reads."""
    for name in ("load_state(", "append_messages("):
        view = view.replace(f" {name}", f" await aio.{name}")
    view = view.replace("request.user\n", "await request.auser()\n")
    view = view.replace("ask_model", "await ask_model").replace("def chat", "async def chat")
    return f"from conversations import aio\n{view}"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_chat_view_of_the_readme_answers_its_owner_alone(asynchronous: bool) -> None:
    owner, other = UserFactory(), UserFactory()
    conversation_id = create_new_conversation(owner)
    names: dict[str, Any] = {"ask_model": answered_later if asynchronous else answered}
    exec(in_async_code(VIEW) if asynchronous else VIEW, names)
    view = async_to_sync(names["chat"]) if asynchronous else names["chat"]

    def asked(user: Any, conversation_id: str = conversation_id, **data: str) -> Any:
        factory = RequestFactory()
        request = factory.post("/", data) if data else factory.get("/")
        request.user = user

        async def auser() -> Any:
            return user

        request.auser = auser
        return json.loads(view(request, conversation_id).content)["messages"]

    assert asked(owner) == []
    for _ in range(2):
        told = asked(owner, text="Hello", key="form-1")
        assert [message["content"] for message in told] == ["Hello", "1 read"]
    assert asked(owner) == told
    for user, name in ((other, conversation_id), (owner, "missing")):
        with pytest.raises(Http404):
            asked(user, name)
    with pytest.raises(PermissionDenied):
        asked(AnonymousUser())


def test_the_readme_names_every_setting_with_its_default() -> None:
    text = section("Settings")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in named(row.split("|")[1])} == set(DEFAULTS)
    for name in ("MAX_DEPTH", "KEEP_VERSIONS"):
        (row,) = [row for row in rows if f"`{name}`" in row]
        assert str(DEFAULTS[name]) in row


def test_the_readme_says_what_a_state_is() -> None:
    text = section("What a state is")
    rows = {row.split("|")[1].strip(): row for row in text.splitlines() if row.startswith("| `")}
    empty = AgentState()
    names = [f.name for f in fields(AgentState) if f.repr]
    assert list(rows) == [f"`{name}`" for name in names]
    for name in names:
        value = getattr(empty, name)
        kind = "anything" if value is None else f"`{type(value).__name__}`"
        assert kind in rows[f"`{name}`"]
        assert (f"`{value!r}`" if value != "" else '`""`') in rows[f"`{name}`"]
    columns = {*codec.MESSAGE_COLUMNS, *codec.ITEM_COLUMNS, "timestamp"}
    assert columns - {"extra", "original_role"} <= named(text)
    assert {f.name for f in fields(LoadInfo)} <= named(text)


@pytest.mark.django_db
def test_a_missing_conversation_gives_what_the_readme_says() -> None:
    (shown,) = re.findall(r"gives an empty state, `(.*?)`", section("What a state is"))
    missing = load_state("missing", user_id=UserFactory())
    assert missing == eval(shown)
    assert missing.load_info is None


def test_the_readme_shows_the_error_of_an_object_as_it_is() -> None:
    (shown,) = re.findall(r"what to call: `(.*?)`\.", section("What a state is"))
    kind = type("ChatCompletionMessage", (), {"model_dump": None})
    with pytest.raises(InvalidState) as refused:
        check_document({"conversation_history": [{}, kind()]})
    assert str(refused.value) == shown


def spelled_out(text: str) -> set[str]:
    """Return the ids that a text names: alone, after another one of its app, or as a range."""
    found: set[str] = set()
    app = ""
    for prefix, kind, first, last in re.findall(
        r"`(?:(\w+)\.)?([EW])(\d{3})`(?:–`[EW](\d{3})`)?", text
    ):
        app = prefix or app
        numbers = range(int(first), int(last or first) + 1)
        found |= {f"{app}.{kind}{number:03}" for number in numbers}
    return found


def test_the_readme_names_every_check() -> None:
    assert len(identifiers()) > 20
    assert spelled_out(section("Checks")) == identifiers()


def test_the_readme_names_every_command() -> None:
    parser = conversations.Command().create_parser("manage.py", "conversations")
    (choices,) = [a.choices for a in parser._actions if isinstance(a.choices, dict)]
    words = {name.split()[0] for name in named(section("Commands"))}
    assert set(choices) <= words


def test_the_readme_shows_the_phases_as_they_are() -> None:
    text = section("Phases")
    for phase, bits in SWITCHES_OF.items():
        assert f"| `{phase.label}` | {' '.join(str(int(bit)) for bit in bits)} |" in text
    assert set(Switch) <= named(text)


def test_links_lead_to_files_that_are_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 3
    assert [link for link in links if not (ROOT / link).exists()] == []


# The guides


def parsers(command: Any) -> dict[str, ArgumentParser]:
    parser = command.create_parser("manage.py", "command")
    (choices,) = [a.choices for a in parser._actions if isinstance(a.choices, dict)]
    return choices


COMMANDS = {
    "conversations": parsers(conversations.Command()),
    "rollout": parsers(rollout.Command()),
}


def commands_in(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield command, sub-command and options of every command line that a text shows."""
    scripts = "".join(re.findall(r"```sh\n(.*?)```", text, re.S))
    shown = re.findall(r"`([^`\n]+)`", text) + re.findall(r"manage\.py ([^;\n]+)", scripts)
    for line in shown:
        words = line.removeprefix("python manage.py ").removeprefix("manage.py ").split()
        if len(words) > 1 and words[0] in COMMANDS and not words[1].startswith(("-", "…")):
            yield (
                words[0],
                words[1],
                [w.strip("[]") for w in words if w.strip("[").startswith("--")],
            )


def unknown_in(text: str) -> set[str]:
    unknown = set()
    for command, name, options in commands_in(text):
        if name not in COMMANDS[command]:
            unknown.add(f"{command} {name}")
            continue
        known = COMMANDS[command][name]._option_string_actions
        unknown |= {f"{command} {name} {option}" for option in options if option not in known}
    return unknown


@pytest.mark.parametrize("guide", ["README.md", *GUIDES])
def test_every_command_and_option_of_the_guides_exists(guide: str) -> None:
    assert unknown_in(GUIDES.get(guide, README)) == set()


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    text = "`rollout advance --faster` and `conversations sink` and `manage.py rollout status`"
    script = "\n```sh\nuntil python manage.py rollout retreat --now; do sleep 1; done\n```\n"
    assert unknown_in(text + script) == {
        "rollout advance --faster",
        "conversations sink",
        "rollout retreat",
    }


def test_the_runbook_names_every_command_of_the_rollout_and_its_end() -> None:
    shown = {(command, name) for command, name, _ in commands_in(RUNBOOK)}
    assert {("rollout", name) for name in COMMANDS["rollout"]} <= shown
    wanted = set(COMMANDS["conversations"]) - {"import", "export"}
    assert {("conversations", name) for name in wanted} <= shown


def test_the_runbook_has_a_page_for_every_phase_that_answers_the_same_questions() -> None:
    for phase in Phase:
        page = RUNBOOK.split(f"\n## Phase {phase.label}\n")[1].split("\n## ")[0]
        asked = ("What holds", "What to run", "What to watch", "How long", "How to go back")
        assert [row for row in asked if f"\n| {row} | " not in page] == []


def test_settings_and_switches_of_the_guides_exist() -> None:
    names = named("".join(GUIDES.values()))
    capitals = {name for name in names if re.fullmatch(r"[A-Z][A-Z0-9]+(_[A-Z0-9]+)+", name)}
    assert capitals - set(DEFAULTS) == {"INSTALLED_APPS"}
    for name in re.findall(r'CONVERSATIONS\["(\w+)"\]', "".join(GUIDES.values())):
        assert name in DEFAULTS
    switches = {name for name in names if name.startswith(("use_new_", "parallel_", "emergency_"))}
    assert switches <= set(Switch)


# Guides name gates as such, in waivers, and where they say what a step asks or what refuses it.
GATES = re.compile(r"[Gg]ates?((?:(?:,| and)? `[a-z_]+`)+)")
WAIVERS = re.compile(r"""--waive ['"]*([a-z_]+)[:=]""")
ASKED = re.compile(
    r"(?:^`rollout advance` into \w+ asks\b|\*\*It refuses\*\*)(.*(?:\n+- .*)*)", re.M
)
REFUSED = "When a step is refused"
# What retirement asks beside them.
ENDS = {"phase", "soak", "verified", "quarantined", "unchanged"}


def gates_in(text: str) -> set[str]:
    """Return what a text names as gates."""
    passages = [*GATES.findall(text), *ASKED.findall(text)]
    refused = text.partition(f"\n## {REFUSED}\n")[2].partition("\n## ")[0]
    passages += [row.split("|")[1] for row in refused.splitlines() if row.startswith("| `")]
    said = {name for passage in passages for name in named(passage)}
    return {*WAIVERS.findall(text), *(name for name in said if re.fullmatch(r"[a-z_]+", name))}


def gates_of_steps() -> set[str]:
    now = timezone.now()
    steps = [Step(*pair, began=now, since=now, rehearsed=True) for pair in product(Phase, Phase)]
    return {gate.name for step in steps for gate in guarding(step)}


@pytest.mark.parametrize("guide", ["README.md", *GUIDES])
def test_every_gate_of_the_guides_exists(guide: str) -> None:
    assert gates_in(GUIDES.get(guide, README)) - gates_of_steps() - ENDS == set()


def test_the_guides_name_every_gate() -> None:
    assert gates_of_steps() | ENDS <= gates_in("".join(GUIDES.values()))


def test_a_gate_that_does_not_exist_would_be_noticed() -> None:
    told = (
        "the gates `one`, `two` and `three`, `no gate`; `--waive '\"four:x\"=why'`\n"
        "`rollout advance` into new_only asks:\n\n- it has soaked (`five`, `SOAK_TIME`);\n"
        f"\n## {REFUSED}\n\n| it says | then |\n| `six`, `seven` | `wait` |\n\n## Later\n| `no` |"
    )
    assert gates_in(told) == {"one", "two", "three", "four", "five", "six", "seven"}


def test_the_guide_shows_the_tables_that_are_adopted() -> None:
    (shown,) = re.findall(r"```sql\n(.*?)```", GUIDES["migrating.md"], re.S)
    told = [re.sub(r"\s+", " ", each).strip() for each in shown.split(";") if each.strip()]
    for vendor, statements in TABLES.items():
        numbered = "integer" if vendor == "sqlite" else "serial"
        wanted = [each.format(users="auth_user") for each in statements]
        assert [
            each.replace("( ", "(").replace(" )", ")").replace("serial", numbered) for each in told
        ] == wanted


@pytest.mark.django_db
def test_the_command_that_turns_the_monitoring_on_does_so() -> None:
    lines = named("".join(GUIDES.values()))
    shown = {line for line in lines if line.startswith("python manage.py waffle_switch ")}
    assert shown == {"python manage.py waffle_switch performance_monitoring on"}
    (line,) = shown
    create_switches(sender=None, using="default")
    call_command(*line.split()[2:], stdout=StringIO())
    snapshot.forget()
    assert snapshot.settings().switches[Switch.PERFORMANCE_MONITORING]
    snapshot.forget()


def test_the_runbook_says_how_to_try_a_step_again_and_what_to_do_after_a_restore() -> None:
    (script,) = re.findall(r"```sh\n(until .*?)```", RUNBOOK, re.S)
    assert "manage.py rollout advance" in script
    assert "test $? -eq 5 || break" in script
    rehearsal = RUNBOOK.split("1. Restore a backup")[1].partition("\n2. ")[0]
    assert "`ANALYZE`" in rehearsal


def test_links_of_the_guides_lead_somewhere() -> None:
    for name, text in GUIDES.items():
        for path, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
            target = ROOT / "docs" / path if path else ROOT / "docs" / name
            assert target.exists(), path
            if anchor:
                titles = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.M)
                assert anchor in {anchor_of(title) for title in titles}, anchor


def anchor_of(title: str) -> str:
    """Return the anchor that GitHub gives a title."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


# One word for the store of our own: "tables", as commands and settings say

# The class of the store and its folder keep their names.
OTHER_WORD = re.compile(r"(?<!stores\.)normali[sz]ed(?!Store|/)", re.I)


def read_by_users() -> Iterator[tuple[str, str]]:
    """Yield where a text is that users read, and the text: pages, templates, strings of code."""
    pages = [*ROOT.glob("*.md"), ROOT / "pyproject.toml", *(ROOT / "docs").glob("*.*")]
    apps = [ROOT / app for app in ("conversations", "memory", "flags", "config", "benchmarks")]
    for page in [*pages, *(path for app in apps for path in app.rglob("*.html"))]:
        # What a template calls is code.
        yield page.name, re.sub(r"{%.*?%}|{{.*?}}", "", page.read_text("utf-8"))
    for source in (path for app in apps for path in app.rglob("*.py")):
        for node in ast.walk(ast.parse(source.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{source.name}:{node.lineno}", node.value


def test_users_read_one_word_for_the_tables() -> None:
    found = dict(read_by_users())
    assert [where for where, text in found.items() if OTHER_WORD.search(text)] == []
    assert any(f"--to {StoreName.NORMALIZED}" in text for text in found.values())


def test_the_word_is_what_commands_take_and_callers_compare() -> None:
    assert [str(store) for store in StoreName] == ["legacy", "tables"]
    assert {str(store) for store in StoreName} == {str(target) for target in Target}
    (option,) = [
        action
        for action in COMMANDS["conversations"]["sync"]._actions
        if "--to" in action.option_strings
    ]
    assert set(option.choices or ()) == {"legacy", "tables"}
    helps = "".join(parser.format_help() for each in COMMANDS.values() for parser in each.values())
    assert "tables" in helps
    assert not OTHER_WORD.search(helps)
