"""All system checks: a test makes each fire, and none raises."""

from __future__ import annotations

import ast
from typing import Any

import pytest
from django.core.checks import Tags, run_checks
from django.core.checks.registry import registry
from django.db import DEFAULT_DB_ALIAS, OperationalError, connection, connections

from tests.support.checks import APPS, MAPPING, identifiers
from tests.support.processes import ROOT


def positive(node: ast.AST) -> bool:
    """Whether a statement says of what it names that it is there."""
    if isinstance(node, ast.Assign):
        return isinstance(node.targets[0], ast.Tuple)
    if not isinstance(node, ast.Assert) or not isinstance(node.test, ast.Compare):
        return False
    empty = any(isinstance(one, ast.List) and not one.elts for one in node.test.comparators)
    return not empty and not isinstance(node.test.ops[0], ast.NotIn)


def asserted(source: str) -> set[str]:
    """Return the strings of the statements of tests by which something has to be there."""
    tree = ast.parse(source)
    tests = (each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef))
    inside = (node for each in tests if each.name.startswith("test_") for node in ast.walk(each))
    within = (leaf for node in inside if positive(node) for leaf in ast.walk(node))
    return {leaf.value for leaf in within if isinstance(leaf, ast.Constant) if leaf.value in IDS}


IDS = identifiers()


@pytest.fixture(scope="module")
def made_to_fire() -> set[str]:
    files = (ROOT / "tests").rglob("test_*.py")
    return set().union(*(asserted(path.read_text("utf-8")) for path in files))


@pytest.mark.parametrize("check_id", sorted(IDS))
def test_a_test_makes_each_check_fire(check_id: str, made_to_fire: set[str]) -> None:
    assert check_id in made_to_fire


def test_a_check_that_no_test_makes_fire_would_be_noticed() -> None:
    silent = """
def test_silence():
    assert check() == []
    assert found(check(), "memory.E001") == []
    assert "memory.E002" not in ids
    messages = found(check(), "memory.E003")
def helper():
    assert found(check(), "memory.E004") == ["text"]
"""
    assert asserted(silent) == set()
    assert asserted(silent.replace("helper", "test_it")) == {"memory.E004"}
    assert len(IDS) > 30


def _ours() -> list[Any]:
    every = registry.get_checks(include_deployment_checks=True)
    return [check for check in every if check.__module__.split(".")[0] in APPS]


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        "LEGACY",
        [],
        {1: 2},
        {"LEGACY": 5, "SWITCHES": 5, "STATE_CLASS": {}, "DATABASE": []},
        {"LEGACY": {"model": 5}, "SWITCHES": {5: {}}, "DATABASE": "nowhere"},
        {"LEGACY": {**MAPPING, "model": "."}, "SWITCHES": {"use_new_save": "x"}},
    ],
)
@pytest.mark.django_db
def test_no_check_raises_for_any_settings(settings: Any, value: Any) -> None:
    settings.CONVERSATIONS = value
    for check in _ours():
        for aliases in (None, [DEFAULT_DB_ALIAS]):
            assert isinstance(check(app_configs=None, databases=aliases), list)


@pytest.mark.django_db
def test_checks_are_silent_while_the_database_is_down(
    monkeypatch: pytest.MonkeyPatch, configure: Any
) -> None:
    def down(*args: Any, **kwargs: Any) -> None:
        raise OperationalError("the server closed the connection")

    monkeypatch.setattr(connections[DEFAULT_DB_ALIAS], "cursor", down)
    for check in _ours():
        if Tags.database in check.tags:
            assert check(app_configs=None, databases=[DEFAULT_DB_ALIAS]) == []


def test_database_checks_touch_no_database_unless_asked(configure: Any) -> None:
    for check in _ours():
        assert isinstance(check(app_configs=None, databases=None), list)


@pytest.mark.django_db
def test_the_project_itself_has_nothing_to_complain_about() -> None:
    with connection.cursor() as cursor:
        # What other tests left behind was never analysed.
        cursor.execute("ANALYZE")
    messages = run_checks(databases=[DEFAULT_DB_ALIAS])
    assert [message for message in messages if (message.id or "").split(".")[0] in APPS] == []
