"""The app that decides, by waffle switches, which store reads and which stores write."""

from django.apps import AppConfig


class FlagsConfig(AppConfig):
    name = "flags"
    verbose_name = "Flags"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from flags import checks, signals  # noqa: F401  (registers the checks)

        signals.connect()
