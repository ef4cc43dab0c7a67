"""A proxy before the PostgreSQL server that loses a COMMIT, or the reply to it."""

from __future__ import annotations

import select
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path

from django.db import connection

# The simple query by which psycopg ends a transaction, and a statement that outside of one is
# committed by itself.
_COMMIT, _ALONE = b"COMMIT\0", b"WITH bumped AS "
# What the server answers to such a statement where a condition failed: it commits nothing, and
# the write goes the long way.
_NOTHING_DONE = b"SELECT 0\0"
_BUFFER = 65536


class Lose(StrEnum):
    """What is lost, and the connection with it."""

    NOTHING = "nothing"
    COMMIT = "the COMMIT"
    REPLY = "the reply to the COMMIT"


class Proxy:
    """Relays bytes between clients and a server; `lose` says what of the next COMMIT is lost.

    `alone` says that nobody has begun a transaction, so that a statement may be a COMMIT as well.
    """

    def __init__(self, server: str) -> None:
        self.server = server
        self.lose = Lose.NOTHING
        self.alone = False
        self._folder = tempfile.TemporaryDirectory(prefix="proxy-")
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(Path(self.host) / ".s.PGSQL.5432"))
        self._listening.listen()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def host(self) -> str:
        return self._folder.name

    def close(self) -> None:
        # A thread that waits in accept() is not woken by close() alone.
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        self._folder.cleanup()

    def _accept(self) -> None:
        # One client at a time: the test has one connection.
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            with client, server, suppress(OSError):
                server.connect(self.server)
                self._relay(client, server)

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        """Relay until one side ends, or until what is to be lost is lost."""
        while True:
            ready, _, _ = select.select([client, server], [], [])
            if client in ready:
                sent = client.recv(_BUFFER)
                commits = _COMMIT in sent or (self.alone and _ALONE in sent)
                losing = commits and self.lose != Lose.NOTHING
                if losing and self.lose == Lose.COMMIT:
                    self.lose = Lose.NOTHING
                    return
                if not sent:
                    return
                server.sendall(sent)
                if losing:
                    # What answers has committed.
                    answered = server.recv(_BUFFER)
                    if _NOTHING_DONE in answered:
                        client.sendall(answered)
                        continue
                    self.lose = Lose.NOTHING
                    return
            if server in ready:
                answered = server.recv(_BUFFER)
                if not answered:
                    return
                client.sendall(answered)


@contextmanager
def proxied() -> Iterator[Proxy]:
    """Let Django's connection go through a proxy (PostgreSQL only)."""
    own = connection.settings_dict
    before = (own["HOST"], own["PORT"])
    with connection.cursor() as cursor:
        cursor.execute("SHOW unix_socket_directories")
        folder = cursor.fetchone()[0].split(",")[0].strip()
        cursor.execute("SHOW port")
        port = cursor.fetchone()[0]
    proxy = Proxy(str(Path(folder) / f".s.PGSQL.{port}"))
    connection.close()
    own["HOST"], own["PORT"] = proxy.host, "5432"
    try:
        yield proxy
    finally:
        connection.close()
        own["HOST"], own["PORT"] = before
        proxy.close()
