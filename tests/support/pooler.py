"""PgBouncer and pgpool-II in front of the suite's own PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from django.db import connection

from tests.flags.test_fence import until_true

# It refuses to be root, and needs to reach the server's socket.
UNPRIVILEGED = "nobody"


@dataclass(frozen=True)
class Pooler:
    """A running pooler: `size` connections to the server for any number of clients."""

    port: int
    size: int
    database: str

    @property
    def url(self) -> str:
        """Return the address for `tests.support.processes`."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{quote(self.database)}"

    def settings(self) -> dict[str, Any]:
        """Return what a host sets in DATABASES to connect through it."""
        return {"HOST": "127.0.0.1", "PORT": self.port, "USER": "postgres", "PASSWORD": ""}


def binary(name: str = "pgbouncer") -> str | None:
    """Return the path of a pooler, None where there is none."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextmanager
def running(*, size: int, mode: str = "transaction") -> Iterator[Pooler]:
    """Run PgBouncer with `size` server connections, given out in turn.

    In transaction mode a client gets another of them with every transaction: what it left in the
    last one's session is gone, or another client's. In session mode it keeps one.
    """
    found = binary()
    assert found is not None
    params = connection.get_connection_params()
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
    port = _free_port()
    user = params.get("user") or "postgres"
    host = {"host": params.get("host"), "port": params.get("port"), "user": user}
    if params.get("password"):
        host["password"] = params["password"]
    target = " ".join(f"{name}='{value}'" for name, value in host.items() if value)
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        f"[databases]\n* = {target}\n"
        "[pgbouncer]\n"
        "listen_addr = 127.0.0.1\n"
        f"listen_port = {port}\n"
        "unix_socket_dir =\n"
        "auth_type = any\n"
        f"pool_mode = {mode}\n"
        f"default_pool_size = {size}\n"
        f"min_pool_size = {size}\n"
        "server_round_robin = 1\n"
        "max_client_conn = 200\n"
        "ignore_startup_parameters = extra_float_digits\n"
        f"logfile = {folder / 'log'}\n",
        encoding="utf-8",
    )
    pooler = Pooler(port, size, str(connection.settings_dict["NAME"]))
    with _process([found, str(configuration)], folder, port):
        if mode == "transaction":
            # Until it has opened all its connections: it opens one after the other.
            kept(pooler)
        yield pooler


@contextmanager
def pgpool() -> Iterator[Pooler]:
    """Run pgpool-II without balancing: each client has a server session of its own."""
    found = binary("pgpool")
    assert found is not None
    params = connection.get_connection_params()
    folder = Path(tempfile.mkdtemp(prefix="pgpool-"))
    port, other = _free_port(), _free_port()
    configuration = folder / "pgpool.conf"
    configuration.write_text(
        "backend_clustering_mode = 'raw'\n"
        f"backend_hostname0 = '{params.get('host') or '127.0.0.1'}'\n"
        f"backend_port0 = {params.get('port') or 5432}\n"
        "listen_addresses = '127.0.0.1'\n"
        f"port = {port}\n"
        f"pcp_port = {other}\n"
        f"socket_dir = '{folder}'\n"
        f"pcp_socket_dir = '{folder}'\n"
        f"pid_file_name = '{folder / 'pid'}'\n"
        f"logdir = '{folder}'\n"
        "num_init_children = 8\n"
        "max_pool = 1\n"
        "enable_pool_hba = off\n",
        encoding="utf-8",
    )
    empty = folder / "empty"
    empty.touch()
    command = [found, "-n", "-f", str(configuration), "-F", str(empty), "-a", str(empty)]
    with _process(command, folder, port):
        yield Pooler(port, 8, str(connection.settings_dict["NAME"]))


@contextmanager
def _process(command: list[str], folder: Path, port: int) -> Iterator[None]:
    """Run a pooler as a user who is not root, until it listens; then end it."""
    options: dict[str, Any] = {}
    if os.getuid() == 0:
        host = str(connection.get_connection_params().get("host") or "")
        options["user"] = _owner(host)
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, options["user"])
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
    )
    try:
        until_true(lambda: _listens(port))
        yield
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def through(pooler: Pooler) -> Iterator[None]:
    """Let the default connection of this process go through the pooler."""
    before = dict(connection.settings_dict)
    connection.close()
    connection.settings_dict.update(pooler.settings())
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict.update(before)


# What a session may keep beyond its transaction. Django sets the time zone, which PgBouncer
# carries from one session to the other, and psycopg names its savepoints, which end.
_KEPT = """
    SELECT pg_backend_pid(),
        (SELECT count(*) FROM pg_prepared_statements),
        (SELECT count(*) FROM pg_cursors WHERE name <> ''),
        (SELECT count(*) FROM pg_class WHERE relpersistence = 't'
            AND relnamespace = pg_my_temp_schema()),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        (SELECT string_agg(name, ' ') FROM pg_settings WHERE source = 'session'
            AND name NOT IN ('TimeZone', 'client_encoding', 'DateStyle', 'application_name',
                'standard_conforming_strings', 'IntervalStyle')
            AND setting IS DISTINCT FROM reset_val)
"""


def kept(pooler: Pooler) -> set[tuple[Any, ...]]:
    """Return what each server connection keeps: prepared statements, cursors, temporary tables,
    advisory locks and settings, without its process id.
    """
    found: dict[int, tuple[Any, ...]] = {}

    def asked() -> bool:
        with closing(
            psycopg.connect(f"{pooler.url}?application_name=kept", autocommit=True)
        ) as client:
            client.prepare_threshold = None
            for _ in range(2 * pooler.size):
                pid, *rest = client.execute(_KEPT).fetchone() or ()
                found[pid] = tuple(rest)
        return len(found) >= pooler.size

    until_true(asked)
    return set(found.values())


def _owner(host: str) -> str | int:
    """Return who owns the folder of the server's socket, if it is one and has an owner."""
    owner = Path(host).stat().st_uid if host.startswith("/") else 0
    return owner or UNPRIVILEGED


def _free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _listens(port: int) -> bool:
    with closing(socket.socket()) as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
