"""The tables of conversations, and of the records about them.

JSON that must return exactly is kept as text: jsonb reorders keys and changes numbers.
"""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import F, Q

from conversations.models.reading import ReadingManager
from flags.installation import require_installed

require_installed()

DIGEST_BYTES = 16
UNVERIFIED = Q(verified_revision__lt=F("revision")) | Q(verified_revision__lt=F("legacy_revision"))
LEGACY_BEHIND = Q(legacy_revision__lt=F("revision"))
UNSETTLED = UNVERIFIED | LEGACY_BEHIND


class ConversationState(models.Model):
    """One conversation: everything of its state but messages and context items.

    `revision` numbers the last write in the tables, `legacy_revision` the last one that legacy is
    known to hold. The store with the higher number holds the truth.
    """

    conversation_id = models.CharField(max_length=255)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="conversation_states",
        db_index=False,
    )
    legacy_user_id = models.CharField(
        max_length=255,
        null=True,
        blank=True,
        help_text="The owner that legacy names, when no such user exists here.",
    )
    user_input = models.TextField(default="")
    focus_areas = models.TextField(default="[]", help_text="JSON as text.")
    step_count = models.BigIntegerField(default=0)
    last_tool_result = models.TextField(default="null", help_text="JSON as text.")
    extra = models.TextField(default="", help_text="JSON as text: history, unknown fields, flags.")
    revision = models.BigIntegerField(default=0)
    next_sequence = models.BigIntegerField(default=1)
    next_item_sequence = models.BigIntegerField(default=1)
    message_count = models.BigIntegerField(default=0)
    context_item_count = models.BigIntegerField(default=0)
    context_items_revision = models.BigIntegerField(
        default=0, help_text="The revision that last changed a context item."
    )
    redaction_count = models.BigIntegerField(default=0)
    messages_digest = models.BinaryField(max_length=DIGEST_BYTES)
    message_blocks = models.BinaryField(
        null=True, help_text="Digests of the full blocks of messages; null: all are one block."
    )
    state_digest = models.BinaryField(
        max_length=2 * DIGEST_BYTES, help_text="Of the fields, then of the context items."
    )
    legacy_revision = models.BigIntegerField(default=0)
    legacy_token = models.CharField(max_length=255, default="", blank=True)
    verified_revision = models.BigIntegerField(
        default=-1, help_text="The number of the write after which both stores were verified."
    )
    foreign_written_at = models.DateTimeField(
        null=True,
        blank=True,
        help_text="When a write of other code into legacy was last seen.",
    )
    forked_from = models.ForeignKey(
        "self",
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="forks",
        db_index=False,
    )
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    objects = ReadingManager()
    rows = models.Manager()

    class Meta:
        db_table = "conversation_states"
        verbose_name = "conversation"
        base_manager_name = "rows"
        indexes = [
            # list_conversations(user_id), get_conversation_id(user_id)
            models.Index(
                F("user"),
                F("updated_at").desc(),
                F("conversation_id").desc(),
                name="state_by_user",
            ),
            # list_conversations(None), the admin's list, health
            models.Index(
                F("updated_at").desc(), F("conversation_id").desc(), name="state_by_activity"
            ),
            # a user's list, for owners that exist in legacy only
            models.Index(
                F("legacy_user_id"),
                F("updated_at").desc(),
                F("conversation_id").desc(),
                name="state_by_legacy_user",
                condition=Q(legacy_user_id__isnull=False),
            ),
            # the foreign key's own look-ups, and the redaction of forks
            models.Index(
                fields=["forked_from"],
                name="state_by_origin",
                condition=Q(forked_from__isnull=False),
            ),
            # changes since the last verification, and rows that a rollback would leave behind:
            # read while all writers wait. One index for both, since every save pays for it:
            # docs/indexes.md
            models.Index(fields=["id"], name="state_unsettled", condition=UNSETTLED),
        ]
        constraints = [
            # every look-up by id; named, and without the second index that `unique=True` makes
            models.UniqueConstraint(fields=["conversation_id"], name="state_conversation_id"),
            models.CheckConstraint(
                name="state_numbers_not_negative",
                condition=Q(
                    revision__gte=0,
                    legacy_revision__gte=0,
                    next_sequence__gte=1,
                    next_item_sequence__gte=1,
                    message_count__gte=0,
                    context_item_count__gte=0,
                    redaction_count__gte=0,
                ),
            ),
        ]

    def __str__(self) -> str:
        return self.conversation_id


class ConversationTombstone(models.Model):
    """A deleted conversation. Its id is never used again. Names no user."""

    conversation_id = models.CharField(max_length=255)
    deleted_at = models.DateTimeField()
    reason = models.CharField(max_length=64)

    objects = ReadingManager()
    rows = models.Manager()

    class Meta:
        db_table = "conversation_tombstones"
        verbose_name = "deleted conversation"
        base_manager_name = "rows"
        constraints = [
            models.UniqueConstraint(fields=["conversation_id"], name="tombstone_conversation_id"),
        ]

    def __str__(self) -> str:
        return self.conversation_id


class ConversationMessage(models.Model):
    """One version of one message. A version is never changed, only superseded (or redacted)."""

    conversation = models.ForeignKey(
        ConversationState, on_delete=models.CASCADE, related_name="messages", db_index=False
    )
    sequence = models.BigIntegerField()
    role = models.CharField(max_length=64, null=True, blank=True)
    content = models.TextField(null=True, blank=True)
    message_type = models.CharField(max_length=255, null=True, blank=True)
    tool_name = models.CharField(max_length=255, null=True, blank=True)
    tool_success = models.BooleanField(null=True, blank=True)
    tool_call_id = models.CharField(max_length=255, null=True, blank=True)
    tool_calls = models.TextField(null=True, blank=True, help_text="JSON as text.")
    extra = models.TextField(
        default="", blank=True, help_text="JSON as text: values without an exact column."
    )
    key = models.CharField(max_length=255, null=True, blank=True)
    key_digest = models.BinaryField(max_length=DIGEST_BYTES, null=True)
    digest = models.BinaryField(max_length=DIGEST_BYTES)
    supersedes = models.BigIntegerField(
        null=True, blank=True, help_text="The id of the version that this one replaced."
    )
    added_in = models.BigIntegerField()
    superseded_in = models.BigIntegerField(null=True, blank=True)
    superseded_at = models.DateTimeField(
        null=True, blank=True, help_text="When it was superseded here, for the retention rule."
    )
    timestamp = models.DateTimeField(null=True, blank=True)

    objects = ReadingManager()
    rows = models.Manager()

    class Meta:
        db_table = "conversation_messages"
        verbose_name = "message"
        base_manager_name = "rows"
        indexes = [
            # earlier messages of a conversation: appends with keys, retention
            models.Index(
                fields=["conversation", "key"],
                name="message_superseded",
                condition=Q(superseded_in__isnull=False),
            ),
            # the successor of a version: restore_message
            models.Index(
                fields=["supersedes"],
                name="message_successor",
                condition=Q(supersedes__isnull=False),
            ),
        ]
        constraints = [
            # loads as of a revision, transcript pages, the foreign key's own look-ups
            models.UniqueConstraint(
                fields=["conversation", "sequence", "added_in"], name="message_version"
            ),
            models.UniqueConstraint(
                fields=["conversation", "sequence"],
                condition=Q(superseded_in__isnull=True),
                name="message_current_sequence",
            ),
            # appends with keys, replace_message(key)
            models.UniqueConstraint(
                fields=["conversation", "key"],
                condition=Q(superseded_in__isnull=True, key__isnull=False),
                name="message_current_key",
            ),
            models.CheckConstraint(name="message_sequence_from_1", condition=Q(sequence__gte=1)),
            models.CheckConstraint(
                name="message_superseded_later",
                condition=Q(superseded_in__isnull=True) | Q(superseded_in__gt=F("added_in")),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.role or 'message'} {self.sequence}"


class ConversationConflict(models.Model):
    """An edit that a merge could not keep in place, or a legacy blob that was set aside."""

    class Kind(models.TextChoices):
        """Why the record was written."""

        MERGED = "merged", "old code's blob was merged"
        QUARANTINED = "quarantined", "a blob was set aside"
        OVERWRITTEN = "overwritten", "an edit was superseded by a later edit"

    conversation = models.ForeignKey(
        ConversationState, on_delete=models.CASCADE, related_name="conflicts", db_index=False
    )
    kind = models.CharField(max_length=16, choices=Kind.choices)
    reason = models.CharField(max_length=255)
    revision = models.BigIntegerField()
    detail = models.TextField(default="{}", help_text="JSON as text.")
    created_at = models.DateTimeField()

    objects = ReadingManager()
    rows = models.Manager()

    class Meta:
        db_table = "conversation_conflicts"
        verbose_name = "conflict"
        base_manager_name = "rows"
        indexes = [
            # the records of a conversation, and the foreign key's own look-ups
            models.Index(fields=["conversation", "revision"], name="conflict_by_revision"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.pk}"


class ConversationMismatch(models.Model):
    """A shadow read that found the stores to differ: the places and the time, never the content."""

    conversation_id = models.CharField(max_length=255)
    seen_at = models.DateTimeField()
    phase = models.PositiveSmallIntegerField()
    revision = models.BigIntegerField()
    places = models.TextField(help_text="JSON: the fields and places that differ.")
    tables_hash = models.CharField(max_length=96)
    legacy_hash = models.CharField(max_length=96, blank=True)

    objects = ReadingManager()
    rows = models.Manager()

    class Meta:
        db_table = "conversation_mismatches"
        verbose_name = "mismatch"
        verbose_name_plural = "mismatches"
        base_manager_name = "rows"
        indexes = [
            # the latest ones, and the old ones
            models.Index(fields=["seen_at"], name="mismatch_by_time"),
        ]

    def __str__(self) -> str:
        return f"mismatch {self.pk}"


class ConversationRedaction(models.Model):
    """The keyed hash of a redacted text, so that a late write of it is redacted as well."""

    conversation = models.ForeignKey(
        ConversationState, on_delete=models.CASCADE, related_name="redactions", db_index=False
    )
    text_hash = models.BinaryField(max_length=32)
    replacement = models.TextField()
    created_at = models.DateTimeField()

    objects = ReadingManager()
    rows = models.Manager()

    class Meta:
        db_table = "conversation_redactions"
        verbose_name = "redaction"
        base_manager_name = "rows"
        constraints = [
            models.UniqueConstraint(fields=["conversation", "text_hash"], name="redaction_text"),
        ]

    def __str__(self) -> str:
        return f"redaction {self.pk}"
