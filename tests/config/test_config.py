"""What the sample project makes of the environment."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

SETTINGS = Path(__file__).resolve().parents[2] / "config" / "settings.py"
SWITCHES = (
    "use_new_storage",
    "use_new_save",
    "use_new_load",
    "parallel_mode",
    "performance_monitoring",
)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that reads the settings under an environment of its own."""

    def read_under(**environment: str) -> dict[str, Any]:
        for name in (
            "ENVIRONMENT",
            "DEBUG",
            "SECRET_KEY",
            "DATABASE_URL",
            *map(str.upper, SWITCHES),
        ):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return runpy.run_path(str(SETTINGS))

    return read_under


def switches(settings: dict[str, Any]) -> tuple[bool, ...]:
    """Return the values in the order of SWITCHES; there are no others."""
    assert set(settings["CONVERSATIONS"]["SWITCHES"]) == set(SWITCHES)
    return tuple(settings["CONVERSATIONS"]["SWITCHES"][name] for name in SWITCHES)


def test_an_empty_environment_is_development_on_sqlite(read: Any) -> None:
    settings = read()
    database = settings["DATABASES"]["default"]
    assert settings["DEBUG"] is True
    assert settings["CONVERSATIONS"]["LEGACY"] == "memory_chunks"
    assert switches(settings) == (True, True, True, False, False)
    assert database["ENGINE"] == "django.db.backends.sqlite3"
    assert database["OPTIONS"]["transaction_mode"] == "IMMEDIATE"
    assert "journal_mode = WAL" in database["OPTIONS"]["init_command"]
    assert "mmap_size = 2147483648" in database["OPTIONS"]["init_command"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ("development", (True, True, True, False, False)),
        ("staging", (False, True, False, True, True)),
        ("production", (False, False, False, False, True)),
    ],
)
def test_an_environment_presets_its_phase(
    read: Any, environment: str, expected: tuple[bool, ...]
) -> None:
    assert switches(read(ENVIRONMENT=environment, SECRET_KEY="its own")) == expected


def test_a_variable_beats_the_preset(read: Any) -> None:
    settings = read(ENVIRONMENT="production", SECRET_KEY="its own", USE_NEW_SAVE="true")
    assert switches(settings) == (False, True, False, False, True)


def test_an_unknown_environment_is_refused(read: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="ENVIRONMENT: test is none of"):
        read(ENVIRONMENT="test", SECRET_KEY="its own")


@pytest.mark.parametrize("off", [{"DEBUG": "off"}, {"ENVIRONMENT": "production"}])
def test_the_key_of_development_is_refused_without_debug(read: Any, off: dict[str, str]) -> None:
    with pytest.raises(ImproperlyConfigured, match="SECRET_KEY"):
        read(**off)


def test_a_database_server_is_asked_whether_it_still_listens(read: Any) -> None:
    database = read(DATABASE_URL="postgres://somebody@localhost/somewhere")["DATABASES"]["default"]
    assert database["ENGINE"] == "django.db.backends.postgresql"
    assert database["CONN_HEALTH_CHECKS"] is True
