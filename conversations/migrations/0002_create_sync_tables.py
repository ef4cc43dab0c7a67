"""Create the records of backfills and verifications at scale.

Two new tables; takes no time, and its reverse drops them.
"""

import django.db.models.deletion
from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    dependencies = [("conversations", "0001_create_conversation_tables")]

    operations = [
        migrations.CreateModel(
            name="SyncRun",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "target",
                    models.CharField(
                        help_text="The store that is brought up, or `verification`.",
                        max_length=16,
                    ),
                ),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("running", "Running"),
                            ("paused", "Paused"),
                            ("finished", "Finished"),
                            ("cancelled", "Cancelled"),
                            ("failed", "Failed"),
                        ],
                        default="running",
                        max_length=16,
                    ),
                ),
                (
                    "stage",
                    models.PositiveSmallIntegerField(
                        default=0, help_text="The number of the current walk; a run has several."
                    ),
                ),
                ("cursor", models.TextField()),
                ("upper", models.TextField()),
                (
                    "sample",
                    models.FloatField(
                        blank=True,
                        help_text="The share of the conversations; null: all.",
                        null=True,
                    ),
                ),
                (
                    "mark",
                    models.TextField(
                        blank=True,
                        default="",
                        help_text="The mark of legacy when the last full walk began.",
                    ),
                ),
                ("batch_size", models.PositiveIntegerField()),
                ("reason", models.CharField(blank=True, default="", max_length=255)),
                (
                    "waiting",
                    models.CharField(
                        blank=True,
                        default="",
                        help_text="Why a worker waits, as of `waited_at`.",
                        max_length=255,
                    ),
                ),
                ("waited_at", models.DateTimeField(blank=True, null=True)),
                ("started_at", models.DateTimeField()),
                ("resumed_at", models.DateTimeField(blank=True, null=True)),
                ("finished_at", models.DateTimeField(blank=True, null=True)),
            ],
            options={
                "db_table": "sync_runs",
                "verbose_name": "sync run",
                "base_manager_name": "rows",
                "constraints": [
                    models.UniqueConstraint(
                        fields=["target"],
                        name="sync_run_alive",
                        condition=Q(state__in=["running", "paused"]),
                    ),
                ],
            },
            managers=[
                ("objects", models.Manager()),
                ("rows", models.Manager()),
            ],
        ),
        migrations.CreateModel(
            name="SyncBatch",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("stage", models.PositiveSmallIntegerField(default=0)),
                ("low", models.TextField()),
                ("high", models.TextField()),
                ("generation", models.PositiveIntegerField(default=1)),
                ("conversations", models.PositiveIntegerField(default=0)),
                (
                    "counts",
                    models.TextField(
                        default="{}", help_text="JSON: how often each result, without those noted."
                    ),
                ),
                (
                    "noted",
                    models.TextField(
                        default="[]",
                        help_text="JSON: lists of an id, its result, the reason and its class.",
                    ),
                ),
                ("failed", models.PositiveIntegerField(default=0)),
                ("taken_at", models.DateTimeField()),
                ("finished_at", models.DateTimeField(blank=True, null=True)),
                (
                    "run",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="batches",
                        to="conversations.syncrun",
                    ),
                ),
            ],
            options={
                "db_table": "sync_batches",
                "verbose_name": "sync batch",
                "verbose_name_plural": "sync batches",
                "base_manager_name": "rows",
                "indexes": [
                    models.Index(fields=["run", "finished_at"], name="sync_batch_of_run"),
                ],
            },
            managers=[
                ("objects", models.Manager()),
                ("rows", models.Manager()),
            ],
        ),
    ]
