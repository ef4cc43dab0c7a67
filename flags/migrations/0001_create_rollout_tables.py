"""Create the record of transitions.

A new table; takes no time, and its reverse drops it.
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
    ]
