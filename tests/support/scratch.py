"""Scratch databases: empty ones beside the test database, on the same server, for DDL."""

from __future__ import annotations

import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from django.core.management import call_command
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper

ALIAS = "scratch"


@contextmanager
def scratch_database(directory: Path, *, encoding: str = "UTF8") -> Iterator[BaseDatabaseWrapper]:
    """Give a connection to a new, empty database under the alias `scratch`; drop it afterwards."""
    with created_database(directory, encoding=encoding) as name, connected(name) as connection:
        yield connection


@contextmanager
def created_database(
    directory: Path, *, encoding: str = "UTF8", template: str = ""
) -> Iterator[str]:
    """Give the name of a new database, and drop it afterwards.

    It is empty, or a copy of the database named `template`, to which nobody may be connected.
    """
    default = connections[DEFAULT_DB_ALIAS]
    name = f"scratch_{uuid.uuid4().hex}"
    if default.vendor == "postgresql":
        with default._nodb_cursor() as cursor:
            cursor.execute(
                f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C'"
                f" TEMPLATE {template or 'template0'}"
            )
        try:
            yield name
        finally:
            with default._nodb_cursor() as cursor:
                cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
        return
    name = str(directory / f"{name}.sqlite3")
    if template:
        # The last connection has left no journal beside it.
        shutil.copyfile(template, name)
    else:
        with sqlite3.connect(name) as created:
            created.execute("PRAGMA journal_mode = WAL")
        created.close()
    yield name


@contextmanager
def connected(name: str) -> Iterator[BaseDatabaseWrapper]:
    """Give a connection to this database under the alias `scratch`, and close it afterwards."""
    connections.databases[ALIAS] = {**connections[DEFAULT_DB_ALIAS].settings_dict, "NAME": name}
    try:
        yield connections[ALIAS]
    finally:
        connections[ALIAS].close()
        del connections[ALIAS]
        del connections.databases[ALIAS]


def plain_connection(connection: BaseDatabaseWrapper) -> Any:
    """Return a DB-API connection to the same database, as a process without Django has it."""
    if connection.vendor == "sqlite":
        plain = sqlite3.connect(
            connection.settings_dict["NAME"], timeout=30, check_same_thread=False
        )
        plain.execute("PRAGMA foreign_keys = ON")
        return plain
    params = connection.get_connection_params()
    for ours in ("cursor_factory", "context", "prepare_threshold"):
        params.pop(ours, None)
    return psycopg.connect(**params)


def migrate(*target: str) -> None:
    """Run `manage.py migrate` with these arguments on the scratch database."""
    call_command("migrate", *target, database=ALIAS, verbosity=0, interactive=False)
