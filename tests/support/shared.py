"""Data that several tests share: written once, in a transaction around that of each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db import transaction

T = TypeVar("T")


@contextmanager
def written_once(blocker: Any, write: Callable[[], T]) -> Iterator[T]:
    """Keep what `write` does in the default database until the block ends.

    For a fixture of a module whose tests are all undone: the transaction of each of them becomes
    a savepoint of this one. `blocker` is the fixture `django_db_blocker`.
    """
    with blocker.unblock():
        around = transaction.atomic()
        around.__enter__()
        try:
            written = write()
        except BaseException as error:
            around.__exit__(type(error), error, error.__traceback__)
            raise
    # Tests are allowed the database by their own mark.
    try:
        yield written
    finally:
        with blocker.unblock():
            transaction.set_rollback(True)
            around.__exit__(None, None, None)
