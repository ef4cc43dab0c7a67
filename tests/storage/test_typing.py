"""Type checkers and the running store refuse the same wrong uses of the public API."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from conversations.exceptions import InvalidOwner, InvalidState
from conversations.storage import save_state
from tests.project.test_docs import VIEW
from tests.support.factories import UserFactory, state
from tests.support.typed import wrong

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = {
    name: function
    for name, function in vars(wrong).items()
    if inspect.isfunction(function) and function.__module__ == wrong.__name__
}
# What Python itself finds. A coroutine that is not awaited would only warn.
ATTRIBUTES = {"a_misspelt_field_is_loaded", "a_misspelt_field_is_read"}
UNAWAITED = {"a_coroutine_is_used_unawaited"}


def called(function: Callable[[], Any]) -> None:
    if inspect.iscoroutinefunction(function):
        async_to_sync(function)()
    else:
        function()


def test_mypy_finds_wrong_calls_and_takes_right_ones_in_a_host_without_our_settings(
    tmp_path: Path,
) -> None:
    """`make types` checks the same files with the plugin of django-stubs.

    Here the view that README shows is among them.
    """
    view = f"from typing import Any\n{VIEW}\n\ndef ask_model(messages: list[Any]) -> Any: ...\n"
    (tmp_path / "readme_view.py").write_text(view, encoding="utf-8")
    settings = tmp_path / "mypy.ini"
    settings.write_text("[mypy]\nstrict = true\nfollow_imports = silent\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(settings)]
    cache = ["--cache-dir", str(ROOT / ".mypy_cache" / "host")]
    finished = subprocess.run(
        [*command, *cache, "-p", "tests.support.typed", "-m", "readme_view"],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.stdout == "Success: no issues found in 4 source files\n", finished.stderr


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - ATTRIBUTES - UNAWAITED))
def test_calls_that_mypy_refuses_are_refused_before_any_sql(no_sql: None, name: str) -> None:
    with pytest.raises((InvalidState, InvalidOwner)):
        called(FUNCTIONS[name])


@pytest.mark.django_db
@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
def test_a_misspelt_field_has_no_value(name: str) -> None:
    save_state("c", state("a"), UserFactory(pk=1))
    with pytest.raises(AttributeError, match="conversation_histry"):
        called(FUNCTIONS[name])


def test_every_wrong_use_expects_an_error_of_mypy() -> None:
    lines = inspect.getsource(wrong).splitlines()
    assert len(FUNCTIONS) >= 20
    assert sum("# type: ignore[" in line for line in lines) == len(FUNCTIONS)
