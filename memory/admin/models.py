"""Context items, metadata and chunks in the admin."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from django.contrib import admin
from django.db.models import Case, Exists, F, OuterRef, Prefetch, Q, QuerySet, Value, When
from django.db.models.functions import Substr
from django.http import HttpRequest
from django.utils.html import format_html

from flags.admin.base import (
    FILTERED,
    LATEST,
    ConditionFilter,
    ReadOnlyAdmin,
    RecentValuesFilter,
    lines,
    one_line,
    preformatted,
)
from flags.admin.rights import Subject
from flags.admin.text import Shown, label, shown, shown_json, shown_value
from memory.admin.rights import (
    RowsOfConversations,
    RowsThatNameConversations,
    subjects_of_chunks,
    subjects_of_metadata,
)
from memory.admin.words import words_of_columns
from memory.models import MemoryChunk, MemoryContextItem, MemoryMetadata

EXCERPT = 120
# Characters of a JSON column that are read if the text is blank: enough for an excerpt.
BEGINNING = 2_000


class ExcerptMixin:
    """The beginning of a long column in a list, without reading the whole column.

    If it is blank, the excerpt comes from the beginnings of the columns `noted_in`. They hold
    values that fit no other column.
    """

    excerpt_of = "content"
    noted_in: tuple[str, ...] = ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows: QuerySet[Any] = super().get_queryset(request)  # type: ignore[misc]
        blank = Q(beginning__isnull=True) | Q(beginning__regex=r"^\s*$")
        noted = {
            f"noted_{name}": Case(When(blank, Substr(F(name), 1, BEGINNING)), default=Value(""))
            for name in self.noted_in
        }
        annotated: QuerySet[Any] = rows.annotate(
            beginning=Substr(F(self.excerpt_of), 1, EXCERPT + 1)
        ).annotate(**noted)
        return annotated

    @admin.display(description="content", empty_value="-")
    def excerpt(self, row: Any) -> Any:
        """Return the first characters of the text, or of the other columns if it is blank."""
        beginning = row.beginning or ""
        if not beginning.strip():
            noted = {name: getattr(row, f"noted_{name}") for name in self.noted_in}
            beginning = words_of_columns(noted, limit=EXCERPT + 1)
        if not beginning.strip():
            return None
        text = label(beginning, limit=EXCERPT)
        return format_html('<span class="reading-excerpt" dir="auto">{}</span>', text)

    def words(self, row: Any) -> Shown:
        """Return the text of a row from its other columns."""
        return shown(words_of_columns({name: getattr(row, name) for name in self.noted_in}))


class SourceFilter(RecentValuesFilter):
    title, parameter_name, column = "source", "source", "source"


class TypeFilter(RecentValuesFilter):
    title, parameter_name, column = "type", "context_type", "context_type"


class ScoreFilter(ConditionFilter):
    title, parameter_name = "relevance score", "score"
    conditions = (
        ("0.8", "0.8 to 1", Q(relevance_score__gte=0.8)),
        ("0.6", "0.6 to 0.8", Q(relevance_score__gte=0.6, relevance_score__lt=0.8)),
        ("0.4", "0.4 to 0.6", Q(relevance_score__gte=0.4, relevance_score__lt=0.6)),
        ("0.2", "0.2 to 0.4", Q(relevance_score__gte=0.2, relevance_score__lt=0.4)),
        ("0", "below 0.2", Q(relevance_score__lt=0.2)),
        ("unknown", "unknown", Q(relevance_score__isnull=True)),
    )


class CurrentFilter(ConditionFilter):
    title, parameter_name = "version", "version"
    conditions = (
        ("current", "current", Q(superseded_in__isnull=True)),
        ("superseded", "superseded", Q(superseded_in__isnull=False)),
    )


class ConversationLinkMixin(RowsOfConversations):
    """A link to the conversation of a row, and a search by the conversation's id.

    Another term is searched among the latest rows, in the columns `searched`, which have no index.
    """

    searched: tuple[str, ...] = ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the rows; a separate query reads the conversations of a page.

        In a list sorted by conversation, SQLite would begin a join with all conversations.
        """
        rows = super().get_queryset(request)
        to: Any = self.model._meta.get_field("conversation").related_model
        names = to._base_manager.using(rows.db).only("conversation_id")
        return rows.prefetch_related(Prefetch("conversation", names))

    def found(self, request: HttpRequest, rows: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by the id of a conversation, or else by the other columns."""
        rights = self.rights(request)
        names = rights.rows.using(rows.db).filter(conversation_id=term)
        pk = names.values_list("pk", flat=True).first()
        if pk is not None and rights.viewable_keys([pk]):
            return rows.filter(conversation_id=pk)
        if not self.searched:
            return rows.none()
        wanted = Q(*((name, term) for name in self.searched), _connector=Q.OR)
        latest: QuerySet[Any] = self.latest(request, rows)  # type: ignore[attr-defined]
        return latest.filter(wanted)

    @admin.display(description="conversation", ordering="conversation_id")
    def in_conversation(self, row: Any) -> Any:
        """Return the conversation's id, with a link to its page."""
        if row.conversation_id is None:
            return "-"
        name = row.conversation.conversation_id
        link: Any = self.link  # type: ignore[attr-defined]
        return link("conversations", "conversationstate", row.conversation_id, name)


@admin.register(MemoryContextItem)
class ContextItemAdmin(ConversationLinkMixin, ExcerptMixin, ReadOnlyAdmin):
    """Context items: a list with filters, and one item in full."""

    noted_in = ("extra",)

    list_display = (
        "id",
        "in_conversation",
        "position",
        "described",
        "score",
        "excerpt",
        "timestamp",
    )
    list_filter = (SourceFilter, TypeFilter, ScoreFilter, CurrentFilter, "timestamp")
    search_fields = ("conversation_id",)
    searched = ("source", "focus_area")
    search_help_text = (
        f"The exact id of a conversation, or a source or focus area {LATEST}. {FILTERED}"
    )
    ordering = ("-id",)
    sortable_by = ("id", "in_conversation")
    large_columns = ("content", "extra", "digest")
    fields = (
        "in_conversation",
        "position",
        "source",
        "context_type",
        "relevance_score",
        "full_content",
        "original_role",
        "focus_area",
        "preference_type",
        "full_extra",
        "timestamp",
        "added_in",
        "superseded_in",
    )
    readonly_fields = fields

    @admin.display(description="source, type")
    def described(self, item: Any) -> Any:
        """Return the source of the item, and its type below."""
        return lines(item.source, item.context_type)

    @admin.display(description="score", empty_value="-")
    def score(self, item: Any) -> str | None:
        """Return the relevance with four digits; the item's own page has all digits."""
        return None if item.relevance_score is None else f"{item.relevance_score:.4g}"

    @admin.display(description="content")
    def full_content(self, item: Any) -> Any:
        """Return the stored text, or the text of the other columns if it is blank."""
        content = item.content or ""
        return preformatted(shown(content) if content.strip() else self.words(item))

    @admin.display(description="extra")
    def full_extra(self, item: Any) -> Any:
        """Return the values that fit no column."""
        return preformatted(shown_json(item.extra))


class TargetFilter(ConditionFilter):
    title, parameter_name = "is about", "target"
    conditions = tuple(
        (name, name.replace("_", " "), Q(**{f"{name}__isnull": False}))
        for name in MemoryMetadata.TARGETS
    )


@admin.register(MemoryMetadata)
class MetadataAdmin(RowsThatNameConversations, ExcerptMixin, ReadOnlyAdmin):
    """Metadata of every kind of row. Legacy finds its states by the metadata of chunks."""

    excerpt_of = "value"
    list_display = ("id", "shown_key", "excerpt", "target")
    list_filter = (TargetFilter,)
    search_fields = ("key",)
    search_help_text = (
        f"The exact id of a conversation in legacy, or a key or value {LATEST}. {FILTERED}"
    )
    ordering = ("-id",)
    sortable_by = ("id",)
    large_columns = ("value",)
    fields = ("key", "full_value", "table_name", "target")
    readonly_fields = fields

    def subjects_of(self, keys: Sequence[Any]) -> Mapping[Any, Collection[Subject]]:
        return subjects_of_metadata(keys)

    def found(self, request: HttpRequest, rows: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find the rows that name a conversation, or else a key or value."""
        naming = rows.filter(key="conversation_id", value=term)
        if naming.exists():
            return naming
        return self.latest(request, rows).filter(Q(key=term) | Q(value=term))

    @admin.display(description="key")
    def shown_key(self, metadata: Any) -> Any:
        """Return the key on one line."""
        return one_line(metadata.key)

    @admin.display(description="value")
    def full_value(self, metadata: Any) -> Any:
        """Return the whole value."""
        return preformatted(shown(metadata.value or ""))

    @admin.display(description="is about")
    def target(self, metadata: Any) -> Any:
        """Return the described row, with a link; None if the metadata names none."""
        if metadata.target is None:
            return None
        field: Any = metadata._meta.get_field(metadata.target)
        to = field.related_model._meta
        name = f"{to.verbose_name} {metadata.record_id}"
        return self.link(to.app_label, to.model_name, metadata.record_id, name)


def _of_kind(kind: str) -> Q:
    rows = MemoryMetadata.objects.filter(chunk_id=OuterRef("pk"), key="type", value=kind)
    return Q(Exists(rows))


class KindFilter(ConditionFilter):
    title, parameter_name = "kind", "kind"
    conditions = (
        ("state", "state of a conversation", _of_kind("state")),
        ("summary", "summary", _of_kind("summary")),
        ("ltm", "long-term memory", _of_kind("ltm")),
    )


@admin.register(MemoryChunk)
class ChunkAdmin(RowsThatNameConversations, ExcerptMixin, ReadOnlyAdmin):
    """The legacy table. Deleting a state here would look like a change by old code."""

    list_display = ("id", "owner", "excerpt", "created_at")
    list_filter = (KindFilter, "created_at")
    list_select_related = ("user",)
    search_fields = ("metadata__value",)
    # A blob may have megabytes, and its kind is in another table.
    most_filtered = 2_000
    search_help_text = (
        f"The exact id of a conversation. Filters choose among the latest {most_filtered:,}."
    )
    ordering = ("-id",)
    sortable_by = ("id", "owner")
    large_columns = ("content", "embedding")
    fields = ("user", "created_at", "full_content", "described", "embedded")
    readonly_fields = fields

    def subjects_of(self, keys: Sequence[Any]) -> Mapping[Any, Collection[Subject]]:
        return subjects_of_chunks(keys)

    def found(self, request: HttpRequest, rows: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by the id of a conversation."""
        named = MemoryMetadata.objects.filter(key="conversation_id", value=term)
        return rows.filter(pk__in=named.values("chunk"))

    @admin.display(description="user", ordering="user", empty_value="-")
    def owner(self, chunk: Any) -> Any:
        """Return the user on one line."""
        return None if chunk.user_id is None else one_line(chunk.user)

    @admin.display(description="content")
    def full_content(self, chunk: Any) -> Any:
        """Return the blob, indented if it is JSON."""
        return preformatted(shown_json(chunk.content or ""))

    @admin.display(description="metadata")
    def described(self, chunk: Any) -> Any:
        """Return the metadata rows as lines."""
        rows = chunk.metadata.order_by("pk").values_list("key", "value")[:100]
        return preformatted(shown("\n".join(f"{key} = {value or ''}" for key, value in rows)))

    @admin.display(description="embedding")
    def embedded(self, chunk: Any) -> Any:
        """Return the vector, or "-" if there is none."""
        return "-" if chunk.embedding is None else preformatted(shown_value(chunk.embedding))
