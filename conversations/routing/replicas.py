"""Reads from a streaming replica that show every acknowledged write.

The primary gives the conversation's row, read by a unique key. As always, the row decides about
owner, truth and legacy's token. The replica gives the messages and items, the bulk of a load. The
statement that reads them checks that the replica holds the revision and the digest of that row.
Every acknowledged write, deletion or redaction changes the primary's row. A replica that has not
replayed it gives no rows, and the primary answers.

Comparing positions in the log (LSN) would save the read of the row. But a process knows only the
positions of its own writes, and old code's writes into legacy have none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

from django.db import Error, connections

from conversations import conf
from flags import breaker, metrics
from flags.conf import Limits
from flags.connections import managed, reopened
from flags.schema import named
from flags.texts import shown
from flags.timeouts import connected

logger = logging.getLogger("conversations")

# The names for `flags.metrics` and `flags.breaker`.
OPERATION, NAME = "read", "replica"
# The primary answers as well: one failure is reason enough to leave a replica alone for a while.
_AT_ONCE = Limits(minimum=1, critical=0.0)

T = TypeVar("T")


def chosen_replica() -> str | None:
    """Return the alias of the replica to ask now, or None: then the primary answers.

    None in three cases. `REPLICA` is not set. The caller has a transaction open: on the primary it
    sees its own writes, and on the replica a failed read would abort it. Or the replica failed:
    one read every `breaker.REST_SECONDS` tries it, so that other loads wait for no timeout.
    """
    alias = conf.replica()
    if alias is None or any(managed(connections[name]) for name in (conf.alias(), alias)):
        return None
    if breaker.replicas.lets_through(NAME):
        return alias
    metrics.observe(OPERATION, NAME, None, fallback=True)
    return None


def replicated(alias: str, conversation_id: str, read: Callable[[str], T | None]) -> T | None:
    """Return the result of a read on the replica, or None: then the primary has to answer.

    `read` returns None where the replica is behind. A replica that fails also gives None.
    """
    connection = connections[alias]

    def bounded() -> T | None:
        with connected(connection):
            return read(alias)

    started = perf_counter()
    try:
        found = reopened(connection, bounded)
    except Error as error:
        logger.warning(
            "conversation %s: the replica did not answer (%s)",
            shown(conversation_id),
            named(error),
        )
        breaker.replicas.observed(NAME, failed=True, limits=_AT_ONCE)
        metrics.observe(OPERATION, NAME, None, fallback=True)
        return None
    breaker.replicas.observed(NAME, failed=False, limits=_AT_ONCE)
    metrics.observe(OPERATION, NAME, perf_counter() - started, mismatch=found is None)
    return found
