"""What must be true of the project's own files."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
APPS = ("conversations", "memory", "flags")
SOURCES = sorted(
    path for app in (*APPS, "config", "benchmarks") for path in (ROOT / app).rglob("*.py")
)


def _reads_environment(source: str) -> bool:
    """Whether code reaches for the environment, whichever way it imports it."""
    names: set[str | None] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return bool(names & {"environ", "environb", "getenv", "getenvb"})


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.environ['A']",
        "import os\nos.getenv('A')",
        "from os import environ as known\nknown['A']",
        "from os import getenv\ngetenv('A')",
        "import environ",
        "from environ import Env",
    ],
)
def test_no_way_to_the_environment_is_overlooked(source: str) -> None:
    assert _reads_environment(source)


def test_only_the_settings_read_the_environment() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if _reads_environment(path.read_text(encoding="utf-8"))
    }
    # The entry points only name the settings module.
    assert readers == {"config/settings.py", "config/asgi.py", "config/wsgi.py"}


def _tracked() -> list[Path]:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git checkout: which files belong to the project is not known")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def test_no_file_names_a_path_of_a_developers_machine() -> None:
    somewhere = re.compile(r"/(root|home/\w+|Users/\w+|work)/\w")
    guilty = []
    for path in _tracked():
        if path.suffix in {".py", ".md", ".toml", ".html", ".css", ".svg", ""} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            if path != Path(__file__) and somewhere.search(text):
                guilty.append(str(path.relative_to(ROOT)))
    assert guilty == []


@pytest.mark.parametrize("app", APPS)
def test_an_app_itself_imports_nothing(app: str) -> None:
    body = ast.parse((ROOT / app / "__init__.py").read_text(encoding="utf-8")).body
    assert len(body) == 1
    assert ast.get_docstring(ast.Module(body, []))


def _only_names_things(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.ImportFrom)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (
            isinstance(node, ast.Assign)
            and [ast.unparse(target) for target in node.targets] == ["__all__"]
        )
    )


def test_a_package_itself_holds_no_code() -> None:
    guilty = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.name == "__init__.py"
        and not all(map(_only_names_things, ast.parse(path.read_text(encoding="utf-8")).body))
    ]
    assert guilty == []


@pytest.mark.parametrize("app", APPS)
def test_every_app_says_that_it_is_typed(app: str) -> None:
    assert (ROOT / app / "py.typed").is_file()


def test_the_sample_projects_sqlite_file_is_its_owners_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'db.sqlite3'}"
    for command in (["migrate", "waffle", "--verbosity=0"], ["showmigrations"]):
        subprocess.run(
            [sys.executable, "manage.py", *command],
            cwd=ROOT,
            env={**os.environ, "DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "config.settings"},
            capture_output=True,
            check=True,
            umask=0o022,
        )
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        assert set(modes.values()) == {0o600}, modes
