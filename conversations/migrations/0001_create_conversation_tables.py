"""Create the tables of conversations: state, messages, conflicts, redactions and tombstones.

Why: a conversation is one row and a row per message here, instead of a blob per save. How
long: nothing is read or copied, so milliseconds; on PostgreSQL the foreign key to the user
table waits for transactions that write that table, and holds up its writers until the
migration commits. Reversible: yes, the reverse drops the tables and all they hold; copy the
conversations to legacy first (`manage.py conversations sync --to legacy`).

Not named 0001_initial: a database in which another app of this label recorded that name would
skip it silently.
"""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models
from django.db.models import F, Q

MANAGERS = [("objects", models.Manager()), ("rows", models.Manager())]


def primary_key():
    return models.BigAutoField(
        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
    )


def of_conversation(related_name):
    return models.ForeignKey(
        "conversations.conversationstate",
        on_delete=django.db.models.deletion.CASCADE,
        related_name=related_name,
        db_index=False,
    )


class Migration(migrations.Migration):
    initial = True

    dependencies = [migrations.swappable_dependency(settings.AUTH_USER_MODEL)]

    operations = [
        migrations.CreateModel(
            name="ConversationState",
            fields=[
                ("id", primary_key()),
                ("conversation_id", models.CharField(max_length=255)),
                (
                    "user",
                    models.ForeignKey(
                        settings.AUTH_USER_MODEL,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="conversation_states",
                        null=True,
                        blank=True,
                        db_index=False,
                    ),
                ),
                (
                    "legacy_user_id",
                    models.CharField(
                        max_length=255,
                        null=True,
                        blank=True,
                        help_text="The owner that legacy names, when no such user exists here.",
                    ),
                ),
                ("user_input", models.TextField(default="")),
                ("focus_areas", models.TextField(default="[]", help_text="JSON as text.")),
                ("step_count", models.BigIntegerField(default=0)),
                ("last_tool_result", models.TextField(default="null", help_text="JSON as text.")),
                (
                    "extra",
                    models.TextField(
                        default="", help_text="JSON as text: history, unknown fields, flags."
                    ),
                ),
                ("revision", models.BigIntegerField(default=0)),
                ("next_sequence", models.BigIntegerField(default=1)),
                ("next_item_sequence", models.BigIntegerField(default=1)),
                ("message_count", models.BigIntegerField(default=0)),
                ("context_item_count", models.BigIntegerField(default=0)),
                (
                    "context_items_revision",
                    models.BigIntegerField(
                        default=0, help_text="The revision that last changed a context item."
                    ),
                ),
                ("redaction_count", models.BigIntegerField(default=0)),
                ("messages_digest", models.BinaryField(max_length=16)),
                (
                    "state_digest",
                    models.BinaryField(
                        max_length=32, help_text="Of the fields, then of the context items."
                    ),
                ),
                ("legacy_revision", models.BigIntegerField(default=0)),
                ("legacy_token", models.CharField(max_length=255, default="", blank=True)),
                (
                    "verified_revision",
                    models.BigIntegerField(
                        default=-1,
                        help_text="The number of the write after which both stores were verified.",
                    ),
                ),
                (
                    "foreign_written_at",
                    models.DateTimeField(
                        null=True,
                        blank=True,
                        help_text="When a write of other code into legacy was last seen.",
                    ),
                ),
                (
                    "forked_from",
                    models.ForeignKey(
                        "conversations.conversationstate",
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="forks",
                        null=True,
                        blank=True,
                        db_index=False,
                    ),
                ),
                ("created_at", models.DateTimeField()),
                ("updated_at", models.DateTimeField()),
            ],
            options={
                "db_table": "conversation_states",
                "verbose_name": "conversation",
                "base_manager_name": "rows",
                "indexes": [
                    models.Index(
                        F("user"),
                        F("updated_at").desc(),
                        F("conversation_id").desc(),
                        name="state_by_user",
                    ),
                    models.Index(
                        F("updated_at").desc(),
                        F("conversation_id").desc(),
                        name="state_by_activity",
                    ),
                    models.Index(
                        F("legacy_user_id"),
                        F("updated_at").desc(),
                        F("conversation_id").desc(),
                        name="state_by_legacy_user",
                        condition=Q(legacy_user_id__isnull=False),
                    ),
                    models.Index(
                        fields=["forked_from"],
                        name="state_by_origin",
                        condition=Q(forked_from__isnull=False),
                    ),
                    models.Index(
                        fields=["id"],
                        name="state_unsettled",
                        condition=Q(verified_revision__lt=F("revision"))
                        | Q(verified_revision__lt=F("legacy_revision"))
                        | Q(legacy_revision__lt=F("revision")),
                    ),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=["conversation_id"], name="state_conversation_id"
                    ),
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
                ],
            },
            managers=MANAGERS,
        ),
        migrations.CreateModel(
            name="ConversationTombstone",
            fields=[
                ("id", primary_key()),
                ("conversation_id", models.CharField(max_length=255)),
                ("deleted_at", models.DateTimeField()),
                ("reason", models.CharField(max_length=64)),
            ],
            options={
                "db_table": "conversation_tombstones",
                "verbose_name": "deleted conversation",
                "base_manager_name": "rows",
                "constraints": [
                    models.UniqueConstraint(
                        fields=["conversation_id"], name="tombstone_conversation_id"
                    ),
                ],
            },
            managers=MANAGERS,
        ),
        migrations.CreateModel(
            name="ConversationMessage",
            fields=[
                ("id", primary_key()),
                ("conversation", of_conversation("messages")),
                ("sequence", models.BigIntegerField()),
                ("role", models.CharField(max_length=64, null=True, blank=True)),
                ("content", models.TextField(null=True, blank=True)),
                ("message_type", models.CharField(max_length=255, null=True, blank=True)),
                ("tool_name", models.CharField(max_length=255, null=True, blank=True)),
                ("tool_success", models.BooleanField(null=True, blank=True)),
                ("tool_call_id", models.CharField(max_length=255, null=True, blank=True)),
                (
                    "tool_calls",
                    models.TextField(null=True, blank=True, help_text="JSON as text."),
                ),
                (
                    "extra",
                    models.TextField(
                        default="",
                        blank=True,
                        help_text="JSON as text: values without an exact column.",
                    ),
                ),
                ("key", models.CharField(max_length=255, null=True, blank=True)),
                ("key_digest", models.BinaryField(max_length=16, null=True)),
                ("digest", models.BinaryField(max_length=16)),
                (
                    "supersedes",
                    models.BigIntegerField(
                        null=True,
                        blank=True,
                        help_text="The id of the version that this one replaced.",
                    ),
                ),
                ("added_in", models.BigIntegerField()),
                ("superseded_in", models.BigIntegerField(null=True, blank=True)),
                (
                    "superseded_at",
                    models.DateTimeField(
                        null=True,
                        blank=True,
                        help_text="When it was superseded here, for the retention rule.",
                    ),
                ),
                ("timestamp", models.DateTimeField(null=True, blank=True)),
            ],
            options={
                "db_table": "conversation_messages",
                "verbose_name": "message",
                "base_manager_name": "rows",
                "indexes": [
                    models.Index(
                        fields=["conversation", "key"],
                        name="message_superseded",
                        condition=Q(superseded_in__isnull=False),
                    ),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=["conversation", "sequence", "added_in"], name="message_version"
                    ),
                    models.UniqueConstraint(
                        fields=["conversation", "sequence"],
                        condition=Q(superseded_in__isnull=True),
                        name="message_current_sequence",
                    ),
                    models.UniqueConstraint(
                        fields=["conversation", "key"],
                        condition=Q(superseded_in__isnull=True, key__isnull=False),
                        name="message_current_key",
                    ),
                    models.CheckConstraint(
                        name="message_sequence_from_1", condition=Q(sequence__gte=1)
                    ),
                    models.CheckConstraint(
                        name="message_superseded_later",
                        condition=Q(superseded_in__isnull=True)
                        | Q(superseded_in__gt=F("added_in")),
                    ),
                ],
            },
            managers=MANAGERS,
        ),
        migrations.CreateModel(
            name="ConversationConflict",
            fields=[
                ("id", primary_key()),
                ("conversation", of_conversation("conflicts")),
                (
                    "kind",
                    models.CharField(
                        max_length=16,
                        choices=[
                            ("merged", "old code's blob was merged"),
                            ("quarantined", "a blob was set aside"),
                            ("overwritten", "an edit was superseded by a later edit"),
                        ],
                    ),
                ),
                ("reason", models.CharField(max_length=255)),
                ("revision", models.BigIntegerField()),
                ("detail", models.TextField(default="{}", help_text="JSON as text.")),
                ("created_at", models.DateTimeField()),
            ],
            options={
                "db_table": "conversation_conflicts",
                "verbose_name": "conflict",
                "base_manager_name": "rows",
                "indexes": [
                    models.Index(fields=["conversation", "revision"], name="conflict_by_revision"),
                ],
            },
            managers=MANAGERS,
        ),
        migrations.CreateModel(
            name="ConversationRedaction",
            fields=[
                ("id", primary_key()),
                ("conversation", of_conversation("redactions")),
                ("text_hash", models.BinaryField(max_length=32)),
                ("replacement", models.TextField()),
                ("created_at", models.DateTimeField()),
            ],
            options={
                "db_table": "conversation_redactions",
                "verbose_name": "redaction",
                "base_manager_name": "rows",
                "constraints": [
                    models.UniqueConstraint(
                        fields=["conversation", "text_hash"], name="redaction_text"
                    ),
                ],
            },
            managers=MANAGERS,
        ),
        migrations.CreateModel(
            name="ConversationMismatch",
            fields=[
                ("id", primary_key()),
                ("conversation_id", models.CharField(max_length=255)),
                ("seen_at", models.DateTimeField()),
                ("phase", models.PositiveSmallIntegerField()),
                ("revision", models.BigIntegerField()),
                (
                    "places",
                    models.TextField(help_text="JSON: the fields and places that differ."),
                ),
                ("tables_hash", models.CharField(max_length=96)),
                ("legacy_hash", models.CharField(blank=True, max_length=96)),
            ],
            options={
                "db_table": "conversation_mismatches",
                "verbose_name": "mismatch",
                "verbose_name_plural": "mismatches",
                "base_manager_name": "rows",
                "indexes": [
                    models.Index(fields=["seen_at"], name="mismatch_by_time"),
                ],
            },
            managers=MANAGERS,
        ),
    ]
