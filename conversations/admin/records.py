"""Messages, conflicts, redactions and tombstones in the admin: for reading."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from conversations.content.codec import decode_message
from conversations.models import (
    ConversationConflict,
    ConversationMessage,
    ConversationMismatch,
    ConversationRedaction,
    ConversationTombstone,
    SyncBatch,
    SyncRun,
)
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
from flags.admin.rights import ConversationRights, rights_of
from flags.admin.text import shown, shown_json, shown_value
from flags.phases import Phase
from memory.admin.models import (
    ConversationLinkMixin,
    CurrentFilter,
    ExcerptMixin,
)
from memory.admin.rights import RowsThatNameConversations
from memory.admin.words import words_of

# Shown in place of values that the reader may not see.
HIDDEN = "…"
ROLES = ("system", "developer", "user", "assistant", "tool")


class RoleFilter(ConditionFilter):
    title, parameter_name = "role", "role"
    conditions = (
        *((role, role, Q(role=role)) for role in ROLES),
        ("other", "other or none", ~Q(role__in=ROLES) | Q(role__isnull=True)),
    )


class OutcomeFilter(ConditionFilter):
    title, parameter_name = "tool outcome", "outcome"
    conditions = (
        ("succeeded", "succeeded", Q(tool_success=True)),
        ("failed", "failed", Q(tool_success=False)),
    )


def _seen(rights: ConversationRights, key: str) -> str:
    """Return a key of a run's walk, if the reader may see it: a text may be a conversation's id."""
    named = json.loads(key) if key else None
    return key if not isinstance(named, str) or rights.viewable_names([named]) else HIDDEN


@admin.register(SyncRun)
class SyncRunAdmin(ReadOnlyAdmin):
    """The backfills and verifications at scale."""

    list_display = ("id", "target", "state", "started_at", "finished_at", "reason")
    list_filter = ("state", "target")
    ordering = ("-id",)
    fields = (
        "target",
        "state",
        "stage",
        "cursor",
        "upper",
        "sample",
        "mark",
        "batch_size",
        "reason",
        "waiting",
        "waited_at",
        "started_at",
        "resumed_at",
        "finished_at",
    )

    def get_object(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Return a run, without keys that may name a conversation the reader may not view."""
        run = super().get_object(request, *args, **kwargs)
        rights = rights_of(self.admin_site, request)
        if run is not None and rights.by_row:
            run.cursor, run.upper = (_seen(rights, key) for key in (run.cursor, run.upper))
        return run


@admin.register(SyncBatch)
class SyncBatchAdmin(ReadOnlyAdmin):
    """The batches of the runs, with the results of their conversations."""

    list_display = ("id", "run", "conversations", "failed", "generation", "taken_at", "finished_at")
    list_filter = ("taken_at",)
    list_select_related = ("run",)
    ordering = ("-id",)
    sortable_by = ("id", "run")
    large_columns = ("noted",)
    fields = (
        "run",
        "stage",
        "low",
        "high",
        "generation",
        "conversations",
        "counts",
        "failed",
        "noted",
        "taken_at",
        "finished_at",
    )

    def get_object(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Return a batch, without the conversations that the reader may not view."""
        batch = super().get_object(request, *args, **kwargs)
        rights = rights_of(self.admin_site, request)
        if batch is not None and rights.by_row:
            batch.low, batch.high = (_seen(rights, key) for key in (batch.low, batch.high))
            notes = json.loads(batch.noted)
            seen = rights.viewable_names(name for name, *_ in notes)
            batch.noted = json.dumps([note for note in notes if note[0] in seen])
        return batch


@admin.register(ConversationMessage)
class MessageAdmin(ConversationLinkMixin, ExcerptMixin, ReadOnlyAdmin):
    """Every version of every message that the tables hold."""

    noted_in = ("tool_calls", "extra")

    list_display = (
        "id",
        "in_conversation",
        "place",
        "speaker",
        "excerpt",
        "is_current",
        "timestamp",
    )
    list_filter = (RoleFilter, CurrentFilter, OutcomeFilter, "timestamp")
    search_fields = ("conversation_id",)
    searched = ("tool_name", "tool_call_id", "key")
    search_help_text = (
        "The exact id of a conversation, or a tool's name, id of a tool call or key"
        f" {LATEST}. {FILTERED}"
    )
    ordering = ("-id",)
    sortable_by = ("id", "in_conversation")
    large_columns = ("content", "tool_calls", "extra")
    fields = (
        "in_conversation",
        "sequence",
        "role",
        "message_type",
        "full_content",
        "tool_name",
        "tool_success",
        "tool_call_id",
        "as_saved",
        "key",
        "supersedes",
        "added_in",
        "superseded_in",
        "timestamp",
        "digest_in_hex",
    )
    readonly_fields = fields

    @admin.display(description="no.")
    def place(self, message: Any) -> int:
        """Return the sequence."""
        return int(message.sequence)

    @admin.display(description="role, tool")
    def speaker(self, message: Any) -> Any:
        """Return the role, and below it the tool that was called or answers."""
        return lines(message.role, message.tool_name)

    @admin.display(description="current", boolean=True)
    def is_current(self, message: Any) -> bool:
        """Whether no later revision superseded this version."""
        return message.superseded_in is None

    @admin.display(description="content")
    def full_content(self, message: Any) -> Any:
        """Return the text, or the message's words in other fields."""
        value = decode_message(vars(message))
        content = value.get("content") if isinstance(value, dict) else None
        text = content if isinstance(content, str) else message.content or ""
        return preformatted(shown(text if text.strip() else words_of(value)))

    @admin.display(description="as it was saved")
    def as_saved(self, message: Any) -> Any:
        """Return the whole message, as a load returns it."""
        return preformatted(shown_value(decode_message(vars(message))))

    @admin.display(description="digest")
    def digest_in_hex(self, message: Any) -> str:
        """Return the digest that comparisons use."""
        return bytes(message.digest).hex()


@admin.register(ConversationConflict)
class ConflictAdmin(ConversationLinkMixin, ReadOnlyAdmin):
    """Edits that merges could not keep in place, and blobs that were set aside."""

    list_display = ("id", "in_conversation", "kind", "reason", "revision", "created_at")
    list_filter = ("kind", "created_at")
    search_fields = ("conversation_id",)
    search_help_text = f"The exact id of a conversation. {FILTERED}"
    sortable_by = ("id", "in_conversation")
    ordering = ("-id",)
    large_columns = ("detail",)
    fields = ("in_conversation", "kind", "reason", "revision", "full_detail", "created_at")
    readonly_fields = fields

    @admin.display(description="detail")
    def full_detail(self, conflict: Any) -> Any:
        """Return the record."""
        return preformatted(shown_json(conflict.detail))


@admin.register(ConversationMismatch)
class MismatchAdmin(RowsThatNameConversations, ReadOnlyAdmin):
    """Loads that differed from the other store: the places, never the content."""

    list_display = ("id", "shown_id", "in_phase", "revision", "seen_at")
    list_filter = ("seen_at",)
    search_fields = ("conversation_id",)
    search_help_text = f"The exact id of a conversation {LATEST}. {FILTERED}"
    ordering = ("-id",)
    sortable_by = ("id", "seen_at")
    large_columns = ("places",)
    fields = (
        "conversation_id",
        "in_phase",
        "revision",
        "that_differ",
        "tables_hash",
        "legacy_hash",
        "seen_at",
    )
    readonly_fields = fields

    def found(self, request: HttpRequest, rows: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by the id of a conversation, which has no index here."""
        return self.latest(request, rows).filter(conversation_id=term)

    @admin.display(description="conversation id")
    def shown_id(self, mismatch: Any) -> Any:
        """Return the id on one line."""
        return one_line(mismatch.conversation_id)

    @admin.display(description="phase", ordering="phase")
    def in_phase(self, mismatch: Any) -> str:
        """Return the label of the phase in which it was found."""
        return Phase(mismatch.phase).label

    @admin.display(description="places that differ")
    def that_differ(self, mismatch: Any) -> Any:
        """Return the fields and places, the first 20 of them."""
        return preformatted(shown_json(mismatch.places))


@admin.register(ConversationRedaction)
class RedactionAdmin(ConversationLinkMixin, ReadOnlyAdmin):
    """The conversations with redacted texts. The text itself is stored nowhere."""

    list_display = ("id", "in_conversation", "created_at")
    list_filter = ("created_at",)
    search_fields = ("conversation_id",)
    search_help_text = f"The exact id of a conversation. {FILTERED}"
    sortable_by = ("id", "in_conversation")
    ordering = ("-id",)
    large_columns = ("replacement",)
    fields = ("in_conversation", "shown_replacement", "created_at")
    readonly_fields = fields

    @admin.display(description="replacement")
    def shown_replacement(self, redaction: Any) -> Any:
        """Return the text that replaced the redacted one."""
        return preformatted(shown(redaction.replacement))


class ReasonFilter(RecentValuesFilter):
    title, parameter_name, column = "reason", "reason", "reason"


@admin.register(ConversationTombstone)
class TombstoneAdmin(RowsThatNameConversations, ReadOnlyAdmin):
    """Deleted conversations. Their ids are never used again."""

    list_display = ("shown_id", "reason", "deleted_at")
    list_filter = (ReasonFilter, "deleted_at")
    search_fields = ("conversation_id",)
    search_help_text = f"The exact id of a conversation. {FILTERED}"
    ordering = ("-id",)
    sortable_by = ("shown_id",)
    fields = ("conversation_id", "reason", "deleted_at")
    readonly_fields = fields

    @admin.display(description="conversation id", ordering="conversation_id")
    def shown_id(self, tombstone: Any) -> Any:
        """Return the id on one line."""
        return one_line(tombstone.conversation_id)
