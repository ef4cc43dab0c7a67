"""Reads from a streaming replica, for callers who see every write they were told of.

The primary says what a conversation is: its row, one read by a unique key, which decides about
owner, truth and legacy's token as it always does. Messages and items, which are the bulk, come
from the replica, if what it holds has the revision and the digest of that row: the same
statement that reads them says so. A caller who was told of a write, in any process, finds its
revision in the primary's row, and a replica that has not replayed it gives nothing; so do
deletions and redactions, which change the row. Then the primary answers.

Comparing positions in the log (LSN) instead would save the read of the row, but a process only
knows the positions of its own writes, and no position tells what old code wrote into legacy.
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

# What is counted and moved away; see `flags.metrics` and `flags.breaker`.
OPERATION, NAME = "read", "replica"
# The primary answers as well: one failure is reason enough to leave a replica alone for a while.
_AT_ONCE = Limits(minimum=1, critical=0.0)

T = TypeVar("T")


def chosen_replica() -> str | None:
    """Return the alias of the replica to ask now, None where the primary alone is to be asked.

    None without `REPLICA`; inside a transaction of the caller, who sees his own writes there, and
    perhaps an older state of everything else (one on the replica would be aborted by a read that
    fails); and while the replica is left alone because it failed, but for a single read every
    `breaker.REST_SECONDS`, so that a dead one costs no load its timeout.
    """
    alias = conf.replica()
    if alias is None or any(managed(connections[name]) for name in (conf.alias(), alias)):
        return None
    if breaker.replicas.lets_through(NAME):
        return alias
    metrics.observe(OPERATION, NAME, None, fallback=True)
    return None


def replicated(alias: str, conversation_id: str, read: Callable[[str], T | None]) -> T | None:
    """Return what a read gives on the replica's alias, or None: then the primary has to answer.

    `read` answers None where the replica is behind; where the replica fails, so do we.
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
