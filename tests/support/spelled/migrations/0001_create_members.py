"""Create the collation, where it has to be, and the users."""

from django.conf import settings
from django.contrib.postgres.operations import CreateCollation
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    operations = [
        *(
            [
                CreateCollation(
                    settings.COLLATION,
                    provider="icu",
                    locale=settings.COLLATION_LOCALE,
                    deterministic=False,
                )
            ]
            if settings.COLLATION_LOCALE
            else []
        ),
        migrations.CreateModel(
            name="Member",
            fields=[
                ("password", models.CharField(max_length=128, verbose_name="password")),
                (
                    "last_login",
                    models.DateTimeField(blank=True, null=True, verbose_name="last login"),
                ),
                (
                    "name",
                    models.CharField(
                        primary_key=True,
                        max_length=64,
                        serialize=False,
                        db_collation=settings.COLLATION,
                    ),
                ),
            ],
            options={"abstract": False},
        ),
    ]
