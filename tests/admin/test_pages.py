"""Every page of our admins opens, for an operator and for a reader, also under a theme."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from tests.support import admin_pages
from tests.support.processes import ROOT

USERS = ("superuser", "viewer")
NAMES = {"superuser": "root", "viewer": "viewer"}
REPORT = """
import django
django.setup()
from tests.support import admin_pages
admin_pages.report("root", "viewer")
"""


def expected(user: str) -> dict[str, int]:
    return {page.address: getattr(page, user) for page in admin_pages.pages()}


def statuses(answers: dict[str, Any]) -> dict[str, int]:
    return {address: status for address, (status, _) in answers.items()}


@pytest.mark.django_db
@pytest.mark.parametrize("user", USERS)
def test_every_page_opens(client: Client, user: str) -> None:
    admin_pages.fill()
    answers = admin_pages.answers(client, NAMES[user])
    assert statuses(answers) == expected(user)


@pytest.mark.django_db(transaction=True)
def test_every_page_opens_under_unfold_and_shows_its_content() -> None:
    if find_spec("unfold") is None:
        pytest.skip("django-unfold is not installed: its theme is not tried")
    admin_pages.fill()
    environment = {
        "DJANGO_SETTINGS_MODULE": "tests.support.settings_unfold",
        "TEST_DATABASE_NAME": str(connection.settings_dict["NAME"]),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", REPORT],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    themed = json.loads(done.stdout.splitlines()[-1])
    for user in USERS:
        answers = themed[NAMES[user]]
        assert statuses(answers) == expected(user)
        shows = {address for address, (_, content) in answers.items() if content}
        assert shows >= {
            page
            for page in answers
            if page.endswith(("change/", "?tab=context")) and "conversationstate" in page
        }
