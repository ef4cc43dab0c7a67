"""Context items, metadata and chunks in the admin."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Exists, F, OuterRef, Prefetch, Q, QuerySet
from django.db.models.functions import Substr
from django.http import HttpRequest
from django.utils.html import format_html

from memory.admin.reading import (
    FILTERED,
    LATEST,
    ConditionFilter,
    ReadOnlyAdmin,
    RecentValuesFilter,
    preformatted,
)
from memory.admin.text import shown, shown_json, shown_value, visible
from memory.models import MemoryChunk, MemoryContextItem, MemoryMetadata

EXCERPT = 120


class ExcerptMixin:
    """The beginning of a long column in a list, without reading the whole column."""

    excerpt_of = "content"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows: QuerySet[Any] = super().get_queryset(request)  # type: ignore[misc]
        annotated: QuerySet[Any] = rows.annotate(
            beginning=Substr(F(self.excerpt_of), 1, EXCERPT + 1)
        )
        return annotated

    @admin.display(description="content", empty_value="-")
    def excerpt(self, row: Any) -> Any:
        """Return the first characters of the text."""
        beginning = row.beginning or ""
        text = visible(beginning[:EXCERPT]) + ("…" if len(beginning) > EXCERPT else "")
        return format_html('<span class="reading-excerpt" dir="auto">{}</span>', text)


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


class ConversationLinkMixin:
    """A link to the conversation that a row belongs to, and a search by its id.

    Another term is looked for in `searched`, columns without an index, among the latest rows.
    """

    searched: tuple[str, ...] = ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the rows; the conversations of those on a page are read by themselves.

        Sorted by conversation, SQLite would begin a join with all of them.
        """
        rows: QuerySet[Any] = super().get_queryset(request)  # type: ignore[misc]
        names = self._conversations().using(rows.db).only("conversation_id")
        found: QuerySet[Any] = rows.prefetch_related(Prefetch("conversation", names))
        return found

    def _conversations(self) -> QuerySet[Any]:
        to: Any = self.model._meta.get_field("conversation").related_model  # type: ignore[attr-defined]
        every: QuerySet[Any] = to._base_manager.all()
        return every

    def found(self, request: HttpRequest, rows: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by the id of a conversation, or else by the other columns."""
        names = self._conversations().using(rows.db).filter(conversation_id=term)
        pk = names.values_list("pk", flat=True).first()
        if pk is not None:
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

    list_display = (
        "id",
        "in_conversation",
        "position",
        "source",
        "context_type",
        "relevance_score",
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

    @admin.display(description="content")
    def full_content(self, item: Any) -> Any:
        """Return the text as it is stored."""
        return preformatted(shown(item.content or ""))

    @admin.display(description="extra")
    def full_extra(self, item: Any) -> Any:
        """Return what fits no column."""
        return preformatted(shown_json(item.extra))


class TargetFilter(ConditionFilter):
    title, parameter_name = "is about", "target"
    conditions = tuple(
        (name, name.replace("_", " "), Q(**{f"{name}__isnull": False}))
        for name in MemoryMetadata.TARGETS
    )


@admin.register(MemoryMetadata)
class MetadataAdmin(ExcerptMixin, ReadOnlyAdmin):
    """Metadata of every kind of row. Those of chunks are how legacy finds its states."""

    excerpt_of = "value"
    list_display = ("id", "key", "excerpt", "target")
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

    def found(self, request: HttpRequest, rows: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find the rows that name a conversation, or else a key or value."""
        naming = rows.filter(key="conversation_id", value=term)
        if naming.exists():
            return naming
        return self.latest(request, rows).filter(Q(key=term) | Q(value=term))

    @admin.display(description="value")
    def full_value(self, metadata: Any) -> Any:
        """Return the whole value."""
        return preformatted(shown(metadata.value or ""))

    @admin.display(description="is about")
    def target(self, metadata: Any) -> Any:
        """Return the row that this is about, with a link."""
        field: Any = metadata._meta.get_field(
            next(name for name in metadata.TARGETS if getattr(metadata, f"{name}_id") is not None)
        )
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
class ChunkAdmin(ExcerptMixin, ReadOnlyAdmin):
    """The legacy table. Deleting a state here would look like a change by old code."""

    list_display = ("id", "user", "excerpt", "created_at")
    list_filter = (KindFilter, "created_at")
    list_select_related = ("user",)
    search_fields = ("metadata__value",)
    # A blob may have megabytes, and its kind stands in another table.
    most_filtered = 2_000
    search_help_text = (
        f"The exact id of a conversation. Filters choose among the latest {most_filtered:,}."
    )
    ordering = ("-id",)
    sortable_by = ("id", "user")
    large_columns = ("content", "embedding")
    fields = ("user", "created_at", "full_content", "described", "embedded")
    readonly_fields = fields

    def found(self, request: HttpRequest, rows: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by the id of a conversation."""
        named = MemoryMetadata.objects.filter(key="conversation_id", value=term)
        return rows.filter(pk__in=named.values("chunk"))

    @admin.display(description="content")
    def full_content(self, chunk: Any) -> Any:
        """Return the blob, indented where it is JSON."""
        return preformatted(shown_json(chunk.content or ""))

    @admin.display(description="metadata")
    def described(self, chunk: Any) -> Any:
        """Return the metadata rows as lines."""
        rows = chunk.metadata.order_by("pk").values_list("key", "value")[:100]
        return preformatted(shown("\n".join(f"{key} = {value or ''}" for key, value in rows)))

    @admin.display(description="embedding")
    def embedded(self, chunk: Any) -> Any:
        """Return the vector, or "-" when there is none."""
        return "-" if chunk.embedding is None else preformatted(shown_value(chunk.embedding))
