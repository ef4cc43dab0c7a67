"""What the documents say of names, and show as code, is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conversations.conf import DEFAULTS
from conversations.management.commands import conversations
from conversations.storage import get_conversation_id, load_state
from flags.phases import SWITCHES_OF, Switch
from tests.factories import UserFactory, texts

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


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
