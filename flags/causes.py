"""Copies of a database's errors as causes of ours, without the values that they quote.

The text of a driver's error may hold a refused row, a value that is no number, or a column that
could not be decoded. Tracebacks, error pages and error reporters print it. Python also keeps it
as the context of every error that is raised while it is handled. So a copy of each error leaves
our code: with its class, SQLSTATE, constraint, table and place, and without the users' text.
"""

from __future__ import annotations

import sqlite3
import sys
import traceback
from collections.abc import Collection
from typing import Any, NoReturn

from django.db import Error, InterfaceError, NotSupportedError, OperationalError
from django.db.transaction import TransactionManagementError

from flags.exceptions import OwnError
from flags.texts import escaped

LEFT_OUT = "its text is left out, because it may quote stored data"
# Django's own errors, without a driver's error as their cause: their texts are about connections.
_SPEAKING = (InterfaceError, NotSupportedError, OperationalError, TransactionManagementError)
# PostgreSQL's messages of these classes and states name objects and quote no value: lost
# connections, transactions, privileges, resources, locks, constraints, missing objects.
_CLASSES = frozenset({"08", "23", "25", "28", "3D", "3F", "40", "53", "54", "55", "57", "58"})
_STATES = frozenset({"42501", "42703", "42P01", "42P07"})
# The files of the server whose errors carry another author's words: a function's RAISE, and a COPY
# that ends with the words of its client.
_OTHERS = ("pl", "copy")
# Names of fields in `diag`. DETAIL, CONTEXT and the query are left out: they hold rows.
_KEPT = (
    "severity",
    "severity_nonlocalized",
    "sqlstate",
    "schema_name",
    "table_name",
    "column_name",
    "datatype_name",
    "constraint_name",
    "source_file",
    "source_line",
    "source_function",
)
# The modules of Django and the drivers whose errors are made of a text alone. Other errors of
# Django hold rows: those of a deletion that rows of a host forbid.
_OF_DJANGO = frozenset({"django.db.utils", "django.db.transaction"})
_OF_PSYCOPG = frozenset({"psycopg", "psycopg.errors", "psycopg_pool", "psycopg_pool.errors"})
# SQLite uses one code for a missing table and for an error that quotes the SQL.
_OF_SQLITE = ("no such ", "has no column named", "database is locked", "table is locked")
# The beginning of Python's error that quotes the bytes.
_NO_TEXT = "Could not decode to UTF-8"


class Withheld(Exception):
    """The copy of an error of other code: it names the class, and leaves out the text.

    Its traceback stays, without the values in it, so that a host finds the line that failed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(name)

    def __str__(self) -> str:
        return f"{self.name}: {LEFT_OUT}"

    @classmethod
    def of(cls, error: BaseException) -> Withheld:
        """Return the copy of an error, without the error's causes."""
        traceback.clear_frames(error.__traceback__)
        made = cls(escaped(type(error).__name__))
        return made.with_traceback(error.__traceback__)


def reraise(
    error: BaseException,
    *,
    outer: BaseException | None,
    instead: BaseException | None = None,
) -> NoReturn:
    """Raise the handled error, or `instead` because of it, without quotations.

    `outer` is the error that the caller was handling when it called our code: it stays.
    """
    safe = withheld(error, outer=outer)
    raised, context = safe, safe.__context__
    if instead is not None:
        instead.__cause__ = safe
        raised, context = instead, outer
    # An error page shows the variables of this frame, too.
    del error
    try:
        raise raised
    finally:
        # `raise` made the handled error its context, with all its quotations.
        raised.__context__ = context
        # Its traceback holds this frame. In a circle, all frames would stay with their states.
        del raised, safe, instead, context, outer


def withheld(error: BaseException, *, outer: BaseException | None = None) -> BaseException:
    """Return a copy of an error, with copies of its causes, to be the cause of another.

    An error of our own stays the same object, and its causes are replaced, up to the caller's
    `outer`. The frames of a traceback stay. The values in them are dropped, because error pages
    show them and they hold the parameters of the statement.
    """
    return _copied(error, outer, {})


def clean(error: BaseException, *, outer: BaseException | None = None) -> None:
    """Replace the causes of an error by copies that quote nothing; the error stays the same."""
    _give_causes(error, error, outer, {id(error): error})


def _copied(
    error: BaseException, outer: BaseException | None, done: dict[int, BaseException]
) -> BaseException:
    if error is outer or id(error) in done:
        return done.get(id(error), error)
    made = done[id(error)] = _copy(error)
    made.__traceback__ = error.__traceback__
    if not isinstance(made, Withheld):
        # Running frames, such as that of a `with`, can still reach the database's error.
        error.args = made.args
    _give_causes(made, error, outer, done)
    return made


def _give_causes(
    made: BaseException,
    error: BaseException,
    outer: BaseException | None,
    done: dict[int, BaseException],
) -> None:
    """Give `made` copies of the causes of `error`; both may be the same object."""
    traceback.clear_frames(error.__traceback__)
    cause, context, hidden = error.__cause__, error.__context__, error.__suppress_context__
    made.__cause__ = None if cause is None else _copied(cause, outer, done)
    made.__context__ = None if context is None else _copied(context, outer, done)
    made.__suppress_context__ = hidden


def _copy(error: BaseException) -> BaseException:
    if isinstance(error, OwnError | Withheld):
        return error
    if isinstance(error, Error):
        made: BaseException = _class_of(error, _OF_DJANGO)(_text_of_django(error))
        return made
    if isinstance(error, sqlite3.Error):
        return _copy_of_sqlite(error)
    if _is_psycopg(error):
        return _copy_of_psycopg(error)
    return Withheld.of(error)


def _class_of(error: BaseException, modules: Collection[str]) -> Any:
    """Return the nearest class from these modules: other classes may take other arguments."""
    return next(kind for kind in type(error).__mro__ if kind.__module__ in modules)


def _text_of_django(error: Error) -> str:
    driver = error.__cause__
    if isinstance(driver, sqlite3.Error):
        return _text_of_sqlite(driver)
    if driver is not None and _is_psycopg(driver):
        return _text_of_psycopg(driver)
    return str(error) if isinstance(error, _SPEAKING) else LEFT_OUT


def _text_of_sqlite(error: sqlite3.Error) -> str:
    """Return SQLite's text, which names constraints and files. Python's own text quotes columns."""
    name, text = getattr(error, "sqlite_errorname", None), str(error)
    if text.startswith(_NO_TEXT):
        return f"{_NO_TEXT}: {LEFT_OUT}"
    if name == "SQLITE_ERROR" and not any(said in text for said in _OF_SQLITE):
        return f"{name}: {LEFT_OUT}"
    if name in (None, "SQLITE_CONSTRAINT_TRIGGER"):
        return f"{name}: {LEFT_OUT}" if name else LEFT_OUT
    return text


def _copy_of_sqlite(error: sqlite3.Error) -> BaseException:
    made: BaseException = _class_of(error, {"sqlite3"})(_text_of_sqlite(error))
    for name in ("sqlite_errorcode", "sqlite_errorname"):
        if hasattr(error, name):
            setattr(made, name, getattr(error, name))
    return made


def _is_psycopg(error: BaseException) -> bool:
    # psycopg is not imported here: beside SQLite, its library may be missing.
    psycopg = sys.modules.get("psycopg")
    return psycopg is not None and isinstance(error, psycopg.Error)


def _text_of_psycopg(error: Any) -> str:
    """Return the server's message if it quotes nothing, and the names in it."""
    if error.sqlstate is None:
        # The client's own text. About a connection, it says the server and the end.
        return str(error) if _is_of_connection(error) else LEFT_OUT
    told = _message(error) or LEFT_OUT
    names = {"table": error.diag.table_name, "constraint": error.diag.constraint_name}
    more = "".join(f", {what} {name}" for what, name in names.items() if name)
    return f"{told} (SQLSTATE {error.sqlstate}{more})"


def _is_of_connection(error: Any) -> bool:
    import psycopg

    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)


def _message(error: Any) -> str | None:
    """Return the first line of the server's message, None if it may quote a value."""
    state, source = error.sqlstate, error.diag.source_file or ""
    if (state[:2] not in _CLASSES and state not in _STATES) or source.startswith(_OTHERS):
        return None
    message: str | None = error.diag.message_primary
    return message


def _copy_of_psycopg(error: Any) -> BaseException:
    from psycopg.pq import DiagnosticField

    kept = {name: getattr(error.diag, name) for name in _KEPT}
    kept["message_primary"] = None if error.sqlstate is None else _message(error)
    # Every field, because `diag` looks up each of them.
    info = {each: kept.get(each.name.lower()) for each in DiagnosticField}
    made: BaseException = _class_of(error, _OF_PSYCOPG)(
        _text_of_psycopg(error),
        info={each: None if text is None else text.encode() for each, text in info.items()},
    )
    return made
