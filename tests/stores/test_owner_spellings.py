"""A host's column of user keys may take two spellings for one: then they are one owner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from tests.support.processes import PATIENCE_SECONDS, ROOT

pytestmark = pytest.mark.django_db


def host_of(folder: Path) -> dict[str, Any]:
    """Return a database beside that of the tests, and a collation that knows no case."""
    name = f"spelled_{uuid.uuid4().hex}"
    settings = connection.settings_dict
    if connection.vendor == "sqlite":
        options = {"transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode = WAL"}
        path = str(folder / name)
        test = {"NAME": f"{path}.test"}
        database = {"ENGINE": settings["ENGINE"], "NAME": path, "OPTIONS": options, "TEST": test}
        return {"collation": "NOCASE", "database": database}
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_collation WHERE collprovider = 'i'")
        if cursor.fetchone() == (0,):
            pytest.skip("the server was built without ICU: it takes no two spellings for one")
    server = {key: settings[key] for key in ("ENGINE", "USER", "PASSWORD", "HOST", "PORT")}
    database = {**server, "NAME": name, "TEST": {"NAME": name}}
    return {"collation": "without_case", "locale": "und-u-ks-level2", "database": database}


@pytest.mark.parametrize(
    ("conversations", "classes", "claims"),
    [({}, ["Claims"], 4), ({"LEGACY": "memory_chunks"}, ["Claims", "LegacyClaims"], 6)],
    ids=["new", "legacy"],
)
def test_two_spellings_of_one_key_are_the_same_owner(
    conversations: dict[str, str], classes: list[str], claims: int, tmp_path: Path
) -> None:
    """In a project of its own: which user model there is, is decided once for a process."""
    spelled = json.dumps({**host_of(tmp_path), "conversations": conversations})
    command = [sys.executable, "-W", "error", "-m", "django", "test", "--noinput"]
    finished = subprocess.run(
        [*command, *(f"tests.support.spelled.claims.{name}" for name in classes)],
        cwd=ROOT,
        env=os.environ
        | {"DJANGO_SETTINGS_MODULE": "tests.support.spelled.settings", "SPELLED": spelled},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert finished.returncode == 0, finished.stderr
    assert f"Ran {claims} tests" in finished.stderr
    assert "skipped" not in finished.stderr
