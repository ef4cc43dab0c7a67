"""Admins of rows of conversations: only a user who may see a conversation sees its rows.

The admin of conversations decides about these users; see `flags.admin.rights`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest

from flags.admin.rights import ConversationRights, Subject, rights_of
from memory.models import MemoryChunk, MemoryMetadata

# A list of rows that only name a conversation asks for each row, of the latest this many.
MOST_ASKED = 500


class OfConversations:
    """The part of a ModelAdmin that shows a row only to users who may see its conversation.

    A hidden row looks like a missing one.
    """

    admin_site: Any
    model: Any

    def rights(self, request: HttpRequest) -> ConversationRights:
        """Return the reader's rights to conversations."""
        return rights_of(self.admin_site, request)

    def seen(self, request: HttpRequest, rows: Sequence[Any]) -> list[Any]:
        """Return the rows that the reader may see."""
        raise NotImplementedError

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether rows like this may be viewed, and the conversation of this one."""
        allowed = super().has_view_permission(request, obj)  # type: ignore[misc]
        if not allowed or not self.rights(request).may_view_any():
            return False
        return obj is None or bool(self.seen(request, [obj]))

    def get_object(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Return a row, None if it is missing or hidden from the reader."""
        found = super().get_object(request, *args, **kwargs)  # type: ignore[misc]
        return found if found is None or self.seen(request, [found]) else None


class RowsOfConversations(OfConversations):
    """For rows with a foreign key `conversation`: the database leaves out hidden rows."""

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the rows of the conversations in the reader's list."""
        rows = super().get_queryset(request)  # type: ignore[misc]
        return self.rights(request).within(rows, "conversation")

    def seen(self, request: HttpRequest, rows: Sequence[Any]) -> list[Any]:
        keys = self.rights(request).viewable_keys(row.conversation_id for row in rows)
        return [row for row in rows if row.conversation_id in keys]

    def lines(self, request: HttpRequest, rows: Iterable[Any]) -> Iterable[Any]:
        """Return the lines of a page of the list that the reader may see."""
        return self.seen(request, list(rows)) if self.rights(request).by_row else rows

    def offered(self, request: HttpRequest, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Return the rows, of a few, that the reader may see, for the choices of a filter."""
        rights = self.rights(request)
        if not rights.by_row:
            return rows
        named = set(rows.order_by().values_list("conversation_id", flat=True))
        return rows.filter(conversation_id__in=rights.viewable_keys(named))


class RowsThatNameConversations(OfConversations):
    """For rows that name conversations by id: a reader with partial rights sees the latest rows."""

    def subjects_of(self, keys: Sequence[Any]) -> Mapping[Any, Collection[Subject]]:
        """Return by primary key the conversations that a row names, with their owners."""
        rows = self.model._base_manager.filter(pk__in=keys)
        return {pk: [(name, None)] for pk, name in rows.values_list("pk", "conversation_id")}

    def seen_keys(self, request: HttpRequest, keys: Sequence[Any]) -> set[Any]:
        """Return the primary keys of the rows that the reader may see."""
        if not self.rights(request).by_row:
            return set(keys)
        subjects = self.subjects_of(keys)
        every = [subject for named in subjects.values() for subject in named]
        seen = self.rights(request).viewable_subjects(every)
        return {key for key in keys if key in subjects and seen.issuperset(subjects[key])}

    def seen(self, request: HttpRequest, rows: Sequence[Any]) -> list[Any]:
        keys = self.seen_keys(request, [row.pk for row in rows])
        return [row for row in rows if row.pk in keys]

    def offered(self, request: HttpRequest, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Return the viewable rows among the latest of these."""
        if not self.rights(request).by_row:
            return rows
        latest = rows.order_by("-pk").values_list("pk", flat=True)[:MOST_ASKED]
        return rows.filter(pk__in=self.seen_keys(request, list(latest)))

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Return the viewable rows of a search; lists call this without a term, too."""
        found, may_repeat = super().get_search_results(request, queryset, search_term)  # type: ignore[misc]
        return self.offered(request, found), may_repeat


def subjects_of_chunks(keys: Collection[Any]) -> Mapping[Any, Collection[Subject]]:
    """Return the conversations that chunks name, with the chunk's owner; "" without a name."""
    owners = MemoryChunk._base_manager.filter(pk__in=keys).values_list("pk", "user_id")
    rows = MemoryMetadata._base_manager.filter(key="conversation_id", chunk__in=keys)
    names: dict[Any, list[str]] = {}
    for chunk, name in rows.values_list("chunk_id", "value"):
        names.setdefault(chunk, []).append(name or "")
    return {
        pk: [(name, None if user is None else str(user)) for name in names.get(pk, [""])]
        for pk, user in owners
    }


# The paths to the conversation from the targets of metadata other than chunks.
_PATHS = ("conversation", "message__conversation", "context_item__conversation")


def subjects_of_metadata(keys: Collection[Any]) -> Mapping[Any, Collection[Subject]]:
    """Return the conversations of the rows that metadata describes."""
    rows = MemoryMetadata._base_manager.filter(pk__in=keys)
    columns = rows.values_list("pk", "chunk_id", *(f"{path}__conversation_id" for path in _PATHS))
    described = list(columns)
    chunks = subjects_of_chunks({chunk for _, chunk, *_ in described if chunk is not None})
    found: dict[Any, Collection[Subject]] = {}
    for pk, chunk, *names in described:
        if chunk in chunks:
            found[pk] = chunks[chunk]
        elif any(names):
            found[pk] = [(name, None) for name in names if name is not None]
    return found
