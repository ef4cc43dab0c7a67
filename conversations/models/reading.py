"""Querysets for reading: `conversations.storage` writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn, Self

from django.db import models
from django.db.models import Q

from conversations.exceptions import DirectWriteRefused, InvalidOwner

PAGE = 500


def in_pages(rows: models.QuerySet[Any], *columns: str) -> Iterator[tuple[Any, ...]]:
    """Yield columns of rows by primary key, in constant memory.

    `iterator()` would need a cursor on the server, which a pooler in transaction mode closes after
    its statement.
    """
    behind = rows.order_by("pk").values_list("pk", *columns)
    page = list(behind[:PAGE])
    while page:
        yield from (found[1:] for found in page)
        if len(page) < PAGE:
            return
        page = list(behind.filter(pk__gt=page[-1][0])[:PAGE])


class ReadingQuerySet(models.QuerySet[Any]):
    """A queryset for reading: it refuses the bulk writes that would bypass revisions."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise DirectWriteRefused

    create = get_or_create = update_or_create = _refuse
    acreate = aget_or_create = aupdate_or_create = _refuse
    bulk_create = bulk_update = update = delete = _refuse
    abulk_create = abulk_update = aupdate = adelete = _refuse

    def for_user(self, user: Any) -> Self:
        """Return the conversations of a user (an instance or any form of its primary key).

        Raises: InvalidOwner for None and for a user who is not saved, such as an anonymous
        visitor; ValueError for an instance of another model.
        """
        if getattr(user, "pk", user) is None:
            # NULL would find the conversations without an owner.
            raise InvalidOwner
        return self.filter(user=user)

    def current(self) -> Self:
        """Return the versions that no later revision superseded."""
        return self.filter(superseded_in__isnull=True)

    def as_of(self, revision: int) -> Self:
        """Return the versions that were current when the conversation was at `revision`."""
        return self.filter(added_in__lte=revision).filter(
            Q(superseded_in__isnull=True) | Q(superseded_in__gt=revision)
        )


ReadingManager = models.Manager.from_queryset(ReadingQuerySet)
