"""Context items, universal metadata and the legacy chunks.

`memory_chunks` and `memory_metadata` may exist already: the first migrations adopt them.
"""

from __future__ import annotations

import json
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Coalesce

from flags.installation import require_installed

require_installed()


class LegacyJSONField(models.JSONField):
    """JSON in a column that old code may have made: jsonb, json, text or a vector.

    psycopg parses `json` by itself, but Django expects the text.
    """

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        """Return the column's value, parsed once."""
        if not isinstance(value, str):
            return value
        try:
            return super().from_db_value(value, expression, connection)
        except json.JSONDecodeError:
            return value


class MemoryChunk(models.Model):
    """A row of the legacy table: one whole state as JSON text, or another kind of memory."""

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="memory_chunks",
        db_index=False,
    )
    content = models.TextField(null=True, blank=True)
    embedding = LegacyJSONField(null=True, blank=True)
    created_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "memory_chunks"
        indexes = [
            # the blobs of a user, and the foreign key's own look-ups
            models.Index(fields=["user"], name="chunk_by_user"),
            # the conversations of all users in legacy by latest activity, in the admin and in lists
            models.Index(fields=["created_at"], name="chunk_by_time"),
        ]

    def __str__(self) -> str:
        return f"chunk {self.pk}"


class MemoryContextItem(models.Model):
    """One item of an assistant's memory context, in the order of `position`.

    An edit replaces the row; `sequence` stays, and is never used twice in a conversation.
    """

    conversation = models.ForeignKey(
        "conversations.ConversationState",
        on_delete=models.CASCADE,
        related_name="context_items",
        db_index=False,
    )
    sequence = models.BigIntegerField()
    position = models.BigIntegerField()
    source = models.CharField(max_length=255, null=True, blank=True)
    content = models.TextField(null=True, blank=True)
    relevance_score = models.FloatField(null=True, blank=True)
    context_type = models.CharField(max_length=255, null=True, blank=True)
    original_role = models.CharField(max_length=64, null=True, blank=True)
    focus_area = models.CharField(max_length=255, null=True, blank=True)
    preference_type = models.CharField(max_length=255, null=True, blank=True)
    extra = models.TextField(
        default="", blank=True, help_text="JSON as text: values without an exact column."
    )
    digest = models.BinaryField(max_length=16)
    timestamp = models.DateTimeField(null=True, blank=True)
    added_in = models.BigIntegerField()
    superseded_in = models.BigIntegerField(null=True, blank=True)

    class Meta:
        db_table = "memory_context_items"
        constraints = [
            # the context of a conversation in order, and the foreign key's own look-ups, which a
            # partial index would not serve; one current item per position
            models.UniqueConstraint(
                F("conversation"),
                F("position"),
                Coalesce("superseded_in", 0),
                name="item_by_position",
            ),
            models.CheckConstraint(
                name="item_relevance_0_to_1",
                condition=Q(relevance_score__isnull=True)
                | Q(relevance_score__gte=0, relevance_score__lte=1),
            ),
            models.CheckConstraint(
                name="item_superseded_later",
                condition=Q(superseded_in__isnull=True) | Q(superseded_in__gt=F("added_in")),
            ),
        ]

    def __str__(self) -> str:
        return f"item {self.pk}"


class MemoryMetadata(models.Model):
    """One key and value about one row: a chunk, a conversation, a message or a context item."""

    chunk = models.ForeignKey(
        MemoryChunk,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="metadata",
        db_index=False,
    )
    key = models.CharField(max_length=255)
    value = models.TextField(null=True, blank=True)
    conversation = models.ForeignKey(
        "conversations.ConversationState",
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="metadata",
        db_index=False,
    )
    message = models.ForeignKey(
        "conversations.ConversationMessage",
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="metadata",
        db_index=False,
    )
    context_item = models.ForeignKey(
        MemoryContextItem,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="metadata",
        db_index=False,
    )

    TARGETS = {
        "chunk": "memory_chunks",
        "conversation": "conversation_states",
        "message": "conversation_messages",
        "context_item": "memory_context_items",
    }

    class Meta:
        db_table = "memory_metadata"
        verbose_name_plural = "memory metadata"
        indexes = [
            # the legacy blobs of a conversation: `value` is its id
            models.Index(
                fields=["value", "chunk"],
                name="metadata_conversation_chunk",
                condition=Q(key="conversation_id"),
            ),
            # the metadata of a chunk, and the foreign key's own look-ups
            models.Index(fields=["chunk"], name="metadata_by_chunk"),
        ]
        constraints = [
            models.CheckConstraint(
                name="metadata_one_target",
                condition=(
                    Q(chunk__isnull=False, conversation=None, message=None, context_item=None)
                    | Q(chunk=None, conversation__isnull=False, message=None, context_item=None)
                    | Q(chunk=None, conversation=None, message__isnull=False, context_item=None)
                    | Q(chunk=None, conversation=None, message=None, context_item__isnull=False)
                ),
            ),
            # unique per target, and the foreign keys' own look-ups; chunks repeat keys freely
            models.UniqueConstraint(
                fields=["conversation", "key"],
                condition=Q(conversation__isnull=False),
                name="metadata_conversation_key",
            ),
            models.UniqueConstraint(
                fields=["message", "key"],
                condition=Q(message__isnull=False),
                name="metadata_message_key",
            ),
            models.UniqueConstraint(
                fields=["context_item", "key"],
                condition=Q(context_item__isnull=False),
                name="metadata_context_item_key",
            ),
        ]

    def __str__(self) -> str:
        return self.key

    @property
    def target(self) -> str | None:
        """Return the name of the foreign key that is set, None if none is.

        A row of old code from before the constraint may name no target.
        """
        return next((n for n in self.TARGETS if getattr(self, f"{n}_id") is not None), None)

    @property
    def table_name(self) -> str | None:
        """Return the table of the described row."""
        return None if self.target is None else self.TARGETS[self.target]

    @property
    def record_id(self) -> int | None:
        """Return the primary key of the described row."""
        return None if self.target is None else int(getattr(self, f"{self.target}_id"))
