"""Create the records of backfills at scale.

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
                ("target", models.CharField(max_length=16)),
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
                ("cursor", models.TextField()),
                ("upper", models.TextField()),
                ("batch_size", models.PositiveIntegerField()),
                ("reason", models.CharField(blank=True, default="", max_length=255)),
                ("started_at", models.DateTimeField()),
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
                ("low", models.TextField()),
                ("high", models.TextField()),
                ("generation", models.PositiveIntegerField(default=1)),
                ("conversations", models.PositiveIntegerField(default=0)),
                (
                    "failures",
                    models.TextField(default="[]", help_text="JSON: pairs of an id and a reason."),
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
