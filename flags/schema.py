"""Recognising an error about a missing table or column, whose remedy is `migrate`."""

from __future__ import annotations

MIGRATE = "run `manage.py migrate`"
# SQLSTATE: undefined_table, undefined_column.
_STATES = frozenset({"42P01", "42703"})
_OF_SQLITE = ("no such table", "no such column", "has no column named")


def not_migrated(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is about a missing table or column."""
    while error is not None:
        if getattr(error, "sqlstate", None) in _STATES:
            return True
        # SQLite has no code for this error, only a text.
        if type(error).__module__ == "sqlite3" and any(said in str(error) for said in _OF_SQLITE):
            return True
        error = error.__cause__ or error.__context__
    return False


def named(error: BaseException) -> str:
    """Return an error's type and, for a missing table, the remedy. Its text may quote rows."""
    name = type(error).__name__
    return f"{name}: a table or a column is missing, {MIGRATE}" if not_migrated(error) else name
