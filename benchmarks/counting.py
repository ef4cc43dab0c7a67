"""What calls cost a database: statements, round trips and bytes, as the protocol shows them.

Counted below Django, so that no way of sending a statement is overlooked: of PostgreSQL by
libpq's own trace, of SQLite by its trace callback.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection
from psycopg.pq import Trace

# F: what the client sends (frontend); B: what the server does. The length counts itself,
# not the byte that names the kind.
_MESSAGE = re.compile(rb"^([FB])\t(\d+)\t(\w+)", re.MULTILINE)


@contextmanager
def counted(plain: Any = None) -> Iterator[dict[str, int]]:
    """Give a mapping that after the block says what the block cost on a connection.

    `plain` is a DB-API connection; Django's own one if left out.
    """
    if plain is None:
        connection.ensure_connection()
        plain = connection.connection
    cost: dict[str, int] = {}
    if connection.vendor != "postgresql":
        sent: list[str] = []
        plain.set_trace_callback(sent.append)
        try:
            yield cost
        finally:
            plain.set_trace_callback(None)
        # Statements of a trigger begin as a comment.
        cost["statements"] = sum(not sql.startswith("--") for sql in sent)
        return
    with tempfile.TemporaryFile() as file:
        plain.pgconn.trace(file.fileno())
        plain.pgconn.set_trace_flags(Trace.SUPPRESS_TIMESTAMPS)
        try:
            yield cost
        finally:
            plain.pgconn.untrace()
        file.seek(0)
        cost |= _costs(file.read())


def _costs(trace: bytes) -> dict[str, int]:
    kinds: Counter[tuple[bytes, bytes]] = Counter()
    sizes: Counter[bytes] = Counter()
    for side, length, kind in _MESSAGE.findall(trace):
        kinds[side, kind] += 1
        sizes[side] += int(length) + 1
    return {
        "statements": kinds[b"B", b"CommandComplete"],
        "round_trips": kinds[b"F", b"Query"] + kinds[b"F", b"Sync"],
        "sent_bytes": sizes[b"F"],
        "received_bytes": sizes[b"B"],
    }
