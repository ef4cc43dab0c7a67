"""The app that decides, by waffle switches, which store reads and which stores write."""

from django.apps import AppConfig


class FlagsConfig(AppConfig):
    name = "flags"
    verbose_name = "Flags"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        # Importing them registers the checks, and what a monitor does at every beat.
        from flags import checks, metrics, processes, signals  # noqa: F401

        signals.connect()
