"""The app that decides, by waffle switches, which store reads and which stores write."""

from flags import logs
from flags.installation import OneOfTogether


class FlagsConfig(OneOfTogether):
    default = True
    name = "flags"
    verbose_name = "Flags"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        logs.escape(self.name)
        # The imports register the checks, and the work of the monitor at every beat.
        from flags import checks, metrics, processes, signals  # noqa: F401

        signals.connect()
