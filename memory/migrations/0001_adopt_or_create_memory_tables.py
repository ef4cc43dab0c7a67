"""Create memory_context_items; adopt memory_chunks and memory_metadata, or create them.

Why: a host's old code writes its states to these two tables before, during and after this
migration. So they are never rebuilt. memory_metadata gets three nullable columns (its targets
besides a chunk) and a CHECK that exactly one target is set. A fresh install gets the tables of
old code first and the same columns after, so the schema is the same.

How long: milliseconds, for tables of any size. PostgreSQL reads no row: new nullable foreign keys
have nothing to validate, and the CHECK is NOT VALID. It waits for the one exclusive lock for a
second at a time, so that old code never queues behind it for longer. On SQLite the CHECK comes
with the last column and reads the table once.

Reversible: yes. The reverse drops memory_context_items. From memory_metadata it drops the three
columns, with the rows about conversations, messages and context items. It keeps both tables and
every row about a chunk. Migrating forward again adopts them.
"""

import time

import django.db.models.deletion
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, migrations, models, transaction
from django.db.models import F, Q
from django.db.models.functions import Coalesce

import memory.models
from memory.adoption import (
    CHECK,
    METADATA,
    TARGET_COLUMNS,
    columns_of,
    has_check,
    problems_of,
)

LOCK_TIMEOUT_SECONDS = 1
LOCK_ATTEMPTS = 60


def refuse_misfits(apps, schema_editor):
    """Raise before any change if an existing table cannot be adopted."""
    user_key = apps.get_model(settings.AUTH_USER_MODEL)._meta.pk
    problems = problems_of(schema_editor.connection, user_key=user_key)
    if problems:
        raise ImproperlyConfigured(
            "Existing tables cannot be adopted; nothing was changed. " + " ".join(problems)
        )


def create_absent_tables(apps, schema_editor):
    """Create the tables of old code that the host lacks."""
    for name in ("MemoryChunk", "MemoryMetadata"):
        model = apps.get_model("memory", name)
        if not columns_of(schema_editor.connection, model._meta.db_table):
            schema_editor.create_model(model)


def add_targets(apps, schema_editor):
    """Add the columns and the CHECK that memory_metadata lacks."""
    model = apps.get_model("memory", "MemoryMetadata")
    is_sqlite = schema_editor.connection.vendor == "sqlite"
    (check,) = (found for found in model._meta.constraints if found.name == CHECK)
    lock(schema_editor)
    present = columns_of(schema_editor.connection, METADATA)
    for column in TARGET_COLUMNS:
        field = model._meta.get_field(column.removesuffix("_id"))
        if column in present:
            continue
        if is_sqlite and column == TARGET_COLUMNS[-1]:
            target = field.remote_field.model._meta.db_table
            schema_editor.execute(
                f'ALTER TABLE "{METADATA}" ADD COLUMN "{column}" bigint NULL'
                f' REFERENCES "{target}" ("id") DEFERRABLE INITIALLY DEFERRED'
                f" {check.constraint_sql(model, schema_editor)}"
            )
        else:
            schema_editor.add_field(model, field)
    if not is_sqlite and not has_check(schema_editor.connection):
        # params=None: the statement is complete, a "%" in it is no placeholder
        schema_editor.execute(f"{check.create_sql(model, schema_editor)} NOT VALID", params=None)


def remove_targets(apps, schema_editor):
    """Drop the columns of `add_targets`, and the rows whose only target they are."""
    lock(schema_editor)
    somewhere = " OR ".join(f'"{column}" IS NOT NULL' for column in TARGET_COLUMNS)
    schema_editor.execute(f'DELETE FROM "{METADATA}" WHERE {somewhere}')
    if schema_editor.connection.vendor == "sqlite":
        for column in reversed(TARGET_COLUMNS):
            schema_editor.execute(f'ALTER TABLE "{METADATA}" DROP COLUMN "{column}"')
        return
    # PostgreSQL drops a CHECK with its columns.
    drops = ", ".join(f'DROP COLUMN "{column}"' for column in TARGET_COLUMNS)
    schema_editor.execute(f'ALTER TABLE "{METADATA}" {drops}')


def lock(schema_editor):
    """Take the exclusive lock that ALTER TABLE needs, in short attempts.

    While one attempt waits, every later statement on the table waits behind it. Writers run
    between two attempts.
    """
    connection = schema_editor.connection
    if connection.vendor != "postgresql":
        return
    for attempt in range(1, LOCK_ATTEMPTS + 1):
        try:
            with transaction.atomic(using=connection.alias):
                schema_editor.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'")
                schema_editor.execute(f'LOCK TABLE "{METADATA}" IN ACCESS EXCLUSIVE MODE')
            return
        except OperationalError as error:
            if attempt == LOCK_ATTEMPTS:
                error.add_note(
                    f"Some transaction holds a lock on {METADATA}: end it, then migrate again."
                )
                raise
            time.sleep(0.5)


def about(to):
    return models.ForeignKey(
        to,
        on_delete=django.db.models.deletion.CASCADE,
        related_name="metadata",
        null=True,
        blank=True,
        db_index=False,
    )


def primary_key():
    return models.BigAutoField(
        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
    )


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("conversations", "0001_create_conversation_tables"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.RunPython(refuse_misfits, migrations.RunPython.noop),
        migrations.CreateModel(
            name="MemoryContextItem",
            fields=[
                ("id", primary_key()),
                (
                    "conversation",
                    models.ForeignKey(
                        "conversations.conversationstate",
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="context_items",
                        db_index=False,
                    ),
                ),
                ("sequence", models.BigIntegerField()),
                ("position", models.BigIntegerField()),
                ("source", models.CharField(max_length=255, null=True, blank=True)),
                ("content", models.TextField(null=True, blank=True)),
                ("relevance_score", models.FloatField(null=True, blank=True)),
                ("context_type", models.CharField(max_length=255, null=True, blank=True)),
                ("original_role", models.CharField(max_length=64, null=True, blank=True)),
                ("focus_area", models.CharField(max_length=255, null=True, blank=True)),
                ("preference_type", models.CharField(max_length=255, null=True, blank=True)),
                (
                    "extra",
                    models.TextField(
                        default="",
                        blank=True,
                        help_text="JSON as text: values without an exact column.",
                    ),
                ),
                ("digest", models.BinaryField(max_length=16)),
                ("timestamp", models.DateTimeField(null=True, blank=True)),
                ("added_in", models.BigIntegerField()),
                ("superseded_in", models.BigIntegerField(null=True, blank=True)),
            ],
            options={
                "db_table": "memory_context_items",
                "constraints": [
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
                        condition=Q(superseded_in__isnull=True)
                        | Q(superseded_in__gt=F("added_in")),
                    ),
                ],
            },
        ),
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.CreateModel(
                    name="MemoryChunk",
                    fields=[
                        ("id", primary_key()),
                        (
                            "user",
                            models.ForeignKey(
                                settings.AUTH_USER_MODEL,
                                on_delete=django.db.models.deletion.CASCADE,
                                related_name="memory_chunks",
                                null=True,
                                blank=True,
                                db_index=False,
                            ),
                        ),
                        ("content", models.TextField(null=True, blank=True)),
                        ("embedding", memory.models.LegacyJSONField(null=True, blank=True)),
                        ("created_at", models.DateTimeField(null=True, blank=True)),
                    ],
                    options={"db_table": "memory_chunks"},
                ),
                migrations.CreateModel(
                    name="MemoryMetadata",
                    fields=[
                        ("id", primary_key()),
                        ("chunk", about("memory.memorychunk")),
                        ("key", models.CharField(max_length=255)),
                        ("value", models.TextField(null=True, blank=True)),
                    ],
                    options={
                        "db_table": "memory_metadata",
                        "verbose_name_plural": "memory metadata",
                    },
                ),
            ]
        ),
        migrations.RunPython(create_absent_tables, migrations.RunPython.noop),
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.AddField(
                    "MemoryMetadata", "conversation", about("conversations.conversationstate")
                ),
                migrations.AddField(
                    "MemoryMetadata", "message", about("conversations.conversationmessage")
                ),
                migrations.AddField(
                    "MemoryMetadata", "context_item", about("memory.memorycontextitem")
                ),
                migrations.AddConstraint(
                    "MemoryMetadata",
                    models.CheckConstraint(
                        name=CHECK,
                        condition=(
                            Q(
                                chunk__isnull=False,
                                conversation=None,
                                message=None,
                                context_item=None,
                            )
                            | Q(
                                chunk=None,
                                conversation__isnull=False,
                                message=None,
                                context_item=None,
                            )
                            | Q(
                                chunk=None,
                                conversation=None,
                                message__isnull=False,
                                context_item=None,
                            )
                            | Q(
                                chunk=None,
                                conversation=None,
                                message=None,
                                context_item__isnull=False,
                            )
                        ),
                    ),
                ),
            ]
        ),
        migrations.RunPython(add_targets, remove_targets),
    ]
