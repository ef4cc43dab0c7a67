"""What the documents say of names, and show as code, is true."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conversations.conf import DEFAULTS
from conversations.management.commands import conversations
from conversations.storage import get_conversation_id, load_state
from flags.management.commands import rollout
from flags.phases import SWITCHES_OF, Phase, Switch
from tests.factories import UserFactory, texts

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
GUIDES = {path.name: path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
RUNBOOK = GUIDES["rollout.md"]


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def named(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", text))


@pytest.mark.django_db
def test_the_example_of_the_readme_runs() -> None:
    user = UserFactory()
    (example,) = re.findall(r"```python\n(.*?)```", section("Install it in your project"), re.S)
    exec(example, {"user": user})
    conversation_id = get_conversation_id(user)
    assert texts(load_state(conversation_id, user_id=user)) == ["Hello", "Hi"]


def test_the_readme_names_every_setting_with_its_default() -> None:
    text = section("Settings")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in named(row.split("|")[1])} == set(DEFAULTS)
    for name in ("MAX_DEPTH", "KEEP_VERSIONS"):
        (row,) = [row for row in rows if f"`{name}`" in row]
        assert str(DEFAULTS[name]) in row


def identifiers() -> set[str]:
    """Return the ids of every system check, as the code spells them."""
    found: set[str] = set()
    for app in ("conversations", "memory", "flags"):
        for path in (ROOT / app).rglob("*.py"):
            found |= set(re.findall(rf'"({app}\.[EW]\d{{3}})"', path.read_text("utf-8")))
    return found


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
    shown = re.findall(r"`([^`\n]+)`", text)
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
    assert unknown_in(text) == {"rollout advance --faster", "conversations sink"}


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


def test_settings_switches_and_gates_of_the_guides_exist() -> None:
    names = named("".join(GUIDES.values()))
    capitals = {name for name in names if re.fullmatch(r"[A-Z][A-Z0-9]+(_[A-Z0-9]+)+", name)}
    assert capitals - set(DEFAULTS) == {"INSTALLED_APPS"}
    for name in re.findall(r'CONVERSATIONS\["(\w+)"\]', "".join(GUIDES.values())):
        assert name in DEFAULTS
    switches = {name for name in names if name.startswith(("use_new_", "parallel_", "emergency_"))}
    assert switches <= set(Switch)


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
