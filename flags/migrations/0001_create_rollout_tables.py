"""Create the tables of transitions, processes and measures.

New tables: it takes no time, and its reverse drops them.
"""

from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Transition",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("at", models.DateTimeField()),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("advance", "Advance"),
                            ("rollback", "Rollback"),
                            ("emergency", "Emergency"),
                            ("resume", "Resume"),
                            ("canary", "Canary"),
                            ("rehearsal", "Rehearsal"),
                            ("noticed", "Noticed"),
                            ("retired", "Retired"),
                            ("restored", "Restored"),
                        ],
                        max_length=16,
                    ),
                ),
                ("from_phase", models.PositiveSmallIntegerField()),
                ("to_phase", models.PositiveSmallIntegerField()),
                ("actor", models.CharField(blank=True, default="", max_length=255)),
                ("reason", models.TextField(blank=True, default="")),
                ("switches", models.TextField()),
                (
                    "canary",
                    models.FloatField(default=100.0, help_text="In percent of the conversations."),
                ),
                ("gates", models.TextField(default="[]")),
            ],
            options={
                "db_table": "rollout_transitions",
                "constraints": [
                    models.CheckConstraint(
                        name="transition_between_phases",
                        condition=Q(from_phase__lte=4, to_phase__lte=4),
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="ReportingProcess",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("token", models.CharField(max_length=32)),
                ("host", models.CharField(max_length=255)),
                ("pid", models.BigIntegerField()),
                ("version", models.CharField(max_length=64)),
                ("phase", models.PositiveSmallIntegerField()),
                (
                    "epoch",
                    models.BigIntegerField(help_text="The latest transition that it acts on."),
                ),
                ("seen_at", models.DateTimeField(help_text="By the database's clock.")),
            ],
            options={
                "db_table": "rollout_processes",
                "verbose_name": "process",
                "verbose_name_plural": "processes",
                "constraints": [
                    models.UniqueConstraint(fields=["token"], name="process_token"),
                ],
            },
        ),
        migrations.CreateModel(
            name="MeasuredMinute",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("began_at", models.DateTimeField()),
                ("operation", models.CharField(max_length=32)),
                ("store", models.CharField(max_length=32)),
                ("count", models.BigIntegerField(default=0)),
                ("errors", models.BigIntegerField(default=0)),
                ("fallbacks", models.BigIntegerField(default=0)),
                ("stale", models.BigIntegerField(default=0)),
                ("mismatches", models.BigIntegerField(default=0)),
                (
                    "seconds",
                    models.FloatField(default=0.0, help_text="The sum of the durations."),
                ),
                (
                    "cells",
                    models.TextField(
                        default="",
                        help_text="JSON: counts by duration; see flags.histogram.BOUNDS.",
                    ),
                ),
            ],
            options={
                "db_table": "rollout_measures",
                "verbose_name": "measured minute",
                "constraints": [
                    models.UniqueConstraint(
                        fields=["began_at", "operation", "store"], name="measure_minute"
                    ),
                ],
            },
        ),
    ]
