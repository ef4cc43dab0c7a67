"""The app of an assistant's memory: context items, metadata, legacy chunks."""

from flags import logs
from flags.installation import OneOfTogether


class MemoryConfig(OneOfTogether):
    default = True
    name = "memory"
    verbose_name = "Memory"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        logs.escape(self.name)
        from memory import checks  # noqa: F401  (registers them)
