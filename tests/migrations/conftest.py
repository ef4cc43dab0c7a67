"""Databases to migrate: empty, of a host without legacy tables, and of one with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db.backends.base.base import BaseDatabaseWrapper

from tests.support.adopted import copied, make_host, our_tables
from tests.support.scratch import connected, created_database, migrate, scratch_database

# The apps of others that a host has migrated before it installs ours.
FOREIGN_APPS = ("contenttypes", "auth", "admin", "sessions", "waffle")


@pytest.fixture(scope="package")
def foreign(tmp_path_factory: Any, django_db_blocker: Any) -> Iterator[str]:
    """The name of a database with the tables of other apps, and none of ours: a template."""
    folder = tmp_path_factory.mktemp("foreign")
    with django_db_blocker.unblock(), created_database(folder) as name:
        with connected(name) as connection:
            for app in FOREIGN_APPS:
                migrate(app)
            assert our_tables(connection) == set()
        yield name


@pytest.fixture(scope="package")
def hosts(foreign: str, tmp_path_factory: Any, django_db_blocker: Any) -> Iterator[str]:
    """The name of a copy with a user and legacy rows: a template of `legacy`."""
    folder = tmp_path_factory.mktemp("host")
    with django_db_blocker.unblock(), created_database(folder, template=foreign) as name:
        with connected(name) as connection:
            make_host(connection)
        yield name


@pytest.fixture
def empty(tmp_path: Any, django_db_blocker: Any) -> Iterator[BaseDatabaseWrapper]:
    """A new, empty database."""
    with django_db_blocker.unblock(), scratch_database(tmp_path) as connection:
        yield connection


@pytest.fixture
def scratch(tmp_path: Any, foreign: str, django_db_blocker: Any) -> Iterator[BaseDatabaseWrapper]:
    """A new database without a table of ours."""
    with django_db_blocker.unblock(), copied(foreign, tmp_path) as connection:
        yield connection


@pytest.fixture
def legacy(tmp_path: Any, hosts: str, django_db_blocker: Any) -> Iterator[BaseDatabaseWrapper]:
    """The database of a host: its user 1, and legacy tables with two saves of conversation c-1."""
    with django_db_blocker.unblock(), copied(hosts, tmp_path) as connection:
        yield connection
