"""The fence: a flip waits for writes in flight, and new writes wait for the flip.

It makes the counts of a gate exact, because nothing is written while a step holds the fence.
Writes are safe without it; see `conversations.routing.truth`.

PostgreSQL: an advisory lock until the transaction ends, exclusive for a flip, shared for a
write. SQLite: the database's write lock, which every writer takes anyway.
"""

from __future__ import annotations

import time
from datetime import timedelta

from django.db import Error, OperationalError, connections, transaction

from flags.conf import database_alias
from flags.exceptions import FenceBusy

# blake2b-64 of b"flags.fence", as a signed integer: other code hardly uses the same lock.
KEY = -1150501302400351065
# Writers queue behind a waiting flip, so it waits in short tries. Each try is longer than the one
# before: writers of one conversation hold the fence while they wait for each other, and the flip
# must outlast them all.
TRY, LONGEST_TRY = timedelta(milliseconds=200), timedelta(seconds=1)
PAUSE = timedelta(milliseconds=50)
# A process that holds the fence and sends nothing for this long sleeps or is cut off. The server
# then ends its session, and writers go on.
ASLEEP = timedelta(seconds=5)
# SQLSTATE of a lock that could not be taken in time.
LOCK_NOT_AVAILABLE = "55P03"


# Until the transaction ends. A closer bound of the host stays (0 is no bound).
_BOUNDED = (
    "SELECT set_config(name, asleep, true) FROM pg_settings, (SELECT %s AS asleep) wanted"
    " WHERE name = 'idle_in_transaction_session_timeout'"
    " AND setting::bigint NOT BETWEEN 1 AND asleep::bigint"
)


def shared_sql() -> str:
    """Return the SQL expression by which a write takes the fence, shared (PostgreSQL)."""
    return f"pg_advisory_xact_lock_shared({KEY})"


def close(*, within: timedelta = timedelta(seconds=10)) -> None:
    """Wait until no write is in flight, and let none begin until the transaction ends.

    PostgreSQL ends the session of a process that sleeps in it for `ASLEEP`.

    Raises: FenceBusy when writes were in flight all the time.
    """
    connection = connections[database_alias()]
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            # Even an UPDATE that matches nothing takes the write lock, and waits for it.
            cursor.execute("UPDATE rollout_transitions SET id = id WHERE 0")
        return
    ends = time.monotonic() + within.total_seconds()
    timeout = TRY
    while not _tried(connection.alias, timeout):
        if time.monotonic() > ends:
            raise FenceBusy
        time.sleep(PAUSE.total_seconds())
        timeout = min(timeout * 3 / 2, LONGEST_TRY)


def hurry(timeout: timedelta = TRY) -> None:
    """Bound how long a statement of this transaction waits for a lock."""
    connection = connections[database_alias()]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = {timeout // timedelta(milliseconds=1)}")


def queue() -> None:
    """Wait until no other transaction reads the switches and records a change."""
    connection = connections[database_alias()]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [KEY + 1])


def _tried(alias: str, timeout: timedelta) -> bool:
    try:
        with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
            hurry(timeout)
            cursor.execute(f"SELECT pg_advisory_xact_lock({KEY})")
            cursor.execute(_BOUNDED, [str(ASLEEP // timedelta(milliseconds=1))])
    except OperationalError as error:
        if not timed_out(error):
            raise
        return False
    return True


def timed_out(error: Error) -> bool:
    """Whether a statement failed because it could not take a lock in time (PostgreSQL)."""
    return getattr(error.__cause__, "sqlstate", None) == LOCK_NOT_AVAILABLE
