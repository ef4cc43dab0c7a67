"""Prepared statements on PostgreSQL: where they are safe, and what heals one that went stale.

The server keeps a prepared statement in its session. So a client may prepare only where it speaks
to one session, or to a pooler that carries them. libpq knows the process of the session that it
logged in to; behind PgBouncer, that number is made up. `PREPARE_STATEMENTS = "auto"` compares it
with `pg_backend_pid()`, once for each connection of psycopg. PgBouncer in session mode is a false
"no", which costs time only: True says yes.

psycopg prepares a statement where it is asked to, if the connection has a threshold. A threshold
that no counter reaches leaves the host's own statements and savepoints alone. It stays on the
connection: without it, psycopg would not notice DISCARD ALL. A host's own threshold is kept, and
psycopg counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from conversations import conf
from flags.conf import conversations_settings

AUTO = "auto"
# A threshold that no counter reaches.
ON_REQUEST = 10**9
# A connection of one request is closed before an answer would pay: it is asked later than that.
ASKED_AFTER = 5
# All are forgotten when another one would make them more. One takes about 60 kB of the server.
MOST_TEXTS = 40
# With several schemas in the path, a plan would overlook a new table in an earlier one.
_QUESTION = "SELECT pg_backend_pid(), cardinality(current_schemas(false))"
# A statement that the server does not know (any more), or whose result has other types now.
_STALE = ("26000", "0A000")
# psycopg.pq.TransactionStatus.IDLE
_IDLE = 0


class Session:
    """What is known of one connection of psycopg."""

    __slots__ = ("carries", "executed", "is_stale", "reason", "texts")

    def __init__(self) -> None:
        # Whether it carries prepared statements; None until it was asked.
        self.carries: bool | None = None
        # Why it does not, in words.
        self.reason = ""
        # How many statements of ours it executed before it was asked.
        self.executed = 0
        # The texts that succeeded here. An INSERT that fails when it is prepared would stay in the
        # server for ever, because psycopg forgets it.
        self.texts: set[str] = set()
        # Whether the server may hold statements that psycopg does not know, or the other way.
        self.is_stale = False

    def prepares(self, raw: Any, sql: str, *, may_fail: bool) -> bool | None:
        """Return psycopg's `prepare` for a statement; None leaves it to the host's threshold."""
        setting, threshold = conf.prepare_statements(), raw.prepare_threshold
        if threshold is not None and threshold != ON_REQUEST:
            return None
        if not setting:
            return False
        if setting == AUTO and not self.carries:
            if self.carries is None:
                self._count(raw)
            if not self.carries:
                return False
        if threshold is None:
            raw.prepare_threshold = ON_REQUEST
        if sql in self.texts and not self.is_stale:
            return True
        if self.is_stale or len(self.texts) >= MOST_TEXTS:
            if not is_idle(raw):
                return False
            self.forget(raw)
        if not may_fail:
            self.texts.add(sql)
        return not may_fail

    def _count(self, raw: Any) -> None:
        self.executed += 1
        if self.executed > ASKED_AFTER:
            self.ask(raw)

    def ask(self, raw: Any) -> None:
        """Ask once whether the connection carries prepared statements.

        Only outside of a transaction: the first query of the host's would forbid it to choose its
        isolation level, and one that was aborted answers nothing.
        """
        if self.carries is not None or not is_idle(raw):
            return
        try:
            pid, schemas = _cursor(raw).execute(_QUESTION, prepare=False).fetchone()
        except _driver().Error as error:
            self.reason = f"it did not answer ({type(error).__name__})"
        else:
            if pid != raw.info.backend_pid:
                self.reason = "a pooler stands in between, which may change the server session"
            elif schemas != 1:
                self.reason = f"its search_path has {schemas} schemas"
        self.carries = not self.reason

    def forget(self, raw: Any) -> None:
        """Have the server and psycopg forget every statement of this connection."""
        _cursor(raw).execute("DEALLOCATE ALL", prepare=False)
        self.is_stale = False
        self.texts.clear()


# The attribute of a connection of psycopg that holds its session: it ends with the connection.
SESSION = "_conversations_session"


def session_of(raw: Any) -> Session:
    """Return what is known of a connection of psycopg."""
    session: Session | None = getattr(raw, SESSION, None)
    if session is None:
        session = Session()
        setattr(raw, SESSION, session)
    return session


def is_idle(raw: Any) -> bool:
    """Whether a connection is in no transaction, and begins none with the next statement."""
    return bool(raw.autocommit) and raw.pgconn.transaction_status == _IDLE


def is_stale(error: BaseException) -> bool:
    """Whether a statement failed because of what is prepared, not because of what it says."""
    return getattr(error, "sqlstate", None) in _STALE


def ask_new_connection(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    """Ask a connection that will live longer than a request, while no transaction is open.

    With ATOMIC_REQUESTS there is no other moment.
    """
    if connection.vendor != "postgresql" or not isinstance(conversations_settings(), Mapping):
        # `manage.py check` connects as well, and says what is wrong with the settings.
        return
    if conf.prepare_statements() != AUTO:
        return
    settings = connection.settings_dict
    lives_on = settings["CONN_MAX_AGE"] != 0 or settings["OPTIONS"].get("pool")
    if lives_on and connection.alias in {conf.alias(), conf.get("REPLICA")}:
        session_of(connection.connection).ask(connection.connection)


def _driver() -> Any:
    import psycopg

    return psycopg


def _cursor(raw: Any) -> Any:
    """Return psycopg's own cursor: Django's would log the statement, and bind at the client."""
    return _driver().Cursor(raw)
